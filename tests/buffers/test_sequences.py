"""Sequences: what is drawn is what happened, from rows whose states are known, while the ring turns."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steppe import checkpoint
from steppe.buffers.prioritized import Prioritized
from steppe.buffers.replay import Replay
from steppe.buffers.sequences import Sequences
from steppe.errors import CheckpointError, ConfigError
from tests.buffers.test_replay import turns
from tests.learning_core.test_minibatches import by_hand, scripts
from tests.states import diff, state_hash


def lanes(number, t, **about):
    """A fragment whose states hold the number of the row that they were met with, first rows zeros."""
    rollout = by_hand(number, t=t, **about)
    rollout.state0 = {"memory": np.where(rollout.t[0] > 0, rollout.obs[0], 0.0)}
    return rollout


FIRST = lanes([[1, 4], [2, 5], [3, 6]], [[0, 0], [1, 1], [2, 2]])
SECOND = lanes([[3, 6], [7, 8], [9, 10]], [[2, 2], [3, 3], [4, 4]], sequence=1)


def drawn(sequences):
    """Every sequence that may be drawn, by the number of its first row."""
    columns = sequences.columns(sequences._ready.members)
    flat = {name: column for name, column in columns.items() if name != "state"}
    flat |= {"state": next(iter(columns["state"].values())) if columns["state"] else None}
    return {int(row[0]): {k: v[i] for k, v in flat.items()} for i, row in enumerate(columns["obs"])}


def test_two_fragments_by_hand():
    """The reward of a row is the number of its observation; the discount is a half."""
    sequences = Sequences(100, length=2, n_step=1, gamma=0.5)
    assert sequences.add(FIRST) == 6
    assert sorted(drawn(sequences)) == [1, 4]  # their third rows are there, those of 3 and 6 are not
    assert sequences.add(SECOND) == 4
    found = drawn(sequences)
    assert sorted(found) == [1, 3, 4, 6]
    assert found[3]["obs"].tolist() == [3, 7, 9]
    assert found[3]["earned"].tolist() == [3, 7, 9]
    assert found[3]["state"] == 3
    assert found[1]["state"] == 0
    assert found[3]["fresh"].tolist() == [False] * 3
    assert found[1]["fresh"].tolist() == [True, False, False]
    assert found[3]["learned"].tolist() == [True, True, False]
    assert found[3]["reward"][:2].tolist() == [7, 9]
    assert found[3]["end"][:2].tolist() == [1, 2]
    assert found[3]["discount"][:2].tolist() == [0.5, 0.5]


def test_several_steps_and_a_burn_in_by_hand():
    sequences = Sequences(100, length=1, burn_in=2, n_step=2, gamma=0.5)
    sequences.add(FIRST)
    sequences.add(SECOND)
    found = drawn(sequences)
    assert sorted(found) == [1, 4]  # five rows
    assert found[1]["learned"].tolist() == [True, True, True, False, False]  # nothing to burn in
    assert found[1]["reward"][:3].tolist() == [2 + 3 / 2, 3 + 7 / 2, 7 + 9 / 2]
    assert found[1]["end"][:3].tolist() == [2, 3, 4]
    assert found[1]["discount"][:3].tolist() == [0.25] * 3
    sequences.add(lanes([[9, 10], [11, 12], [13, 14]], [[4, 4], [5, 5], [6, 6]], sequence=2))
    assert drawn(sequences)[3]["learned"].tolist() == [False, False, True, False, False]


def test_the_end_of_a_trajectory_ends_its_sequences():
    ended = lanes([[9], [11], [20], [21]], [[4], [5], [0], [1]], sequence=2)
    ended.terminated = ended.terminated.copy()
    ended.terminated[1] = True
    sequences = Sequences(100, length=4, n_step=2, gamma=0.5)
    sequences.add(lanes([[1], [7], [9]], [[2], [3], [4]]))
    sequences.add(lanes([[9], [9]], [[4], [4]], sequence=7))  # another fragment: what was due is cut off
    assert drawn(sequences)[1]["filled"].tolist() == [True] * 3 + [False] * 3
    sequences = Sequences(100, length=4, n_step=2, gamma=0.5)
    sequences.add(lanes([[1], [7], [9]], [[2], [3], [4]], sequence=1))
    sequences.add(ended)
    found = drawn(sequences)
    assert sorted(found) == [1, 9]
    assert found[1]["filled"].tolist() == [True] * 4 + [False] * 2
    assert found[1]["learned"].tolist() == [True] * 3 + [False] * 3
    assert found[1]["reward"][:3].tolist() == [7 + 9 / 2, 9 + 11 / 2, 11]
    assert found[1]["discount"][:3].tolist() == [0.25, 0.0, 0.0]


@pytest.mark.parametrize("wrong", [{"length": 0}, {"length": 1, "n_step": 0}, {"length": 1, "burn_in": -1}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ConfigError, match="count rows: give 1 or more, burn_in 0"):
        Sequences(9, **wrong)


def test_what_cannot_be_used_is_said():
    sequences = Sequences(9, length=2)
    with pytest.raises(ConfigError, match="none may be drawn yet"):
        sequences.sample(np.random.default_rng(0), 1, 1)
    with pytest.raises(ConfigError, match="without recurrent states; use Replay"):
        sequences.add(by_hand([[1]], t=[[0]]))


# --- against what the envs did ---------------------------------------------------------------------------

sizes = st.fixed_dictionaries(
    {
        "length": st.integers(1, 6),
        "burn_in": st.integers(0, 4),
        "n_step": st.integers(1, 4),
        "framestack": st.sampled_from([1, 3]),
    }
)


def truth(run, rollouts, length, burn_in, n_step, framestack):
    """By the number of its first row: every sequence that may be drawn, of those rows that were sampled."""
    rows, found = burn_in + length + n_step, {}
    opening = {int(n) for r in rollouts for n in r.obs[:1][r.filled[:1]]}
    for one in run.found:
        known = [row for row in one.rows if run.closing and row.poll <= run.closing[-1]]
        for k, row in enumerate(known if one.policy == "left" else []):
            part = known[k : k + rows]
            final = part[-1].terminated or part[-1].truncated
            whole = len(part) == rows or final
            some = len(part) > (1 if k == 0 else burn_in + 1)
            if whole and some and (k == 0 or row.number in opening):
                found[row.number] = [k, part, known]
    return found


def check(row, wanted, length, burn_in, n_step, framestack):
    k, part, known = wanted
    rows, last = burn_in + length + n_step, len(part) - 1
    assert row["filled"].tolist() == [t <= last for t in range(rows)]
    assert row["state"] == 1 + k or k == 0  # zeros, or what the policy calls its first state
    assert row["fresh"].tolist() == [k == 0 and t == 0 for t in range(rows)]
    numbers = row["obs"].reshape(rows, -1)[: last + 1].tolist()
    for t, one in enumerate(part):
        past = [known[max(k + t - back, 0)].number for back in range(framestack - 1, -1, -1)]
        assert numbers[t] == past
        assert row["earned"][t] == one.reward
        acts = not (one.terminated or one.truncated) and t < burn_in + length
        assert row["learned"][t] == (acts and (k == 0 or t >= burn_in))
        if not row["learned"][t]:
            continue
        assert row["action"][t] == one.action
        after = part[t + 1 : t + 1 + n_step]
        assert row["reward"][t] == sum(0.5**i * x.reward for i, x in enumerate(after))
        assert row["end"][t] == t + len(after)
        assert row["discount"][t] == 0.5 ** len(after) * (not after[-1].terminated)


@given(scripts, sizes, st.integers(1, 2))
def test_sequences_are_what_the_envs_did(drawn_script, size, runners):
    """Ragged lanes, agents that come, skip turns and go, and fragments that end anywhere."""
    sequences = Sequences(10_000, gamma=0.5, **size)
    runs, rollouts = turns(drawn_script, "left", runners)
    wanted = {}
    for rollout in rollouts:
        sequences.add(rollout)
    for run in runs:
        kept = run.rollouts("left")[: len(rollouts) // runners]
        run = run._replace(closing=run.closing[: len(kept)])
        wanted |= truth(run, kept, **size)
    if size["framestack"] == 1:
        found = drawn(sequences) if len(sequences) else {}
    else:
        columns = sequences.columns(sequences._ready.members) if len(sequences) else {"obs": []}
        found = {
            int(row[0, -1]): {
                name: column["count"][i] if name == "state" else column[i] for name, column in columns.items()
            }
            for i, row in enumerate(columns["obs"])
        }
    assert sorted(found) == sorted(wanted)
    for number, row in found.items():
        check(row, wanted[number], **size)


@given(scripts, sizes, st.integers(3, 40))
def test_a_small_ring_turns_and_forgets(drawn_script, size, capacity):
    """What came and went adds up to what may be drawn, and that is as it was."""
    sequences, held = Sequences(capacity, gamma=0.5, **size), set()
    (run,), rollouts = turns(drawn_script, "left", 1)
    wanted = truth(run, rollouts, **size)
    for rollout in rollouts:
        sequences.add(rollout)
        assert held >= set(sequences.went.tolist())
        held = (held - set(sequences.went.tolist())) | set(sequences.came.tolist())
        assert held == set(sequences._ready.members.tolist())
        assert len(sequences) == len(held)
        columns = sequences.columns(sequences._ready.members) if held else {"obs": []}
        for i, row in enumerate(columns["obs"]):
            one = {n: c["count"][i] if n == "state" else c[i] for n, c in columns.items()}
            k, part, known = wanted[int(row.reshape(len(row), -1)[0, -1])]
            rows = int(one["filled"].sum())
            check(one, (k, part[:rows], known), **size)


# --- checkpoints -----------------------------------------------------------------------------------------

BUFFERS = {
    "even": lambda: Sequences(50, length=3, burn_in=1),
    "prioritized": lambda: Prioritized(Sequences(50, length=3, burn_in=1), alpha=0.7),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_it_goes_on_from_its_state_as_it_would_have(tmp_path, kind):
    script = {"seed": 3, "envs": 3, "agents": "abc", "polls": 40, "length": 3}
    _, rollouts = turns(script, "left", 1)
    half = len(rollouts) // 2
    first, second = BUFFERS[kind](), BUFFERS[kind]()
    for rollout in rollouts[:half]:
        first.add(rollout)
    checkpoint.save(tmp_path / "c", {"replay": copy.deepcopy(first.get_state())}, {})
    state = checkpoint.load(tmp_path / "c")[0]["replay"]
    second.check(state)
    second.set_state(state)
    assert diff(first.get_state(), second.get_state()) == []
    beta, samples = ([0.5] if kind == "prioritized" else []), []
    for buffer in (first, second):
        for rollout in rollouts[half:]:
            buffer.add(rollout)
        samples.append(buffer.sample(np.random.default_rng(0), 2, 4, *beta))
    assert state_hash(first.get_state()) == state_hash(second.get_state())
    assert state_hash(samples[0]) == state_hash(samples[1])


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        (Sequences(9, length=3), Sequences(9, length=4), "max_seq_len=3, these max_seq_len=4"),
        (Sequences(9, length=3), Sequences(9, length=2, burn_in=1), "max_seq_len=3"),
        (Sequences(9, length=3), Sequences(8, length=3), "capacity=9, this one capacity=8"),
        (Sequences(9, length=3), Replay(9), "has sequences"),
        (Replay(9), Sequences(9, length=3), "has no sequences"),
        (Prioritized(Replay(9), alpha=1.0), Replay(9), "has priorities"),
    ],
)
def test_a_state_of_another_kind_is_refused_before_anything_changes(there, here, words):
    before = state_hash(here.get_state())
    for judge in (here.check, here.set_state):
        with pytest.raises(CheckpointError, match=words):
            judge(there.get_state())
    assert state_hash(here.get_state()) == before


def test_priorities_are_those_of_sequences():
    buffer = Prioritized(Sequences(100, length=2, gamma=0.5), alpha=1.0, eps=1e-9)
    buffer.add(FIRST)
    buffer.add(SECOND)
    index = buffer.sample(np.random.default_rng(0), 1, 4, 0.5)["index"][0]
    assert len(set(index.tolist())) == 4  # all alike as yet
    numbers = buffer.sample(np.random.default_rng(0), 1, 4, 0.5)["obs"][0, :, 0]
    buffer.update(index, np.where(numbers == 3, 1.0, 0.0))
    again = buffer.sample(np.random.default_rng(1), 1, 64, 0.5)
    assert (again["obs"][0, :, 0] == 3).all()
