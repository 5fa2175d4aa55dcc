"""What each algorithm can do: every "yes" of docs/features.toml trains a moment, every "no" names who can."""

from __future__ import annotations

import copy
import functools
import re

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from docs.generate import features
from steppe.algorithms import ALGORITHMS, config_class
from steppe.errors import ConfigError, SpaceError
from tests.states import diff, state_hash

ONE = "default_policy"
TABLE = features()
JOINT = ("QMIX", "VDN")
FROM_A_REPLAY = ("DQN", "SAC", "TD3", *JOINT)
SHARED = {"num_envs_per_env_runner": 2, "fcnet_hiddens": [8], "seed": 0, "write_run": False}
ON_POLICY = {"train_batch_size": 16, "min_sample_timesteps_per_iteration": 0}
REPLAY = {
    "train_batch_size": 4,
    "rollout_fragment_length": 4,
    "num_steps_sampled_before_learning_starts": 8,
    "min_sample_timesteps_per_iteration": 16,
    "replay_buffer_capacity": 64,
}
OWN = {
    "PPO": {"num_epochs": 1, "minibatch_size": 16},
    "APPO": {"num_epochs": 1, "minibatch_size": 16},
    "QMIX": {"mixing_embed_dim": 4},
    "ES": {"episodes_per_batch": 4, "num_envs_per_env_runner": 4},
}

NEAR = spaces.Box(-1.0, 1.0, (2,), np.float32)
REACH = spaces.Box(-2.0, 3.0, (2,), np.float32)
EVERY = spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([REACH, spaces.MultiDiscrete([2, 3])]))
BOXES = spaces.Dict(a=REACH, b=spaces.Tuple([spaces.Box(0.0, 5.0, (), np.float32)]))
IMAGE = spaces.Box(0, 255, (12, 12, 1), np.uint8)
WIDE = {"x": NEAR, "image": IMAGE, "rest": spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])}
MASKED = spaces.Dict({**WIDE, "action_mask": spaces.MultiBinary(3)})
PARAMETRIC = spaces.Dict(x=NEAR, avail=spaces.Box(-1.0, 1.0, (3, 2), np.float32))
FEW = spaces.Discrete(3)
PLAIN = {"TD3": REACH, "SAC": REACH}
"""What an algorithm is at home in, if that is not FEW."""


class Tiny(gymnasium.Env):
    """Shows anything of its space for five steps, and pays by chance; what its mask forbids is an error."""

    def __init__(self, env_config):
        self.observation_space = copy.deepcopy(env_config["observation"])  # each env draws from its own
        self.action_space = env_config["action"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self._shown(), {}

    def _shown(self):
        self.obs = self.observation_space.sample()
        if isinstance(self.obs, dict) and "action_mask" in self.obs:
            self.obs["action_mask"][self.np_random.integers(3)] = 1
        return self.obs

    def step(self, action):
        assert self.action_space.contains(action)
        if isinstance(self.obs, dict) and "action_mask" in self.obs:
            assert self.obs["action_mask"][action], "illegal"
        self.t += 1
        return self._shown(), float(self.np_random.normal()), self.t >= 5, False, {}


class Others(steppe.BaseEnv):
    """An agent that acts by itself, but for its first observation; or a team of two that does."""

    num_envs = 1

    def __init__(self, env_config):
        self.observation_space, self.action_space = env_config["observation"], env_config["action"]
        self.t = 0

    def seed(self, seeds):
        self.observation_space.seed(seeds[0])
        self.action_space.seed(seeds[0])

    def poll(self):
        self.t += 1
        first, over = self.t % 6 == 1, self.t % 6 == 0
        taken = {} if first or over else {0: {"a": self.action_space.sample()}}
        ends, never = {0: {"__all__": over}}, {0: {"__all__": False}}
        return (
            {0: {"a": self.observation_space.sample()}},
            {} if first else {0: {"a": 1.0}},
            ends,
            never,
            {},
            taken,
        )

    def send_actions(self, action_dict):
        pass


def grouped(env_config):
    """Two copies as a team, of which each sees and does what one does."""
    pair = steppe.make_multi_agent(Tiny)({**env_config, "num_agents": 2})
    return pair.with_agent_groups({"team": [0, 1]})


def teams(env_config):
    """Two teams of one env."""
    four = steppe.make_multi_agent(Tiny)({**env_config, "num_agents": 4})
    return four.with_agent_groups({"team": [0, 1], "others": [2, 3]})


def place(algo, feature):
    """Observation and action space of a cell. Several cells are of one pair: compiling is what takes time."""
    if feature in ("continuous actions", "MultiDiscrete actions", "nested actions") and can(algo, feature):
        return NEAR, EVERY if can(algo, "MultiDiscrete actions") else BOXES if "nested" in feature else REACH
    if feature == "Discrete actions":
        return NEAR, FEW
    if feature in ("masked actions", "images", "nested observations"):
        return (MASKED, FEW) if can(algo, "masked actions") else (spaces.Dict(WIDE), PLAIN.get(algo, FEW))
    alone = {
        "continuous actions": (NEAR, REACH),
        "MultiDiscrete actions": (NEAR, spaces.MultiDiscrete([2, 3])),
        "nested actions": (NEAR, EVERY),
        "parametric actions": (PARAMETRIC, FEW),
    }
    return alone.get(feature, (NEAR, PLAIN.get(algo, FEW)))


def config(algo, feature):
    """The smallest run in which an algorithm needs a feature."""
    observation, action = place(algo, feature)
    if feature == "masked actions":
        observation, action = MASKED, FEW
    settings = {**SHARED, **(REPLAY if algo in FROM_A_REPLAY else ON_POLICY), **OWN.get(algo, {})}
    env = grouped if algo in JOINT else Tiny
    if feature == "many agents":
        env = teams if algo in JOINT else steppe.make_multi_agent(Tiny)
        first = "team" if algo in JOINT else 0
        settings["policies"] = ["one", "two"]
        settings["policy_mapping_fn"] = lambda agent_id: "one" if agent_id == first else "two"
    elif feature == "actions of others":
        env, settings["num_envs_per_env_runner"] = Others, 1
        if algo in JOINT:
            observation, action = spaces.Tuple([observation] * 2), spaces.Tuple([action] * 2)
    elif feature == "memory":
        settings |= {"memory": "gru", "memory_size": 4, "max_seq_len": 4}
    elif feature == "parametric actions":
        settings["action_embeddings"] = "avail"
    elif feature == "offline data":
        return config_class(algo).from_dict({"env": env, "input": "rows.json"})
    own = {"observation": observation, "action": action}
    return config_class(algo)(env=env, env_config=own, **settings)


def can(algo, feature):
    return TABLE[algo][feature] == "yes"


def cells(word):
    return [(algo, feature) for algo, row in TABLE.items() for feature, cell in row.items() if cell == word]


def test_the_table_has_a_row_an_algorithm_and_its_words():
    assert sorted(TABLE) == sorted(ALGORITHMS)
    assert {cell for row in TABLE.values() for cell in row.values()} == {"yes", "no", "planned"}


@functools.cache
def trained(algo, feature):
    """Two iterations: weights before and after by policy, statistics, what policies remember, an action.

    Cells that are of one run share it.
    """
    with config(algo, feature).build() as run:
        before = run.get_weights()
        for _ in range(2):
            stats = run.train()["info"]
        states = [np.abs(a).max() for a in jax.tree.leaves(run.runner.sampler._states[0])]
        chosen = None
        if feature not in ("many agents", "memory"):
            observation, action = place(algo, feature)
            if algo in JOINT:
                observation, action = spaces.Tuple([observation] * 2), spaces.Tuple([action] * 2)
            chosen = action.contains(run.compute_single_action(shown(observation)))
        return before, run.get_weights(), stats, states, chosen


def shown(space):
    """An observation in which all is legal."""
    obs = space.sample()
    for one in obs if isinstance(obs, tuple) else (obs,):
        if isinstance(one, dict) and "action_mask" in one:
            one["action_mask"][:] = 1
    return obs


def run_of(algo, feature):
    """The cell whose run shows this feature, too."""
    if can(algo, "MultiDiscrete actions") and feature in ("continuous actions", "MultiDiscrete actions"):
        return "nested actions"
    return "images" if feature in ("masked actions", "nested observations") else feature


@pytest.mark.parametrize(("algo", "feature"), [cell for cell in cells("yes") if cell[1] != "exact resume"])
def test_yes(algo, feature):
    assert place(algo, feature) == place(algo, run_of(algo, feature))
    before, after, stats, states, chosen = trained(algo, run_of(algo, feature))
    assert stats.keys() == before.keys() == after.keys()
    for id, own in stats.items():
        assert own.get("updates_skipped", 0.0) == 0.0
        assert all(map(np.isfinite, own.values())), own
        assert not np.array_equal(before[id], after[id])
        assert np.isfinite(after[id]).all()
    assert len(stats) == (2 if feature == "many agents" else 1)
    assert chosen in (None, True)
    if feature == "memory":
        assert max(states) > 0.0


@pytest.mark.parametrize("algo", [algo for algo, feature in cells("yes") if feature == "parametric actions"])
def test_one_network_serves_any_number_of_described_choices(algo):
    sizes = []
    for n in (3, 5):
        one = config(algo, "parametric actions")
        seen = spaces.Dict(x=NEAR, avail=spaces.Box(-1.0, 1.0, (n, 2), np.float32))
        with one.copy(env_config={"observation": seen, "action": spaces.Discrete(n)}).build() as run:
            sizes.append(len(run.get_weights()[ONE]))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("algo", [algo for algo, feature in cells("yes") if feature == "exact resume"])
def test_a_run_goes_on_exactly(algo, tmp_path):
    with config(algo, "exact resume").build() as run:
        run.train()
        path = run.save(tmp_path / "c")
        run.train()
        straight = run.get_state()
    same = config(algo, "exact resume")
    with steppe.load(path, same.env, env_config=same.env_config) as again:
        again.train()
        resumed = again.get_state()
    for owner in straight:
        assert state_hash(straight[owner]) == state_hash(resumed[owner]), diff(
            straight[owner], resumed[owner]
        )


@pytest.mark.parametrize(("algo", "feature"), cells("no"))
def test_no_names_who_can(algo, feature):
    with pytest.raises((ConfigError, SpaceError)) as refused, config(algo, feature).build() as run:
        run.train()  # whose actions are whose is seen as they come
    named = re.findall(r"\b([A-Z0-9]+)Config\b", str(refused.value))
    others = [other for other in named if other != algo]
    assert others, str(refused.value)
    assert all(can(other, feature) for other in others), str(refused.value)


@pytest.mark.parametrize(("algo", "feature"), cells("planned"))
def test_planned_is_said(algo, feature):
    with pytest.raises(ConfigError, match="not available yet"):
        config(algo, feature)
