"""The machinery of off-policy learners: how often, on what and when the targets move; against plain loops."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import CheckpointError
from steppe.learning.off_policy import LearnerState, Method, OffPolicyLearner, Priorities, followed
from steppe.models.observations import norm_init
from steppe.spaces import spec_of

BOX = spec_of(spaces.Box(-np.inf, np.inf, (1,), np.float32))


class Hyper(NamedTuple):
    lr: Any


def toward(static, state, batch, hyper, key):
    """The parameter moves to the mean reward; huge rewards give numbers that are not finite."""
    error = batch["reward"] - state.params[0] + static * batch["obs"].sum(-1)
    params = state.params + hyper.lr * error.mean() + 0.0 * jax.random.normal(key)
    target = followed(state.target, params, batch["sync"], 1.0)
    parts = {"error": error.mean(), "number": batch["number"].astype(jnp.float32)}
    return state._replace(params=params, target=target), parts, error


def level(static, params, obs):
    return params[0] + obs.sum(-1)


METHOD = Method(Hyper, toward, level, 0.0, LearnerState(None, None, None, None), BOX)


class Rows:
    """A buffer that hands out what its generator draws, and remembers it."""

    def __init__(self, reward=None):
        self.rows, self.drawn, self.added, self.reward = 100, [], [], reward

    def add(self, rollout):
        self.added.append(rollout)
        return 0

    def __len__(self):
        return self.rows

    def sample(self, rng, batches, size, *beta):
        draw = rng.normal(size=(batches, size)).astype(np.float32)
        self.drawn.append(draw)
        obs = 5.0 + draw[..., None]
        return {
            "obs": obs,
            "next_obs": obs,
            "action": np.zeros((batches, size), np.int32),
            "reward": draw if self.reward is None else self.reward(draw),
            "discount": np.ones_like(draw),
            "index": np.arange(draw.size).reshape(draw.shape),
            "weight": np.full_like(draw, *beta or (1.0,)),
        }

    def get_state(self):
        return {"rows": self.rows}

    def check(self, state):
        if state["rows"] != self.rows:
            raise CheckpointError("a buffer of other rows")

    def set_state(self, state):
        self.rows = state["rows"]


def learner(rows=None, method=METHOD, normalizer=(), **changes):
    zero = np.zeros(1, np.float32)
    given = {
        "coefficients": {"lr": 0.5},
        "acting": 1,
        "batch_size": 4,
        "updates_per_step": 1.0,
        "learning_starts": 0,
        **changes,
    }
    state = LearnerState(zero, zero.copy(), (), normalizer)
    return OffPolicyLearner(method, None, state, 7, replay=rows or Rows(), **given)


@given(
    polls=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    ratio=st.sampled_from([0.25, 0.3, 1.0, 2.5]),
    starts=st.integers(0, 12),
)
@settings(max_examples=25, deadline=None)
def test_as_many_updates_as_the_env_steps_are_worth(polls, ratio, starts):
    made = learner(updates_per_step=ratio, learning_starts=starts)
    steps, counted, worth = 0, 0, 0.0
    for poll in polls:
        steps += poll
        stats = made.update(steps)
        worth += poll * ratio if steps >= starts else 0.0
        if stats:
            counted = stats["updates"]
        assert counted == int(worth + 1e-9) or abs(worth - round(worth)) < 1e-6


def test_updates_are_those_of_a_loop_whatever_their_number():
    """70 updates: one call of 64, and one of 8 of which 6 count."""
    rows = Rows()
    made = learner(rows)
    stats = made.update(70)
    assert [draw.shape for draw in rows.drawn] == [(64, 4), (8, 4)]
    level, errors = 0.0, []
    for draw in [*rows.drawn[0], *rows.drawn[1][:6]]:
        errors.append((draw - level).mean())
        level += 0.5 * errors[-1]
    assert made.get_weights()[0] == pytest.approx(level, abs=1e-5)
    assert stats["error"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert stats["number"] == pytest.approx(np.arange(70).mean())
    assert stats["updates"] == 70
    assert stats["cur_lr"] == 0.5


def test_nothing_is_learned_from_a_buffer_that_has_too_little():
    rows = Rows()
    rows.rows = 3
    made = learner(rows)
    assert made.update(10) == {}
    rows.rows = 4
    assert made.update(12)["updates"] == 2  # steps before that are not owed


@pytest.mark.parametrize(
    ("freq", "steps", "wanted"),
    [
        (0, [3], [True] * 3),
        (4, [3, 6, 9], [False] * 3 + [True] + [False] * 2 + [False, True, False]),
        (100, [99, 101], [False] * 99 + [True, False]),
    ],
)
def test_targets_move_with_the_update_that_reaches_their_step(freq, steps, wanted):
    made, found = learner(target_update_freq=freq), []
    before = 0
    for now in steps:
        found += made._due(before, now, now - before).tolist()
        before = now
    assert found == wanted


def test_the_target_is_a_copy_of_the_parameters_when_it_moved():
    made = learner(target_update_freq=4)
    made.update(3)
    assert made.state.target[0] == 0.0 != made.state.params[0]
    made.update(4)
    assert made.state.target[0] == made.state.params[0]


def test_targets_follow_the_parameters():
    target, params = [jnp.array([1.0, 2.0])], [jnp.array([3.0, 6.0])]
    np.testing.assert_allclose(followed(target, params, True, 0.5)[0], [2.0, 4.0])
    np.testing.assert_array_equal(followed(target, params, False, 0.5)[0], target[0])
    np.testing.assert_array_equal(followed(target, params, True, 1.0)[0], params[0])


def test_an_update_that_is_not_finite_changes_nothing_and_the_others_count():
    def broken(draw):
        return np.where(np.arange(len(draw))[:, None] == 1, np.inf, draw).astype(np.float32)

    told = []
    made = learner(rows := Rows(broken), priorities=Priorities(lambda *a: told.append(a), 0.4))
    stats = made.update(3)
    first, _, third = rows.drawn[0][:3]
    level = 0.5 * first.mean()
    wanted = level + 0.5 * (third - level).mean()
    assert made.get_weights()[0] == pytest.approx(wanted, abs=1e-6)
    assert stats["updates_skipped"] == 1
    assert stats["error"] == pytest.approx((first.mean() + (third - level).mean()) / 2, abs=1e-6)
    assert np.abs(told[0][1][1]).max() == 0.0


def test_errors_of_the_rows_that_were_learned_from_become_priorities():
    told = []
    rows = Rows()
    made = learner(
        rows,
        priorities=Priorities(lambda *a: told.append(a), [[0, 0.4], [10, 0.6]]),
        coefficients={"lr": 0.0},
    )
    made.update(5)
    index, error = told[0]
    assert index.shape == error.shape == (5, 4)  # 8 were drawn
    np.testing.assert_array_equal(index, np.arange(20).reshape(5, 4))
    np.testing.assert_allclose(error, rows.drawn[0][:5], rtol=1e-6)


def test_beta_follows_its_schedule():
    seen = []
    made = learner(priorities=Priorities(lambda *a: None, [[0, 0.4], [10, 0.6]]))
    made.on_batch = lambda batch: seen.append(batch["weight"][0, 0])
    made.update(5)
    made.update(20)
    np.testing.assert_allclose(seen, [0.5, 0.6], rtol=1e-6)


def test_a_hook_may_change_what_is_learned_from():
    made = learner(coefficients={"lr": 1.0})
    made.on_batch = lambda batch: batch.update(reward=np.full_like(batch["reward"], 3.0))
    made.update(2)
    assert made.get_weights()[0] == pytest.approx(3.0)


def test_statistics_are_of_the_rows_that_were_learned_from():
    rows = Rows()
    made = learner(rows, normalizer=norm_init(BOX))
    made.update(5)
    seen = 5.0 + rows.drawn[0][:5].ravel()
    count, mean, m2 = made.publish().normalizer
    assert count == 20
    assert mean[0] == pytest.approx(seen.mean(), rel=1e-5)
    assert m2[0] == pytest.approx(((seen - seen.mean()) ** 2).sum(), rel=1e-4)
    scaled = made.values(np.array([[seen.mean()]], np.float32)) - made.get_weights()
    np.testing.assert_allclose(scaled, 0.0, atol=1e-4)


def test_weights_carry_what_acting_needs_and_schedules_at_this_step():
    made = learner(scalars={"epsilon": [[0, 1.0], [10, 0.0]]}, learning_starts=8)
    assert made.publish().scalars == {"epsilon": 1.0}
    made.update(5)
    assert (made.publish().version, made.publish().scalars) == (0, {"epsilon": 0.5})
    assert made.update(8)["cur_epsilon"] == pytest.approx(0.2)
    assert made.publish().version == 1


def test_new_weights_are_the_target_s_too():
    made = learner()
    made.set_weights(np.array([4.0]))
    assert made.state.target[0] == 4.0
    assert made.values(np.zeros((3, 1), np.float32)).tolist() == [4.0] * 3


def test_a_learner_goes_on_exactly():
    one, other = learner(updates_per_step=0.3), learner(updates_per_step=0.3)
    one.update(11)
    state = one.get_state()
    other.set_state(state, other.checked(state))
    assert one.update(25) == other.update(25)
    np.testing.assert_array_equal(one.get_weights(), other.get_weights())


def test_a_state_whose_replay_does_not_fit_is_refused_before_anything_is_changed():
    made, other = learner(), learner()
    made.update(10)
    state = made.get_state()
    state["replay"] = {"rows": 7}
    with pytest.raises(CheckpointError, match="other rows"):
        other.checked(state)


def test_large_observations_are_drawn_for_fewer_updates_at_once():
    image = spec_of(spaces.Box(0, 255, (256, 256, 4), np.uint8))
    for observed, most in ((2, 16), (8, 4), (1000, 1)):
        assert learner(method=METHOD._replace(observation=image), observed=observed)._most == most
    assert learner()._most == 64
