"""Runs whose agents observe what an ``observation_fn`` says, and who they are."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

import steppe
from tests.states import diff
from tests.test_many_agents import TINY, Crowd, Poles, crowd, kind

POLE = gymnasium.make("CartPole-v1").observation_space
WIDE = Box(-np.inf, np.inf, (4,), np.float32)
SHARED = Dict({"own": POLE, "sum": WIDE})


def share(agent_obs):
    total = sum(agent_obs.values())
    return {agent: {"own": own, "sum": total} for agent, own in agent_obs.items()}


def poles(function=share, **changes):
    own = {"env": Poles, "observation_fn": function, "observation_space": SHARED}
    return steppe.PPOConfig(**{**TINY, **own, **changes})


def same_after(config, tmp_path, *, iterations=2, **code):
    """A run that is saved in the middle goes on as the one that was not."""
    with config.build() as algo:
        for _ in range(iterations):
            algo.train()
        path = algo.save(tmp_path / "c")
        for _ in range(iterations):
            algo.train()
        expected = algo.get_state()
    with steppe.load(path, env=config.env, observation_fn=config.observation_fn, **code) as algo:
        for _ in range(iterations):
            algo.train()
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []


def test_the_function_is_told_of_everything_and_called_once_an_env_step():
    calls, started = [], []

    class Watch(steppe.Callbacks):
        def on_episode_start(self, *, episode):
            started.append(episode.id)

    def observe(agent_obs, worker, base_env, policies, episode, **kw):
        assert kw == {}
        assert base_env is worker.env
        assert type(base_env.get_sub_environments()[episode.env_index]) is Poles
        assert policies["p"].observation == worker.spaces["p"].observation
        assert episode.policy_for(0) == episode.policy_for(2) == "p"
        assert episode.worker_index == 0
        seen = episode.user_data.setdefault("lengths", [])
        assert seen == list(range(episode.length))
        seen.append(episode.length)
        calls.append((episode.id, episode.number, episode.env_index))
        return share(agent_obs)

    with poles(observe, policies=["p"], callbacks_class=Watch).build() as algo:
        assert calls == []
        first = algo.train()
        trained = len(calls)
        evaluation = algo.evaluate(num_episodes=2)
    assert trained == first["timesteps_this_iter"] + len({id for id, _, _ in calls[:trained]})
    assert set(started) == {id for id, _, _ in calls}
    assert {id for id, _, _ in calls[:trained]} >= {"0-0-0", "0-1-0"}
    assert all(id == f"e0-{env}-{number}" for id, number, env in calls[trained:])
    assert len(calls) - trained >= evaluation["timesteps_this_iter"]
    assert first["env_health"] == evaluation["env_health"] == {}


def test_a_function_takes_what_it_names():
    def by_name(*, policies, agent_obs):
        assert list(policies) == ["default_policy"]
        return share(agent_obs)

    class Called:
        def __call__(self, agent_obs, episode, more=1):
            assert more == 1
            return share(agent_obs)

    for function in (by_name, Called()):
        with poles(function).build() as algo:
            algo.train()


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda agent_ob: {}, r"'agent_ob', which it is not given; did you mean agent_obs\?"),
        (lambda agent_obs, x, y: {}, "'x', which it is not given"),
        (lambda agent_obs, /: {}, "'agent_obs', which it is not given. It gets by keyword"),
    ],
)
def test_a_function_that_wants_something_else_is_refused_when_the_run_is_built(function, match):
    with pytest.raises(steppe.ConfigError, match=match):
        poles(function).build()


def test_what_is_no_dict_and_envs_of_one_agent():
    with (
        pytest.raises(steppe.ConfigError, match=r"<lambda> returned \[1\] \(list\); return a dict"),
        poles(lambda agent_obs: [1]).build() as algo,
    ):
        algo.train()
    for changes in ({"observation_fn": share}, {"add_agent_id": True}):
        with pytest.raises(steppe.ConfigError, match="CartPole-v1 is no env of many agents"):
            steppe.PPOConfig(env="CartPole-v1", **TINY, **changes).build()


def test_an_undeclared_space_is_asked_for():
    with (
        pytest.raises(steppe.EnvError, match=r"(?s)E102.*observation_fn returned it; declare the space"),
        poles(observation_space=None).build() as algo,
    ):
        algo.train()


@pytest.mark.parametrize("add_agent_id", [False, True])
def test_policies_may_name_what_their_agents_observe(add_agent_id):
    space = Dict({**SHARED.spaces, "agent_id": Discrete(3)}) if add_agent_id else SHARED
    specs = {"p": (None, space, Discrete(2), {})}
    config = poles(observation_space=None, policies=specs, add_agent_id=add_agent_id)
    with config.build() as algo:
        algo.train()
        assert algo.evaluate(num_episodes=2)["episodes_this_iter"] == 2


class Native(Poles):
    """Gives and takes its own state."""

    def get_state(self):
        envs = [env.unwrapped for env in self.envs]
        steps = [env._elapsed_steps for env in self.envs]
        rng = [env.np_random.bit_generator.state for env in envs]
        states = [None if env.state is None else np.array(env.state) for env in envs]
        beyond = [env.steps_beyond_terminated for env in envs]
        return {"live": sorted(self.live), "steps": steps, "rng": rng, "states": states, "beyond": beyond}

    def set_state(self, state):
        self.live = set(state["live"])
        columns = (state["steps"], state["rng"], state["states"], state["beyond"])
        for env, steps, rng, own, beyond in zip(self.envs, *columns, strict=True):
            env._elapsed_steps, inner = steps, env.unwrapped
            inner.np_random.bit_generator.state = rng
            inner.state, inner.steps_beyond_terminated = own, beyond


def remember(agent_obs, episode):
    """A memory of the episode, in what everyone sees."""
    memory = episode.user_data.setdefault("sum", np.zeros(4, np.float32))
    memory += sum(agent_obs.values()) * (2 if episode.policy_for(0) == "even" else 1)
    return {agent: {"own": own, "sum": memory.copy()} for agent, own in agent_obs.items()}


@pytest.mark.parametrize("env", [Poles, Native])
@pytest.mark.parametrize("mode", ["truncate_episodes", "complete_episodes"])
def test_resume_is_exact_with_a_memory_of_the_episode(env, mode, tmp_path, caplog):
    several = {
        "policies": ["even", "odd"],
        "policy_mapping_fn": lambda agent_id: ("even", "odd")[agent_id % 2],
    }
    config = poles(
        remember, env=env, batch_mode=mode, evaluation_interval=2, evaluation_duration=2, **several
    )
    same_after(config, tmp_path, policy_mapping_fn=config.policy_mapping_fn)
    assert "not exact" not in caplog.text


def test_one_who_draws_is_asked_once_and_draws_the_same_again():
    """Mapping and observing draw from generators of the run; who asks for a policy gets the one that acts."""
    found = []

    def draw(agent_id, episode):
        found.append((episode.id, agent_id))
        return np.random.choice(["x", "y"])

    def observe(agent_obs, episode, worker):
        for agent in agent_obs:
            policy = episode.policy_for(agent)
            assert episode.policy_for(agent) == policy
            acted = episode.user_data.setdefault(agent, policy)
            assert acted == policy
        noise = np.float32(np.random.normal())
        return {agent: {"own": own, "sum": np.full(4, noise)} for agent, own in agent_obs.items()}

    def states():
        space = {"x": (None, SHARED, Discrete(2), {}), "y": (None, SHARED, Discrete(2), {})}
        with poles(observe, policies=space, policy_mapping_fn=draw).build() as algo:
            algo.train()
            return algo.get_state()

    first = states()
    count = len(found)
    assert count == len(set(found)) >= 6
    again = states()
    assert found[count:] == found[:count]
    assert diff(first["learner"], again["learner"]) == []


@pytest.mark.parametrize("duration", [2, 3])
def test_shared_envs_are_observed_by_whoever_samples(duration, tmp_path):
    seen = []

    def observe(agent_obs, worker, episode):
        assert episode.policy_for(0) == "even"
        seen.append((worker.in_evaluation, episode.id[0] == "e", episode.length))
        assert episode.worker_index == worker.worker_index
        return share(agent_obs)

    config = poles(
        observe,
        evaluation_envs="shared",
        evaluation_interval=1,
        evaluation_duration=duration,
        policies=["even", "odd"],
        policy_mapping_fn=lambda agent_id: ("even", "odd")[agent_id % 2],
    )
    same_after(config, tmp_path, iterations=1, policy_mapping_fn=config.policy_mapping_fn)
    assert {(evaluating, evaluating) for evaluating in (False, True)} <= {one[:2] for one in seen}
    assert all(own == evaluating for evaluating, own, length in seen if length == 0)


class Told(Poles):
    """Takes an action of a supervisor, too, whom it never shows; keeps what it was told."""

    told: list[int] = []  # noqa: RUF012 - for the test to read

    def get_action_space(self, agent):
        return Discrete(7) if agent == "supervisor" else Discrete(2)

    def step(self, action_dict):
        self.told.append(action_dict.pop("supervisor"))
        return super().step(action_dict)


def test_an_agent_that_the_function_adds_acts_and_its_action_reaches_the_env():
    Told.told.clear()

    def supervise(agent_obs, episode):
        return {**agent_obs, "supervisor": np.int64(episode.length % 2)}

    specs = {"pole": (None, POLE, Discrete(2), {}), "boss": (None, Discrete(2), Discrete(7), {})}
    config = poles(
        supervise,
        env=Told,
        observation_space=None,
        policies=specs,
        policy_mapping_fn=lambda agent_id: "boss" if agent_id == "supervisor" else "pole",
    )
    with config.build() as algo:
        result = algo.train()
    assert result["env_health"] == {}
    assert len(Told.told) == result["timesteps_this_iter"]
    assert set(Told.told) <= set(range(7))
    assert len(set(Told.told)) > 2
    assert result["info"]["boss"]["rows"] > 0


def test_agents_that_come_and_go_with_a_function_and_policies_of_two_kinds(tmp_path):
    spaces = {
        "boss": (None, Dict({"t": Discrete(30), "n": Discrete(9)}), Discrete(2), {}),
        "worker": (None, Box(-1, 1, (2,), np.float32), Box(-1, 1, (1,), np.float32), {}),
    }

    def count(agent_obs, episode):
        workers = episode.user_data["n"] = episode.user_data.get("n", -1) + 1
        return {a: {"t": o, "n": workers % 9} if a == "boss" else o for a, o in agent_obs.items()}

    config = crowd(observation_fn=count, policies=spaces, evaluation_interval=2, evaluation_duration=2)
    same_after(config, tmp_path, policy_mapping_fn=kind)


def test_ids_by_possible_agents_also_in_copies(tmp_path):
    with poles(share, add_agent_id=True).build() as algo:
        algo.train()
        assert dict(algo.runner.env.spaces[0].observation.items).keys() == {"own", "sum", "agent_id"}
    copies = steppe.make_multi_agent("CartPole-v1")
    config = steppe.PPOConfig(env=copies, env_config={"num_agents": 3}, add_agent_id=True, **TINY)
    with config.build() as algo:
        algo.train()
        (pair,) = algo.runner.env.spaces
        assert str(dict(pair.observation.items)["agent_id"]).startswith("DiscreteSpec(n=3")
        action = algo.compute_single_action({"observation": np.zeros(4, np.float32), "agent_id": 2})
        path = algo.save(tmp_path / "c")
    policy = steppe.load_policy(path)
    assert policy.act({"observation": np.zeros(4, np.float32), "agent_id": 2}) == action

    with pytest.raises(steppe.ConfigError, match=r"set self\.possible_agents"):
        crowd(env=Crowd, add_agent_id=True).build()


class Secrets(steppe.MultiAgentEnv):
    """Each of two agents is paid for saying the bit that the other one sees."""

    possible_agents = ("a", "b")
    observation_space = action_space = Discrete(2)

    def __init__(self, env_config):
        self.rng = np.random.default_rng(0)

    def look(self):
        self.bits = self.rng.integers(2, size=2).tolist()
        return dict(zip("ab", self.bits, strict=True))

    def reset(self, *, seed=None, options=None):
        self.rng, self.t = np.random.default_rng(seed) if seed is not None else self.rng, 0
        return self.look(), {}

    def step(self, action_dict):
        a, b = self.bits
        rewards = {"a": float(action_dict["a"] == b), "b": float(action_dict["b"] == a)}
        self.t += 1
        return self.look(), rewards, {"__all__": self.t == 10}, {"__all__": False}, {}


def test_what_the_others_see_is_learned_from():
    """Of ten bits each, chance says five; with the other's bit in view nearly all."""

    def both(agent_obs):
        a, b = agent_obs["a"], agent_obs["b"]
        return {"a": np.array([a, b]), "b": np.array([b, a])}

    small = {
        **TINY,
        "train_batch_size": 400,
        "minibatch_size": 100,
        "num_epochs": 6,
        "lr": 1e-2,
        "gamma": 0.0,
    }
    config = steppe.PPOConfig(
        env=Secrets, observation_fn=both, observation_space=Box(0, 1, (2,), np.int64), **small
    )
    with config.build() as algo:
        for _ in range(8):
            result = algo.train()
    assert result["episode_reward_mean"] > 17


def test_groups_are_observed_as_groups():
    def last(agent_obs):
        (bits,) = agent_obs.values()
        return {"team": {"bits": np.array(bits)}}

    space = Dict({"bits": Box(0, 1, (2,), np.int64)})
    config = steppe.PPOConfig(
        env=lambda ctx: Secrets(ctx).with_agent_groups({"team": ["a", "b"]}),
        **{**TINY, "observation_fn": last, "observation_space": space, "add_agent_id": True},
    )
    with config.build() as algo:
        assert 0 <= algo.train()["episode_reward_mean"] <= 20
        (pair,) = algo.runner.env.spaces
    assert [name for name, _ in pair.observation.items] == ["agent_id", "bits"]


def test_pettingzoo_copies_and_low_level_envs_are_observed_alike(tmp_path):
    def mean(agent_obs, episode):
        memory = episode.user_data["mean"] = np.mean(list(agent_obs.values()), axis=0, dtype=np.float32)
        return {agent: np.concatenate([own, memory]) for agent, own in agent_obs.items()}

    def spread(config):
        from mpe2 import simple_spread_v3

        return steppe.ParallelPettingZooEnv(simple_spread_v3.parallel_env(max_cycles=7))

    copies = steppe.make_multi_agent("CartPole-v1")
    for env, size in ((spread, 18), (copies, 4), (lambda ctx: steppe.to_base_env(copies, 2), 4)):
        space = Box(-np.inf, np.inf, (2 * size,), np.float32)
        config = steppe.PPOConfig(env=env, observation_fn=mean, observation_space=space, **TINY)
        if env is spread:
            same_after(config, tmp_path, iterations=1)
        with config.build() as algo:
            result = algo.train()
        assert result["timesteps_this_iter"] >= 40
        assert result["env_health"] == {}


def test_old_dicts_name_the_function_too():
    config = steppe.PPOConfig.from_dict(
        {"env": Poles, "multiagent": {"observation_fn": share}, "observation_space": SHARED, **TINY}
    )
    assert config.observation_fn is share
    assert config.code_fields() == ["env", "observation_fn"]
    with pytest.raises(steppe.ConfigError, match="observation_fn=3 must be a function"):
        config.multi_agent(observation_fn=3)


def test_a_function_is_asked_for_again_where_a_checkpoint_is_loaded(tmp_path):
    with poles().build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(steppe.SteppeError, match="observation_fn"):
        steppe.load(path, env=Poles)
