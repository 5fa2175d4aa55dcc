"""PPO in envs that say which actions are legal: acting, learning, files, and an env that allows nothing."""

from __future__ import annotations

import logging
import math

import gymnasium
import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import ConfigError, EnvError, SpaceError

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 2,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}


class Doors(gymnasium.Env):
    """Of several doors two are open, others every step; a closed one breaks the env. The last one pays best.

    A dict of ``action`` (space), ``dtype`` of the mask and ``blocked_at``: a step at which all are closed.
    """

    def __init__(self, config):
        self.action_space = config.get("action", spaces.Discrete(5, start=3))
        self.nvec = np.atleast_1d(getattr(self.action_space, "nvec", 5))
        self.blocked_at = config.get("blocked_at")
        mask = spaces.Box(0, 1, (int(self.nvec.sum()),), config.get("dtype", np.int8))
        self.observation_space = spaces.Dict(observation=spaces.Box(-1, 1, (2,)), action_mask=mask)

    def seen(self, *, last=False):
        parts = []
        for n in self.nvec:
            part = np.zeros(n)
            part[self.np_random.choice(n, 2, replace=False)] = 1
            parts.append(part)
        self.open = np.concatenate(parts)
        if last or self.t == self.blocked_at:
            self.open[:] = 0
        mask = self.open.astype(self.observation_space["action_mask"].dtype)
        return {
            "observation": self.np_random.uniform(-1, 1, 2).astype(np.float32),
            "action_mask": mask,
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        choices = np.atleast_1d(action) - np.asarray(self.action_space.start)
        assert self.open[choices + np.cumsum(self.nvec) - self.nvec].all(), "a closed door was chosen"
        self.t += 1
        return self.seen(last=self.t == 7), float(np.mean(choices / (self.nvec - 1))), self.t == 7, False, {}


def config(env=Doors, **settings):
    return steppe.PPOConfig(env=env, **{**SMALL, **settings})


@pytest.mark.parametrize("dtype", [np.bool_, np.float64])
def test_only_the_legal_is_chosen_and_learned_from(dtype):
    """The final row's mask is empty, as in games that are over; nobody is asked to choose there."""
    with config(env_config={"dtype": dtype}).build() as algo:
        first = algo.train()["info"]["default_policy"]
        assert first["entropy"] == pytest.approx(math.log(2), abs=0.05), "two of five doors, alike at first"
        stats = algo.train()["info"]["default_policy"]
        assert all(map(math.isfinite, stats.values()))
        assert stats["updates_skipped"] == 0
        assert 0 <= stats["kl"] < 0.2
        algo.evaluate(num_episodes=5)


def test_what_is_learned_beats_chance_among_the_open_doors():
    """The better of two doors pays 0.75 on average, any 0.5."""
    learning = {"train_batch_size": 512, "lr": 0.02, "num_epochs": 4, "minibatch_size": 128}
    with config(**learning).build() as algo:
        for _ in range(8):
            algo.train()
        assert algo.evaluate(num_episodes=60)["episode_reward_mean"] / 7 > 0.7


def test_several_choices_have_a_mask_each(tmp_path):
    space = spaces.MultiDiscrete([3, 2, 5], start=[0, 4, -2])
    with config(env_config={"action": space}).build() as algo:
        first = algo.train()["info"]["default_policy"]
        assert first["entropy"] == pytest.approx(3 * math.log(2), abs=0.1)
        path = algo.save(tmp_path / "c")
        env = Doors({"action": space})
        obs, _ = env.reset(seed=5)
        loaded = steppe.load_policy(path)
        assert loaded.act(obs).tolist() == algo.compute_single_action(obs).tolist()
        for _ in range(50):
            choices = loaded.act(obs, explore=True) - space.start
            assert env.open[choices + np.array([0, 3, 5])].all()


def test_outside_of_training_the_mask_holds_too(tmp_path):
    with config().build() as algo:
        algo.train()
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
        env = Doors({})
        obs, _ = env.reset(seed=5)
        for _ in range(40):
            for choose in (algo.compute_single_action, loaded.act):
                assert env.open[choose(obs) - 3]
                assert env.open[choose(obs, explore=True) - 3]
            assert algo.compute_single_action(obs) == loaded.act(obs)
            obs = env.seen()
        obs["action_mask"][:] = 0
        for choose in (algo.compute_single_action, loaded.act):
            with pytest.raises(SpaceError, match=r'cannot act.*E107.*obs\["action_mask"\].*got 5 zeros'):
                choose(obs)
        with pytest.raises(SpaceError, match="missing 'action_mask'"):
            loaded.act({"observation": obs["observation"]})


def test_a_run_with_masks_goes_on_exactly(tmp_path):
    with config().build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()["default_policy"]
    with steppe.load(path, env=Doors) as again:
        again.train()
        assert np.array_equal(again.get_weights()["default_policy"], expected)


def test_an_env_that_allows_nothing_is_named():
    with config(env_config={"blocked_at": 4}).build() as algo, pytest.raises(EnvError) as caught:
        algo.train()
    error = caught.value
    assert (error.code, error.env, error.episode, error.step) == ("E107", 0, 0, 4)
    assert error.leaf == 'obs["action_mask"]'
    assert error.env_class == "Doors"
    assert "let one action be legal" in str(error)
    assert f"seed {error.seed}" in str(error)
    assert error.seed is not None


class Rooms(steppe.VectorEnv):
    """Two envs in one, of which the second allows nothing in its fourth step."""

    def __init__(self, config):
        mask = spaces.MultiBinary(3)
        super().__init__(
            spaces.Dict(observation=spaces.Box(-1, 1, (2,)), action_mask=mask), spaces.Discrete(3), 2
        )
        self.t = 0

    def seen(self, index):
        mask = np.array([0, self.t != 3 or index != 1, 0], np.int8)
        return {"observation": np.zeros(2, np.float32), "action_mask": mask}

    def vector_reset(self, *, seeds=None, options=None):
        return [self.seen(0), self.seen(1)], [{}, {}]

    def reset_at(self, index=None, *, seed=None, options=None):
        return self.seen(index), {}

    def vector_step(self, actions):
        assert list(actions) == [1, 1]
        self.t += 1
        return [self.seen(0), self.seen(1)], [0.0] * 2, [False] * 2, [False] * 2, [{}, {}]


def test_of_envs_that_step_as_one_the_index_is_named():
    with config(env=Rooms).build() as algo, pytest.raises(EnvError, match="E107") as caught:
        algo.train()
    assert (caught.value.env, caught.value.step) == (1, 3)
    assert "?" not in str(caught.value)


class Turns(steppe.MultiAgentEnv):
    """Two agents, the second of which may do nothing in its third step."""

    def __init__(self, config):
        super().__init__()
        self.possible_agents = ["a", "b"]
        space = spaces.Dict(observation=spaces.Box(-1, 1, (2,)), action_mask=spaces.MultiBinary(3))
        self.observation_spaces = dict.fromkeys(self.possible_agents, space)
        self.action_spaces = dict.fromkeys(self.possible_agents, spaces.Discrete(3))

    def seen(self):
        masks = {"a": [1, 1, 1], "b": [0, 0, 0] if self.t == 2 else [0, 1, 0]}
        zeros = np.zeros(2, np.float32)
        return {a: {"observation": zeros, "action_mask": np.array(m, np.int8)} for a, m in masks.items()}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen(), {}

    def step(self, actions):
        assert actions["b"] == 1
        self.t += 1
        nobody = {"a": False, "b": False, "__all__": False}
        return self.seen(), {"a": 0.0, "b": 0.0}, nobody, nobody, {}


def test_the_agent_that_may_do_nothing_is_named():
    with config(env=Turns).build() as algo, pytest.raises(EnvError) as caught:
        algo.train()
    assert (caught.value.agent, caught.value.step) == ("b", 2)
    assert "agent 'b'" in str(caught.value)


def test_a_mask_that_does_not_fit_is_refused_before_anything_runs():
    class Wrong(Doors):
        def __init__(self, config):
            super().__init__(config)
            self.action_space = spaces.Discrete(6)

    with pytest.raises(ConfigError, match=r"Discrete\(6\).*shape \(6,\).*Box\(5,\) int8"):
        config(env=Wrong).build()


def test_rllibs_name_of_the_mask_is_taken_and_another_is_not():
    assert steppe.PPOConfig.from_dict({"action_mask_key": "action_mask"}) == steppe.PPOConfig()
    with pytest.raises(ConfigError, match="action_mask of a Dict observation: call it so"):
        steppe.PPOConfig.from_dict({"action_mask_key": "legal"})


def tictactoe(config):
    pytest.importorskip("pygame", reason="the game draws with pygame: extra pettingzoo", exc_type=ImportError)
    return steppe.PettingZooEnv(pettingzoo.make("aec", "classic/tictactoe-v3"))


def test_no_illegal_move_in_hundreds_of_games_of_tictactoe(caplog, tmp_path):
    """An illegal move would end the game at once, with -1 for one and 0 for the other."""
    caplog.set_level(logging.WARNING)
    learning = {"train_batch_size": 1000, "num_envs_per_env_runner": 8, "minibatch_size": 250}
    with config(env=tictactoe, **learning).build() as algo:
        stats = algo.train()["info"]["default_policy"]
        assert all(map(math.isfinite, stats.values()))
        evaluation = algo.evaluate(num_episodes=300, explore=True)
        assert evaluation["episode_len_mean"] >= 5
        assert evaluation["episode_reward_mean"] == 0, "who wins takes what who loses pays"
        loaded = steppe.load_policy(algo.save(tmp_path / "c"))
    assert "Illegal move" not in caplog.text
    game, shortest = tictactoe({}), 9
    for seed in range(30):
        (obs, _), over, moves = game.reset(seed=seed), False, 0
        while not over:
            ((agent, seen),) = obs.items()
            action = loaded.act(seen, explore=True)
            assert seen["action_mask"][action] == 1
            obs, _, terminateds, _, _ = game.step({agent: action})
            over, moves = terminateds["__all__"], moves + 1
        shortest = min(shortest, moves)
    assert shortest >= 5
