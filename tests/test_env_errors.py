"""Runs whose envs fail: the same seed gives the same run, learners and hooks know what was lost."""

import gymnasium
import numpy as np
import pytest

import steppe
from tests.states import diff

SMALL = {"num_envs_per_env_runner": 3, "fcnet_hiddens": [8], "seed": 3, "write_run": False}


class FlakyError(Exception):
    """What a simulator raises now and then."""


class Flaky(gymnasium.Env):
    """Twelve steps an episode, of which one in thirty raises, by the env's own generator."""

    def __init__(self, env_config):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.share = env_config.get("share", 1 / 30)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def look(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def step(self, action):
        self.t += 1
        if self.np_random.random() < self.share:
            raise FlakyError(f"at {self.t}")
        return self.look(), float(action), self.t == 12, False, {}


class FlakyTeam(steppe.MultiAgentEnv):
    """Two agents of one Flaky."""

    def __init__(self, env_config):
        self.inner = Flaky(env_config)
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        self.possible_agents = ["a", "b"]
        self.np_random = None

    def reset(self, *, seed=None, options=None):
        obs, _ = self.inner.reset(seed=seed)
        return {"a": obs, "b": obs}, {}

    def step(self, actions):
        obs, reward, over, _, _ = self.inner.step(actions["a"])
        told = [dict.fromkeys("ab", value) for value in (obs, reward)]
        return *told, {"__all__": over}, {"__all__": False}, {}


def ppo(**changes):
    batch = {"train_batch_size": 60, "minibatch_size": 30, "num_epochs": 2}
    return steppe.PPOConfig(**{"env": Flaky, "on_env_error": "restart", **SMALL, **batch, **changes})


def dqn(**changes):
    replay = {"train_batch_size": 16, "num_steps_sampled_before_learning_starts": 30}
    own = {"env": Flaky, "on_env_error": "restart", **SMALL, **replay, "rollout_fragment_length": 7}
    return steppe.DQNConfig(**{**own, "min_sample_timesteps_per_iteration": 60, **changes})


def train(algo, iterations):
    return [algo.train() for _ in range(iterations)]


RUNS = [
    lambda: ppo(memory="lstm", memory_size=4, max_seq_len=5, rollout_fragment_length=7),
    lambda: ppo(env=FlakyTeam),
    lambda: ppo(num_env_runners=2, local_mode=True),
    dqn,
    lambda: dqn(memory="lstm", memory_size=4, max_seq_len=5),
]
NAMES = ["PPO, LSTM", "PPO, agents", "PPO, runners", "DQN", "DQN, LSTM"]


@pytest.mark.parametrize("config", RUNS, ids=NAMES)
def test_a_run_goes_on_exactly_with_restarts_behind_it(config, tmp_path):
    with config().build() as algo:
        assert train(algo, 3)[-1]["env_health"]["E503 FlakyError"] > 1
        path = algo.save(tmp_path / "c")
        results = train(algo, 3)
        expected = algo.get_state()
    assert results[-1]["env_health"]["E503 FlakyError"] > results[0]["env_health"]["E503 FlakyError"]
    code = config()
    with steppe.load(path, env=code.env) as algo:
        again = train(algo, 3)
        for owner, state in algo.get_state().items():
            assert diff(expected[owner], state) == []
    for one, two in zip(results, again, strict=True):
        assert one["discarded"] == two["discarded"]
        assert one["executed"] == one["trained"] + sum(one["discarded"].values()) + one["in_flight"]
        assert 0 < one["discarded"]["env_error"] < one["timesteps_total"]


class Diary(steppe.Callbacks):
    """Counts, and refuses to be told of an episode that was lost."""

    def __init__(self):
        self.begun, self.ended, self.created = 0, 0, 0

    def on_sub_environment_created(self, *, env_context):
        self.created += 1

    def on_episode_start(self, *, episode):
        assert episode.length == 0
        self.begun += 1

    def on_episode_step(self, *, episode):
        episode.user_data["steps"] = episode.user_data.get("steps", 0) + 1
        assert episode.user_data["steps"] == episode.length

    def on_episode_end(self, *, episode):
        assert episode.length == 12
        self.ended += 1


def test_hooks_are_told_of_whole_episodes_and_of_new_envs():
    diary = Diary()
    with ppo(callbacks_class=diary).build() as algo:
        result = train(algo, 4)[-1]
    restarts = result["env_health"]["E503 FlakyError"]
    assert diary.created == 3 + restarts
    assert diary.ended == result["episodes_total"]
    assert diary.begun == diary.ended + restarts + 3  # those that were lost, and those that are open
    assert result["episode_len_mean"] == 12


def test_evaluations_play_as_many_episodes_as_were_asked_for():
    with ppo().build() as algo:
        algo.train()
        found = algo.evaluate(num_episodes=20)
    assert found["episodes_this_iter"] == 20
    assert found["env_health"]["E503 FlakyError"] > 0


def test_without_it_the_run_ends_with_the_users_own_error():
    with ppo(on_env_error="raise").build() as algo, pytest.raises(FlakyError, match="at "):
        train(algo, 9)


def test_a_limit_ends_the_run_with_the_users_own_error():
    with ppo(max_env_restarts=1).build() as algo, pytest.raises(FlakyError) as raised:
        train(algo, 30)
    assert any("max_env_restarts is 1" in note for note in raised.value.__notes__)


def test_where_nothing_fails_it_is_the_same_run():
    def played(how):
        with ppo(on_env_error=how, env_config={"share": 0.0}).build() as algo:
            result = algo.train()
            return {key: result[key] for key in ("episode_reward_mean", "info", "timesteps_total")}

    assert played("restart") == played("raise")


class Unsaid(FlakyTeam):
    """Says no spaces: those of the policies are its agents'."""

    def __init__(self, env_config):
        super().__init__(env_config)
        del self.observation_space, self.action_space


def chosen(agent_id, episode):
    return f"p{(episode.env_index + episode.number) % 2}"


class Checks(steppe.Callbacks):
    def on_episode_end(self, *, episode):
        which = f"p{(episode.env_index + episode.number) % 2}"
        assert [episode.policy_for(agent) for agent in "ab"] == [which] * 2


def test_the_mapping_is_asked_for_the_episodes_that_there_are():
    inner = Flaky({})
    spec = steppe.PolicySpec(observation_space=inner.observation_space, action_space=inner.action_space)
    policies = {"p0": spec, "p1": spec}
    config = ppo(env=Unsaid, policies=policies, policy_mapping_fn=chosen, callbacks_class=Checks)
    with config.build() as algo:
        result = train(algo, 2)[-1]
    assert result["env_health"]["E503 FlakyError"] > 0
    assert result["episodes_total"] > 3
