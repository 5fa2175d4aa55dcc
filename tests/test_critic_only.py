"""Leaves of the observation that the critic sees in training and acting never needs."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import CheckpointError, ConfigError, SpaceError

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 2,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}


class Lottery(gymnasium.Env):
    """What a step pays is drawn before it, and stands in the state alone; nobody can do anything about it."""

    def __init__(self, config):
        self.action_space = spaces.Discrete(2)
        size, seen = config.get("state", 3), config.get("observation", 2)
        self.observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (seen,)), state=spaces.Box(-20, 20, (size,))
        )

    def seen(self):
        space = self.observation_space
        self.pays = self.np_random.uniform(-20, 20)
        state = np.full(space["state"].shape, self.pays, np.float32)
        drawn = self.np_random.uniform(-1, 1, space["observation"].shape)
        return {"observation": drawn.astype(np.float32), "state": state}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        paid = self.pays
        return self.seen(), paid, False, self.t == 9, {}


def config(env=Lottery, **settings):
    return steppe.PPOConfig(env=env, **{"critic_only": ["state"], **SMALL, **settings})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    with config().build() as algo:
        algo.train()
        path = algo.save(tmp_path_factory.mktemp("saved") / "c")
        algo.train()
        return path, algo.get_weights()["default_policy"]


def some(n=6):
    env = Lottery({})
    env.reset(seed=3)
    return [env.seen() for _ in range(n)]


def test_the_critic_learns_from_what_it_alone_sees():
    """With gamma=0 the value is what the next step pays, which only the state says."""
    learning = {"train_batch_size": 512, "lr": 0.02, "num_epochs": 6, "minibatch_size": 128, "gamma": 0.0}
    with config(**learning).build() as algo:
        for _ in range(4):
            stats = algo.train()["info"]["default_policy"]
    assert stats["vf_explained_var"] > 0.8


@pytest.mark.parametrize("observation_filter", ["MeanStdFilter", "NoFilter"])
def test_actions_are_the_same_with_it_and_without_it_trained_and_loaded(tmp_path, observation_filter):
    with config(observation_filter=observation_filter).build() as algo:
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
        for obs in some():
            bare = {"observation": obs["observation"]}
            other = {**bare, "state": -obs["state"]}
            chosen = [algo.compute_single_action(o) for o in (obs, bare, other)]
            chosen += [loaded.act(o) for o in (obs, bare, other)]
            assert len(set(chosen)) == 1
            assert loaded.outputs(obs).tolist() == loaded.outputs(bare).tolist()
        for act in (algo.compute_single_action, loaded.act):
            with pytest.raises(SpaceError, match="unknown 'else'"):
                act({**bare, "else": 1})
            with pytest.raises(SpaceError, match="missing 'observation'"):
                act({"state": obs["state"]})
        assert sorted(loaded.observation_space["items"]) == ["observation"]
        assert algo.evaluate(num_episodes=2)["episodes_this_iter"] == 2


def test_what_acts_is_published_and_saved_without_it(saved):
    loaded = steppe.load_policy(saved[0])
    assert not [name for name in loaded.arrays if "state" in name]
    assert [name for name in loaded.arrays if name.startswith("normalizer")] == [
        f'normalizer.obs["observation"].{name}' for name in ("count", "mean", "m2")
    ]


def test_a_run_goes_on_exactly(saved):
    path, expected = saved
    with steppe.load(path, env=Lottery) as again:
        assert again.config.critic_only == ["state"]
        again.train()
        assert np.array_equal(again.get_weights()["default_policy"], expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"env_config": {"state": 4}}, "do not fit this network"),
        ({"env_config": {"observation": 3}}, "trained with observation space"),
        ({"critic_only": []}, r"Dict\(observation: .*, here .*of training, with critic_only=\['state'\]$"),
    ],
    ids=["another state", "another observation", "nothing hidden"],
)
def test_other_spaces_are_refused_and_nothing_changes(saved, settings, said):
    with config(**settings).build() as algo:
        before = algo.get_weights()["default_policy"]
        with pytest.raises(CheckpointError, match=said):
            algo.restore(saved[0])
        assert np.array_equal(algo.get_weights()["default_policy"], before)


def test_what_cannot_be_is_said_when_the_run_is_built():
    with pytest.raises(ConfigError, match="'stat' is not there; the keys are observation, state"):
        config(critic_only=["stat"]).build()
    with pytest.raises(ConfigError, match="set vf_share_layers=False"):
        config(vf_share_layers=True).build()
    with pytest.raises(ConfigError, match="the observation space is Box"):
        config(env="CartPole-v1").build()
    with pytest.raises(ConfigError, match="leaves nothing to act on"):
        config(critic_only=["state", "observation"]).build()


def test_one_policy_may_have_a_critic_that_sees_more_than_another(tmp_path):
    settings = {
        "policies": {"plain": None, "knowing": steppe.PolicySpec(config={"critic_only": ["state"]})},
        "policy_mapping_fn": lambda agent, *args: ["plain", "knowing"][int(agent)],
        "critic_only": [],
    }
    with config(
        env=steppe.make_multi_agent(Lottery), env_config={"num_agents": 2}, **settings
    ).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    keys = {
        id: sorted(steppe.load_policy(path, id).observation_space["items"]) for id in settings["policies"]
    }
    assert keys == {"plain": ["observation", "state"], "knowing": ["observation"]}
