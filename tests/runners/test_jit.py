"""The compiled runner yields what the sampler's contract says: one row per observation, each counted once."""

import subprocess
import sys
from itertools import pairwise
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steppe
from steppe.jaxenvs import CartPole, Catch, JaxEnv, Pendulum
from steppe.runners.jit import JitRunner

TINY = {"fcnet_hiddens": [8], "write_run": False, "seed": 0, "num_epochs": 1}


class StairState(NamedTuple):
    place: jax.Array
    t: jax.Array
    length: jax.Array


class Stairs(JaxEnv):
    """Go up or down for as many steps as is drawn; odd numbers terminate, even ones truncate."""

    def __init__(self, longest=5):
        self.default_params = longest
        self.observation_space = gymnasium.spaces.Box(-100, 100, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2, start=1)

    def reset_env(self, key, longest):
        first, second = jax.random.split(key)
        place = jax.random.randint(first, (), 0, 10)
        length = jax.random.randint(second, (), 1, longest + 1)
        return jnp.stack([place, 0]), StairState(place, 0, length)

    def step_env(self, key, state, action, longest):
        place, t = state.place + 2 * action - 3, state.t + 1
        over, odd = t >= state.length, state.length % 2 == 1
        reward = 10.0 * t + place
        obs = jnp.stack([place, t])
        return obs, StairState(place, t, state.length), reward, over & odd, over & ~odd, {}


def runner_of(config):
    """A runner that acts with fresh weights, and the algorithm that it belongs to."""
    algo = config.build()
    assert isinstance(algo.runner, JitRunner)
    return algo


def fragments(algo, n):
    found = [algo.runner.sample()[0] for _ in range(n)]
    return found, [sample.rollouts[0] for sample in found]


def stairs(envs=3, length=7, **settings):
    return steppe.PPOConfig(
        env=Stairs, num_envs_per_env_runner=envs, rollout_fragment_length=length, **TINY, **settings
    )


@pytest.fixture(scope="module")
def walked():
    with runner_of(stairs()) as algo:
        return fragments(algo, 6)


def naive(rollouts, lane):
    """The rows of a lane, one after the other, those that a fragment repeats once."""
    rows = []
    for n, rollout in enumerate(rollouts):
        if n > 0 and rollouts[n - 1].lane_continues[lane]:
            del rows[-1]  # is repeated, with what was chosen at it
        names = ("obs", "reward", "terminated", "truncated", "episode", "t", "action")
        rows += [{n: getattr(rollout, n)[i, lane] for n in names} for i in range(len(rollout.reward))]
    return rows


def test_each_row_follows_from_the_row_above(walked):
    _, rollouts = walked
    for lane in range(3):
        rows = naive(rollouts, lane)
        assert (rows[0]["t"], rows[0]["episode"], rows[0]["reward"]) == (0, 0, 0.0)
        for above, row in pairwise(rows):
            if above["terminated"] or above["truncated"]:
                assert (row["t"], row["episode"], row["reward"]) == (0, above["episode"] + 1, 0.0)
                assert not row["terminated"]
                assert not row["truncated"]
                assert 0 <= row["obs"][0] < 10
                assert above["action"] == 0
            else:
                place = above["obs"][0] + 2 * above["action"] - 1  # the policy counts from 0
                assert (row["t"], row["episode"]) == (above["t"] + 1, above["episode"])
                np.testing.assert_array_equal(row["obs"], [place, row["t"]])
                assert row["reward"] == 10 * row["t"] + place
                if row["terminated"] or row["truncated"]:
                    assert row["terminated"] == row["t"] % 2


def test_fragments_join_without_holes(walked):
    _, rollouts = walked
    for before, after in pairwise(rollouts):
        final = (before.terminated | before.truncated)[-1]
        np.testing.assert_array_equal(before.lane_continues, ~final)
        for name in ("obs", "reward", "t", "episode"):
            closing, opening = getattr(before, name)[-1], getattr(after, name)[0]
            np.testing.assert_array_equal(closing[~final], opening[~final])
        assert (after.t[0][final] == 0).all()
        assert (after.episode[0][final] == before.episode[-1][final] + 1).all()
        assert after.sequence == before.sequence + 1
    assert any(not rollout.lane_continues.all() for rollout in rollouts)
    assert any(rollout.lane_continues.any() for rollout in rollouts)


def test_env_steps_are_counted_truly(walked):
    samples, rollouts = walked
    for sample, rollout in zip(samples, rollouts, strict=True):
        assert sample.env_steps == sample.agent_steps == rollout.env_steps == rollout.acted.sum()
        assert 21 <= sample.env_steps <= 23  # no further than the iteration that reached them
        assert sample.reward == pytest.approx(rollout.reward[1:].sum())
        assert not rollout.logp[~rollout.acted].any()
        assert (rollout.logp[rollout.acted] < 0).all()


def test_episodes_are_told_once(walked):
    samples, rollouts = walked
    told = [e for sample in samples for e in sample.episodes]
    wanted = set()
    for lane in range(3):
        rows, earned = naive(rollouts, lane), 0.0
        for row in rows:
            earned = row["reward"] + (0.0 if row["t"] == 0 else earned)
            if row["terminated"] or row["truncated"]:
                wanted.add((lane, int(row["episode"]), int(row["t"]), float(earned)))
    assert {(e.env, e.episode, e.length, e.reward) for e in told} == wanted
    assert len(told) == len(wanted) > 20
    assert all(e.policy_rewards == {"default_policy": [e.reward]} for e in told)


def test_what_is_recorded_is_what_the_policy_chooses():
    with runner_of(stairs(explore=False)) as algo:
        _, (rollout,) = fragments(algo, 1)
        policy, weights = algo.get_policy(), algo.runner.weights_of("default_policy")
        acted = rollout.acted
        decision = policy.act(weights, rollout.obs[acted], None, None)
    np.testing.assert_array_equal(rollout.action[acted], decision.action)
    np.testing.assert_allclose(rollout.logp[acted], decision.logp, atol=1e-6)


def test_a_limit_of_the_run_truncates():
    config = steppe.PPOConfig(
        env=CartPole, max_episode_steps=4, num_envs_per_env_runner=2, rollout_fragment_length=10, **TINY
    )
    with runner_of(config) as algo:
        (sample,), (rollout,) = fragments(algo, 1)
    assert {e.length for e in sample.episodes} == {4}
    assert rollout.truncated.sum() == len(sample.episodes) == 4
    assert not rollout.terminated.any()


def cart_poles(seed=0, **settings):
    few = {"num_envs_per_env_runner": 8, "train_batch_size": 400, "write_run": False, "fcnet_hiddens": [8]}
    return steppe.PPOConfig(**{"env": CartPole, "seed": seed, **few, **settings})


def told(result):
    return {name: result[name] for name in ("episode_reward_mean", "timesteps_total", "info")}


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        with cart_poles(seed).build() as algo:
            return told([algo.train() for _ in range(3)][-1])

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_a_run_goes_on_exactly_from_a_checkpoint():
    with cart_poles().build() as algo:
        for _ in range(2):
            algo.train()
        path = algo.save("c")
        wanted = [told(algo.train()) for _ in range(2)]
    with steppe.load(path, env=CartPole) as algo:
        assert [told(algo.train()) for _ in range(2)] == wanted


def test_ppo_learns_from_it():
    with cart_poles(fcnet_hiddens=[32], train_batch_size=2_000).build() as algo:
        for _ in range(12):
            result = algo.train()
        assert result["episode_reward_mean"] > 80  # chance makes 22
        assert algo.evaluate(3)["episode_reward_mean"] > 150


def test_dqn_remembers_every_row_once():
    config = steppe.DQNConfig(
        env=Stairs,
        num_envs_per_env_runner=4,
        rollout_fragment_length=5,
        train_batch_size=16,
        n_step=1,
        num_steps_sampled_before_learning_starts=40,
        min_sample_timesteps_per_iteration=200,
        **{name: TINY[name] for name in ("fcnet_hiddens", "write_run", "seed")},
    )
    with runner_of(config) as algo:
        result = algo.train()
    stats = result["info"]["default_policy"]
    assert 200 <= result["timesteps_total"] < 220
    assert stats["replay_rows"] == result["timesteps_total"]  # each acted row has its outcome
    assert stats["updates"] > 5


def test_a2c_and_numbers_as_actions_go_the_same_way():
    few = {"train_batch_size": 64, "min_sample_timesteps_per_iteration": 100, "num_envs_per_env_runner": 4}
    config = steppe.A2CConfig(env=Pendulum, **few, write_run=False, fcnet_hiddens=[8], seed=0)
    with runner_of(config) as algo:
        result = algo.train()
        _, (rollout,) = fragments(algo, 1)
    assert result["timesteps_total"] == 128
    assert rollout.action.shape[2:] == (1,)
    assert np.isfinite(result["info"]["default_policy"]["total_loss"])


def test_images_stay_bytes():
    config = steppe.PPOConfig(
        env=Catch,
        env_config={"squares": 4, "pixels": 3},
        num_envs_per_env_runner=2,
        rollout_fragment_length=6,
        **TINY,
    )
    with runner_of(config) as algo:
        _, (rollout,) = fragments(algo, 1)
    assert (rollout.obs.dtype, rollout.obs.shape[2:]) == (np.uint8, (12, 12, 1))
    assert set(np.unique(rollout.obs)) == {0, 128, 255}


class Masked(Stairs):
    """Up alone is legal on even steps, which the mask says."""

    def __init__(self):
        super().__init__()
        seen = {"observation": self.observation_space, "action_mask": gymnasium.spaces.MultiBinary(2)}
        self.observation_space = gymnasium.spaces.Dict(seen)

    def seen(self, obs):
        return {"observation": obs, "action_mask": jnp.stack([obs[1] % 2, 1])}

    def reset_env(self, key, longest):
        obs, state = super().reset_env(key, longest)
        return self.seen(obs), state

    def step_env(self, key, state, action, longest):
        obs, *rest = super().step_env(key, state, action, longest)
        return self.seen(obs), *rest


def test_masks_hold():
    with runner_of(stairs().copy(env=Masked)) as algo:
        _, (rollout,) = fragments(algo, 1)
    even = (rollout.t % 2 == 0) & rollout.acted
    assert (rollout.action[even] == 1).all()
    assert (rollout.action[~even & rollout.acted] == 0).any()


class Nested(Stairs):
    """Observes a Dict in a Dict, and is told a choice and a number: it rewards what it was told."""

    def __init__(self):
        super().__init__()
        spaces, box = gymnasium.spaces, gymnasium.spaces.Box
        inner = spaces.Dict({"t": spaces.Discrete(9), "place": box(-100, 100, (1,))})
        self.observation_space = spaces.Dict({"inner": inner, "bits": spaces.MultiBinary(2)})
        self.action_space = spaces.Tuple((spaces.Discrete(2, start=1), box(-2, 2, (1,))))

    def seen(self, obs):
        place, t = obs
        inner = {"t": t, "place": place[None] * 1.0}
        return {"inner": inner, "bits": jnp.stack([t % 2, place % 2])}

    def reset_env(self, key, longest):
        obs, state = super().reset_env(key, longest)
        return self.seen(obs), state

    def step_env(self, key, state, action, longest):
        choice, number = action
        obs, state, _, *ends = super().step_env(key, state, choice, longest)
        return self.seen(obs), state, choice + number[0], *ends


@pytest.mark.parametrize("autoregressive", [False, True])
def test_nested_observations_and_actions(autoregressive):
    config = stairs().copy(env=Nested, autoregressive_actions=autoregressive, max_episode_steps=4)
    with runner_of(config) as algo:
        _, (rollout,) = fragments(algo, 1)
        assert algo.train()["timesteps_total"] > 0
    choice, number = rollout.action
    wanted = choice + 1 + np.clip(number[..., 0] * 2, -2, 2)  # in policy units [-1, 1] is the whole Box
    acted = rollout.acted[:-1]
    np.testing.assert_allclose(rollout.reward[1:][acted], wanted[:-1][acted], rtol=1e-6)
    np.testing.assert_array_equal(rollout.obs["inner"]["t"], rollout.t)
    np.testing.assert_array_equal(rollout.obs["bits"][..., 1], rollout.obs["inner"]["place"][..., 0] % 2)


def test_what_the_critic_alone_sees_is_refused():
    with pytest.raises(steppe.ConfigError, match="Nested: compiled rollouts do not know critic_only"):
        stairs().copy(env=Nested, critic_only=["bits"]).build()


def test_the_env_stands_for_its_copies():
    pole = CartPole(max_steps=3)
    with cart_poles(env=pole).build() as algo:
        assert algo.foreach_env(lambda env: env) == [pole]
        assert algo.train()["episode_len_mean"] == 3.0
        assert algo.evaluate(2)["episode_len_mean"] == 3.0
        assert algo.compute_single_action(np.zeros(4, np.float32)) in (0, 1)


class Breaks(Stairs):
    """Its place, or its reward, is no number any more at step 3 of each episode of 5 steps."""

    def __init__(self, what="obs"):
        super().__init__()
        self.what = what

    def step_env(self, key, state, action, longest):
        obs, state, reward, *_ = super().step_env(key, state._replace(length=5), action, longest)
        broken = jnp.where(state.t == 3, jnp.nan, 0.0)
        obs, reward = (obs + broken, reward) if self.what == "obs" else (obs * 1.0, reward + broken)
        return obs, state, reward, state.t == 5, False, {}

    def reset_env(self, key, longest):
        obs, state = super().reset_env(key, longest)
        return obs * 1.0, state


@pytest.mark.parametrize(("what", "code"), [("obs", "E104"), ("reward", "E201")])
def test_numbers_that_are_none_are_said_with_their_place(what, code):
    config = steppe.PPOConfig(env=Breaks, env_config={"what": what}, num_envs_per_env_runner=2, **TINY)
    with runner_of(config) as algo, pytest.raises(steppe.EnvError, match=f"{what} is NaN") as caught:
        algo.train()
    error = caught.value
    assert (error.code, error.env_class, error.env, error.episode, error.step) == (code, "Breaks", 0, 0, 3)


class Watcher(steppe.Callbacks):
    def on_episode_end(self, episode):
        raise AssertionError


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"callbacks_class": Watcher}, "the hook on_episode_end"),
        ({"batch_mode": "complete_episodes"}, "batch_mode='complete_episodes'"),
        ({"evaluation_envs": "shared"}, "evaluation_envs='shared'"),
        ({"memory": "lstm"}, "a RecurrentPolicy"),
        ({"framestack": 2}, "a FramesPolicy"),
        ({"num_env_runners": 2}, "num_env_runners"),
        ({"num_env_runners": 2, "local_mode": True, "env": CartPole()}, "num_env_runners"),
        ({"num_env_runners": 2, "env": "steppe.jaxenvs:CartPole"}, "num_env_runners"),
        ({"remote_worker_envs": True}, "remote_worker_envs"),
        ({"on_env_error": "restart"}, "on_env_error='restart'"),
        ({"policy_mapping_fn": lambda agent_id: "default_policy"}, "policy_mapping_fn"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_single_steps_is_refused(settings, said):
    with pytest.raises(steppe.ConfigError, match=f"do not know {said}.*env=lambda env_config: Cart"):
        cart_poles(**settings).build()


def test_es_is_refused_by_name():
    with pytest.raises(
        steppe.ConfigError, match="CartPole: compiled rollouts do not know ES; leave it out, or"
    ):
        steppe.ESConfig(env=CartPole, write_run=False).build()


def test_runners_step_copies_one_by_one_if_a_function_makes_the_env():
    def poles(env_config):
        return CartPole(**env_config)

    several = {"num_env_runners": 2, "local_mode": True, "env_config": {"max_steps": 3}}
    with cart_poles(env=poles, **several).build() as algo:
        result = algo.train()
    assert (result["timesteps_total"], result["episode_len_mean"]) == (400, 3.0)


def test_a_refusal_names_a_way_that_goes():
    settings = {"callbacks_class": Watcher, "train_batch_size": 8, "num_envs_per_env_runner": 1}
    config = cart_poles(env=lambda env_config: CartPole(), **settings)
    with config.build() as algo:
        assert algo.train()["timesteps_total"] == 8


def test_policies_cannot_join_or_leave():
    with cart_poles().build() as algo:
        with pytest.raises(steppe.ConfigError, match="do not know policies that join"):
            algo.add_policy("past", like="default_policy")
        with pytest.raises(steppe.ConfigError, match="the last policy"):
            algo.remove_policy("default_policy")
        assert list(algo.get_weights()) == ["default_policy"]


def test_a_name_is_compiled_though_nobody_imported_it(tmp_path):
    program = """
import steppe
few = {"train_batch_size": 8, "num_envs_per_env_runner": 2, "fcnet_hiddens": [4], "write_run": False}
with steppe.PPOConfig(env="steppe.jaxenvs:CartPole", **few).build() as algo:
    print(type(algo.runner).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "JitRunner\n"


def test_sac_learns_from_it_and_added_noise_is_refused():
    few = {
        "num_steps_sampled_before_learning_starts": 50,
        "min_sample_timesteps_per_iteration": 100,
        "train_batch_size": 16,
        "num_envs_per_env_runner": 4,
        **{name: TINY[name] for name in ("fcnet_hiddens", "write_run", "seed")},
    }
    with runner_of(steppe.SACConfig(env=Pendulum, **few)) as algo:
        algo.train()
        assert algo.train()["info"]["default_policy"]["updates"] > 5
        assert np.abs(algo.runner.sample()[0].rollouts[0].obs[..., 2]).max() <= 8.0
    with pytest.raises(steppe.ConfigError, match=r"a NoisyPolicy \(.*added noise"):
        steppe.SACConfig(env=Pendulum, exploration_noise=0.1, **few).build()
