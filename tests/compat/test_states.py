"""A policy with a memory, acted with as RLlib's programs do: lists of arrays, and what came before."""

import numpy as np
import pytest

import steppe
from steppe.compat.agents import ppo
from tests.compat.test_trainer import Signs

LSTM = {"use_lstm": True, "lstm_cell_size": 4, "max_seq_len": 5, "fcnet_hiddens": [3]}
SIZES = {"train_batch_size": 40, "rollout_fragment_length": 20, "sgd_minibatch_size": 20, "num_sgd_iter": 1}


@pytest.fixture(scope="module")
def trainer():
    """Its cell is told of both."""
    told = {"lstm_use_prev_action": True, "lstm_use_prev_reward": True}
    made = ppo.PPOTrainer(env=Signs, config={"model": {**LSTM, **told}, "write_run": False, **SIZES})
    made.train()
    yield made
    made.stop()


def test_states_go_round_as_lists(trainer):
    """The same as in steppe's own way, in which the state holds what came before."""
    policy, algo, own = trainer.get_policy(), trainer.algorithm, {}
    assert policy.is_recurrent() is True
    state, action, reward = policy.get_initial_state(), None, None
    assert [array.shape for array in state] == [(4,), (4,)]
    assert not np.any(state)
    for shown in (0, 1, 1, 0):
        if own:
            own["reward"] = reward
        expected, own = algo.compute_single_action(shown, own)
        action, state, info = trainer.compute_single_action(
            shown, state, prev_action=action, prev_reward=reward, explore=False
        )
        assert (action, info) == (expected, {})
        np.testing.assert_allclose(state, [own["memory"]["c"], own["memory"]["h"]])
        reward = float(shown + 1)


def test_zeros_of_the_right_shape_begin_an_episode(trainer):
    """As programs have it that know the size of their cells."""
    zeros = [np.zeros(4, np.float32), np.zeros(4, np.float32)]
    first = trainer.get_policy().compute_single_action(
        1, trainer.get_policy().get_initial_state(), explore=False
    )
    second = trainer.compute_single_action(1, zeros, full_fetch=True, explore=False)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])


def test_several_at_once(trainer):
    policy = trainer.get_policy()
    fresh = policy.get_initial_state()
    one, after, _ = policy.compute_single_action(0, fresh, explore=False)
    rows = [np.stack([a, b]) for a, b in zip(fresh, after, strict=True)]
    actions, states, _ = policy.compute_actions([0, 1], rows, [0, one], [0.0, 2.0], explore=False)
    expected = policy.compute_single_action(1, after, one, 2.0, explore=False)
    assert actions.tolist() == [one, expected[0]]
    for batch, first, second in zip(states, after, expected[1], strict=True):
        np.testing.assert_allclose(batch, [first, second], atol=1e-6)
    by_key, states, _ = trainer.compute_actions({"a": 1}, {"a": after}, {"a": one}, {"a": 2.0}, explore=False)
    assert by_key == {"a": expected[0]}
    np.testing.assert_allclose(states["a"], expected[1], atol=1e-6)


@pytest.mark.parametrize("state", [None, [], [np.zeros(4)], [np.zeros(4)] * 3])
def test_a_list_of_another_length_is_refused_with_the_way_to_begin(trainer, state):
    with pytest.raises(steppe.ConfigError, match=r"a list of 2 arrays, and \d came.*get_initial_state\(\)"):
        trainer.compute_single_action(0, state)


def test_without_a_memory_there_is_no_state(quick):
    trainer = ppo.PPOTrainer(env=Signs)
    assert trainer.get_policy().get_initial_state() == []
    assert trainer.get_policy().is_recurrent() is False
    trainer.stop()
