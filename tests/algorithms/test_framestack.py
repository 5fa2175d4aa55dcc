"""Framestack in whole runs: what a policy acts on is what it learns from, and a run goes on exactly."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe.errors import ConfigError
from steppe.learning.frames import along_lanes
from steppe.models.framestack import framed
from steppe.spaces import spec_of
from steppe.types import SpacePair
from tests.states import diff, state_hash

OFF_POLICY = {
    "num_envs_per_env_runner": 3,
    "train_batch_size": 16,
    "fcnet_hiddens": [16],
    "min_sample_timesteps_per_iteration": 60,
    "num_steps_sampled_before_learning_starts": 32,
    "replay_buffer_capacity": 200,
    "write_run": False,
    "seed": 0,
    "framestack": 3,
}


class Clock(gymnasium.Env):
    """Shows the name of its episode and the number of its row; episodes are of 1 to 7 steps."""

    def __init__(self, env_config):
        self.observation_space = spaces.Box(-1e4, 1e4, (2,), np.float32)
        self.action_space = spaces.Discrete(2) if env_config.get("discrete") else spaces.Box(-1, 1, (1,))

    def row(self):
        return np.float32([self.name, self.t])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.name, self.length = 0, *self.np_random.integers([1, 1], [9999, 8])
        return self.row(), {}

    def step(self, action):
        self.t += 1
        return self.row(), 1.0, bool(self.t == self.length), False, {}


def config(name, **changes):
    own = {**OFF_POLICY, **changes}
    own.setdefault("env_config", {"discrete": name == "DQN"})
    return getattr(steppe, f"{name}Config")(env=Clock, **own)


def stack_at(obs, count=3):
    """What is to be seen of a row that shows its name and its time."""
    name, t = obs
    return tuple(float(x) for back in range(count - 1, -1, -1) for x in (name, max(t - back, 0)))


def spied(policy, shown):
    """Note what the policy inside of the frames is shown."""
    inner, act = policy._policy, policy._policy.act

    def noting(weights, obs, state, noise):
        shown.extend(tuple(row) for row in obs.tolist())
        return act(weights, obs, state, noise)

    inner.act = noting


@pytest.mark.parametrize("name", ["DQN", "SAC", "TD3"])
def test_what_is_acted_on_is_what_is_learned_from(name):
    shown, batches = [], []
    with config(name).build() as algo:
        learner = algo._learner.learners["default_policy"]
        spied(learner.policy, shown)
        for _ in range(5):  # more rows than the replay holds
            algo.train()
            batches.append(learner._replay.sample(np.random.default_rng(0), 4, 50))
        frames = learner._method.frames
    assert set(shown) == {stack_at(row[-2:]) for row in shown}
    for batch in batches:
        seen, after = (frames.joined(batch[key], 2).reshape(-1, 6) for key in ("obs", "next_obs"))
        assert {tuple(row) for row in seen.tolist()} <= set(shown)
        for row in after.tolist():  # final ones are not acted on
            assert tuple(row) == stack_at(row[-2:])


ON_POLICY = {
    "num_envs_per_env_runner": 3,
    "train_batch_size": 60,
    "rollout_fragment_length": 7,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
    "framestack": 3,
}


def on_policy(name="PPO", **changes):
    return getattr(steppe, f"{name}Config")(env=Clock, env_config={}, **{**ON_POLICY, **changes})


@pytest.mark.parametrize("changes", [{}, {"memory": "gru", "max_seq_len": 4, "prev_reward": True}])
def test_on_policy_each_row_is_learned_from_as_it_was_acted_on(changes):
    """Ragged lanes, several fragments a batch, batches that go on: the stack is that of the env's rows."""
    shown, learned = [], []
    with on_policy(**changes).build() as algo:
        learner = algo._learner.learners["default_policy"]
        spied(learner.policy, shown)
        rows = learner._rows

        def noting(state, batch, continues, hyper):
            final = batch["terminated"] | batch["truncated"]
            acted = batch["filled"][:-1] & batch["filled"][1:] & ~final[:-1]
            seen = np.asarray(along_lanes(learner.static.frames, batch))
            learned.extend(tuple(row) for row in seen[:-1][acted].tolist())
            for row in seen[batch["filled"]].tolist():  # also those that bootstrap
                assert tuple(row) == stack_at(row[-2:])
            return rows(state, batch, continues, hyper)

        learner._rows = noting
        for _ in range(3):
            algo.train()
    assert len(learned) == len(set(learned)) > 150
    assert set(learned) <= set(shown)
    assert len(set(shown) - set(learned)) <= 3  # those whose outcome the next fragment has


@given(
    depth=st.integers(2, 4),
    rows=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_stacks_along_lanes_are_those_of_a_loop(depth, rows, seed):
    rng, lanes = np.random.default_rng(seed), 3
    frames, _ = framed(SpacePair(spec_of(spaces.Box(-99, 99, (2,), np.float32)), None), depth)
    obs = rng.normal(size=(rows, lanes, 2)).astype(np.float32)
    ends = rng.choice(3, size=(rows, lanes), p=[0.6, 0.2, 0.2])
    past = rng.normal(size=(lanes, depth - 1, 2)).astype(np.float32)
    state0 = {"frames": (past,), "seen": rng.integers(0, 2, lanes).astype(np.int8)}
    batch = {"obs": obs, "terminated": ends == 1, "truncated": ends == 2, "state0": state0}
    found = along_lanes(frames, batch)
    for lane in range(lanes):
        kept = [*past[lane]] if state0["seen"][lane] else [obs[0, lane]] * (depth - 1)
        for row in range(rows):
            if row and ends[row - 1, lane]:
                kept = [obs[row, lane]] * (depth - 1)
            kept.append(obs[row, lane])
            assert np.array_equal(found[row, lane], np.concatenate(kept[-depth:]))


def goes_on_exactly(config, path):
    with config.build() as algo:
        algo.train()
        algo.save(path)
        algo.train()
        wanted = algo.get_state()
        with steppe.load(path, env=Clock) as again:
            again.train()
            found = again.get_state()
    assert state_hash(wanted) == state_hash(found), diff(wanted, found)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("PPO", {"memory": "lstm", "max_seq_len": 5, "prev_action": True}),
        ("IMPALA", {}),
        ("PPO", {"train_batch_size": 50}),  # a fragment waits when it is saved
    ],
)
def test_on_policy_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, name, changes):
    goes_on_exactly(on_policy(name, **changes), tmp_path / "c")


def test_leaves_for_the_critic_alone_are_not_stacked():
    class Two(Clock):
        def __init__(self, env_config):
            super().__init__(env_config)
            box = self.observation_space
            self.observation_space = spaces.Dict({"seen": box, "state": box})

        def row(self):
            row = np.float32([self.name, self.t])
            return {"seen": row, "state": -row}

    with on_policy(critic_only=["state"]).copy(env=Two).build() as algo:
        algo.train()
        learner = algo._learner.learners["default_policy"]
        shapes = {key: part.shape for key, part in learner.static.observation.items}
        assert shapes == {"seen": (6,), "state": (2,)}
        action, state = algo.compute_single_action({"seen": np.float32([1, 0])}, {})
        assert action.shape == (1,)
        assert [leaf.tolist() for leaf in state["frames"]] == [[[1, 0], [1, 0]]]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DQN", {"prioritized_replay": True, "observation_filter": "MeanStdFilter"}),
        ("SAC", {"exploration_noise": 0.1, "exploration_noise_correlation": 0.5}),
        ("TD3", {"exploration_noise_correlation": 0.5, "observation_filter": "MeanStdFilter"}),
    ],
)
def test_a_run_goes_on_exactly_from_its_checkpoint(tmp_path, name, changes):
    goes_on_exactly(config(name, **changes), tmp_path / "c")


def test_images_are_stacked_by_channels_and_learned_from():
    class Still(Clock):
        def __init__(self, env_config):
            super().__init__(env_config)
            self.observation_space = spaces.Box(0, 255, (16, 16), np.uint8)

        def row(self):
            return np.full((16, 16), self.t, np.uint8)

    own = config("DQN", framestack=2, conv_filters=[[4, 4, 4]], train_batch_size=4)
    with own.copy(env=Still).build() as algo:
        result = algo.train()
        learner = algo._learner.learners["default_policy"]
        assert learner._method.observation.shape == (16, 16, 2)
        assert learner._replay._obs.shape == (200, 16, 16)
    assert result["info"]["default_policy"]["updates"] > 0


@pytest.mark.parametrize("made", [config("DQN"), on_policy()], ids=["DQN", "PPO"])
def test_the_critic_does_not_judge_single_observations(made):
    with made.build() as algo:
        learner = algo._learner.learners["default_policy"]
        with pytest.raises(ConfigError, match="single ones are not enough"):
            learner.values(np.zeros((1, 2), np.float32))


def test_a_space_without_boxes_is_refused_when_it_is_built():
    with pytest.raises(ConfigError, match="framestack=3 stacks Boxes"):
        config("DQN", env_config={}).copy(env="FrozenLake-v1").build()
