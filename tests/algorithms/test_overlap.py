"""Learning while the next fragment is sampled (``sample_async``)."""

from __future__ import annotations

import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from tests.algorithms.naive import TINY
from tests.envs_for_tests import Identity
from tests.states import diff, state_hash

DQN = steppe.DQNConfig(
    env="CartPole-v1",
    num_envs_per_env_runner=2,
    train_batch_size=8,
    fcnet_hiddens=[4],
    num_steps_sampled_before_learning_starts=8,
    min_sample_timesteps_per_iteration=32,
    prioritized_replay=True,
    sample_async=True,
    seed=0,
    write_run=False,
)
IMPALA = steppe.IMPALAConfig(
    **{**TINY, "env": "CartPole-v1", "env_config": {}}, rollout_fragment_length=5, sample_async=True
)


@pytest.mark.parametrize("config", [DQN, IMPALA], ids=["DQN", "IMPALA"])
def test_a_run_goes_on_exactly_from_its_checkpoint(config, tmp_path):
    with config.build() as whole, config.build() as half:
        for _ in range(2):
            whole.train()
            half.train()
        with steppe.load(half.save(tmp_path / "half")) as resumed:
            for _ in range(2):
                results = [algo.train() for algo in (whole, resumed)]
            for owner, state in whole.get_state().items():
                assert diff(state, resumed.get_state()[owner]) == []
                assert state_hash(state) == state_hash(resumed.get_state()[owner])
    assert results[0]["info"] == results[1]["info"]


class Meets(gymnasium.Env):
    """A step that waits for an update to be under way, once there is one to wait for."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)
    learning, stepped = threading.Event(), threading.Event()
    waits = False

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if type(self).waits:
            assert self.learning.wait(30), "no update began"
            self.stepped.set()
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_envs_are_stepped_while_an_update_is_under_way():
    """Each waits for the other: neither would come to its end if they took turns."""
    with DQN.copy(env=Meets, min_sample_timesteps_per_iteration=16).build() as algo:
        update = algo._learner.update

        def slow(*given):
            Meets.learning.set()
            Meets.waits = True
            assert Meets.stepped.wait(30), "no step was taken"
            return update(*given)

        algo._learner.update = slow
        algo.train()
    assert Meets.stepped.is_set()
    Meets.waits = False


def test_each_fragment_is_acted_by_the_weights_before_the_newest():
    lags = []
    with DQN.build() as algo:
        add = algo._learner.add

        def noted(rollouts):
            (rollout,) = rollouts
            newest = algo._learner.publish()["default_policy"].version
            lags.append(newest - int(rollout.version[-2].max()))
            add(rollouts)

        algo._learner.add = noted
        algo.train()
        assert algo.runner.sampler._versions == [algo._learner.publish()["default_policy"].version]
        lags.clear()
        algo.train()
    assert lags[0] == 0  # nothing is under way between iterations
    assert set(lags[1:]) == {1}


def test_what_an_update_raises_comes_out_of_train_and_the_run_goes_on():
    with DQN.build() as algo:
        algo.train()
        update, calls = algo._learner.update, []

        def fails(*given):
            calls.append(given)
            if len(calls) == 1:
                raise RuntimeError("no learning today")
            return update(*given)

        algo._learner.update = fails
        with pytest.raises(RuntimeError, match="no learning today"):
            algo.train()
        assert algo._ahead.settle() is None


def test_nothing_is_under_way_after_an_env_raised():
    class Breaks(Identity):
        steps = 0

        def step(self, action):
            type(self).steps += 1
            if self.steps == 60:
                raise ValueError("the plant has stopped")
            return super().step(action)

    with DQN.copy(
        env=lambda: Breaks(spaces.Discrete(2)), min_sample_timesteps_per_iteration=200
    ).build() as algo:
        with pytest.raises(ValueError, match="the plant has stopped"):
            algo.train()
        assert algo._ahead.settle() is None
        assert algo._learner.get_state()


@pytest.mark.parametrize("cls", [steppe.PPOConfig, steppe.A2CConfig, steppe.PGConfig])
def test_algorithms_that_learn_from_their_newest_rows_refuse(cls):
    with pytest.raises(steppe.ConfigError, match="learns only from rows that its newest weights acted"):
        cls(**TINY, sample_async=True).build()


def test_rllib_s_mark_of_a_setting_that_was_not_given():
    assert steppe.PPOConfig(sample_async=-1).sample_async is False
    with pytest.raises(steppe.ConfigError, match="sample_async"):
        steppe.PPOConfig(sample_async=2)
