"""Replay: what is sampled is what happened, of every row that may be sampled, while the ring turns."""

import copy
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steppe
from steppe import checkpoint
from steppe.buffers.replay import Replay
from steppe.errors import CheckpointError, ConfigError
from tests.buffers.reference import Drawn, NaiveReplay, read
from tests.learning_core.test_minibatches import POLICIES, by_hand, scripts
from tests.sampling.reference import play
from tests.states import diff, state_hash

FIRST = by_hand([[1, 4], [2, 5], [3, 6]], t=[[0, 0], [1, 1], [2, 2]])
SECOND = by_hand([[3, 6], [7, 8]], t=[[2, 2], [3, 3]], sequence=1)


def everything(replay):
    """The columns of all rows that may be sampled, by the number of their observation."""
    index = np.sort(replay._ready.members)
    columns = replay.columns(index)
    return {int(number): {k: v[i] for k, v in columns.items()} for i, number in enumerate(columns["obs"])}


def outcomes(replay):
    return {
        number: (float(row["reward"]), float(row["discount"]), int(row["next_obs"]))
        for number, row in everything(replay).items()
    }


def test_two_steps_by_hand():
    """The reward of a row is the number of its observation; the discount is a half."""
    replay = Replay(100, n_step=2, gamma=0.5)
    assert replay.add(FIRST) == 6
    assert outcomes(replay) == {1: (2 + 3 / 2, 0.25, 3), 4: (5 + 6 / 2, 0.25, 6)}
    assert replay.add(SECOND) == 2
    assert outcomes(replay) == {
        1: (3.5, 0.25, 3),
        4: (8.0, 0.25, 6),
        2: (3 + 7 / 2, 0.25, 7),
        5: (6 + 8 / 2, 0.25, 8),
    }


def test_what_is_lost_is_truncated_and_bootstrapped_from():
    replay = Replay(100, n_step=2, gamma=0.5)
    replay.add(FIRST)
    replay.add(SECOND)
    replay.add(by_hand([[7, 0], [9, 0]], t=[[3, 0], [4, 0]], sequence=2))
    found = outcomes(replay)
    assert found[6] == (8.0, 0.5, 8)
    assert found[3] == (7 + 9 / 2, 0.25, 9)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "wrong", [{"capacity": 0}, {"capacity": 9, "n_step": 0}, {"capacity": 9, "framestack": 0}]
)
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"=0, but it counts rows: give 1 or more"):
        Replay(**wrong)


def test_nothing_is_sampled_from_an_empty_replay():
    with pytest.raises(ConfigError, match="no row may be sampled yet"):
        Replay(9).sample(np.random.default_rng(0), 1, 1)


# --- against a naive model -------------------------------------------------------------------------------

sizes = st.fixed_dictionaries(
    {
        "capacity": st.sampled_from([1, 2, 3, 7, 20, 50, 10_000]),
        "n_step": st.integers(1, 5),
        "framestack": st.sampled_from([1, 1, 2, 4]),
    }
)


def turns(drawn, policy, runners):
    """The fragments of several runners, by turns."""
    runs = [play(**{**drawn, "seed": drawn["seed"] + i}, runner=i) for i in range(runners)]
    return runs, [
        rollout for turn in zip(*[r.rollouts(policy) for r in runs], strict=False) for rollout in turn
    ]


def all_rows(replay):
    index = replay._ready.members
    assert len(set(index.tolist())) == len(index)
    assert replay._ready.has(np.arange(replay.capacity)).sum() == len(index) == len(replay)
    return read(replay.columns(index)) if len(index) else []


@given(
    scripts, POLICIES, st.integers(1, 3), sizes, st.randoms(use_true_random=False), st.sampled_from([0, 0.3])
)
def test_what_may_be_sampled_is_what_a_naive_replay_has(drawn, policy, runners, size, random, loss):
    """Fragments get lost, runners restart, and small rings turn many times."""
    replay, naive = Replay(**size, gamma=0.5), NaiveReplay(**size, gamma=0.5)
    _, rollouts = turns(drawn, policy, runners)
    for rollout in rollouts:
        if random.random() < loss:
            continue
        if random.random() < loss / 3:
            rollout = replace(rollout, incarnation=1)
        assert replay.add(rollout) == naive.add(rollout)
        found = all_rows(replay)
        assert found == naive.everything()
        assert len(replay) == len(found)


@given(scripts, POLICIES, st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 4]))
def test_nothing_of_what_the_envs_did_is_missing_or_wrong(drawn, policy, runners, n_step, framestack):
    """Against what the envs did themselves, whatever the fragments were."""
    replay = Replay(10_000, n_step=n_step, gamma=0.5, framestack=framestack)
    runs, rollouts = turns(drawn, policy, runners)
    for rollout in rollouts:
        replay.add(rollout)
    wanted = []
    for run in runs:
        polls = run.closing[: len(rollouts) // runners]
        for one in run.found:
            rows = [row for row in one.rows if polls and row.poll <= polls[-1]]
            if one.policy == policy:
                wanted += happened(rows, n_step, framestack)
    assert all_rows(replay) == sorted(wanted)


def happened(rows, n_step, framestack):
    """What may be sampled of one trajectory."""

    def stack(i):
        return tuple(rows[max(0, i - back)].number for back in range(framestack - 1, -1, -1))

    found = []
    for i, row in enumerate(rows[:-1]):
        end = min(i + n_step, len(rows) - 1)
        if end == i + n_step or rows[end].terminated or rows[end].truncated:
            reward = sum(0.5**k * rows[i + 1 + k].reward for k in range(end - i))
            discount = 0.0 if rows[end].terminated else 0.5 ** (end - i)
            found.append(Drawn(stack(i), row.action, reward, discount, stack(end)))
    return found


def test_every_row_of_a_ring_of_cartpole_obeys_its_physics():
    """Sampled as training samples it: 840 rows into a ring of 500, each step taken once more."""
    settings = {"num_envs_per_env_runner": 3, "rollout_fragment_length": 7, "train_batch_size": 21}
    config = steppe.PPOConfig(env="CartPole-v1", fcnet_hiddens=[4], seed=0, write_run=False, **settings)
    replay, stored = Replay(500), 0
    with config.build() as algo:
        for _ in range(40):
            stored += sum(replay.add(rollout) for part in algo.runner.sample() for rollout in part.rollouts)
    columns = replay.columns(replay._ready.members)
    assert stored > 840
    assert np.count_nonzero(columns["discount"] == 0) > 10
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    found = []
    for obs, action in zip(columns["obs"], columns["action"], strict=True):
        env.state, env.steps_beyond_terminated = tuple(obs.astype(float)), None
        found.append(env.step(int(action)))
    assert columns["next_obs"] == pytest.approx(np.array([step[0] for step in found]), abs=1e-5)
    assert columns["reward"].tolist() == [step[1] for step in found]
    assert (columns["discount"] == 0).tolist() == [step[2] for step in found]


# --- overwriting, stacks, columns, states ----------------------------------------------------------------


def test_rows_whose_first_frames_were_overwritten_are_not_sampled():
    """Five rows of one trajectory in a ring of four: 1 is gone, so stacks of three begin with 4."""
    replay = Replay(4, framestack=3)
    replay.add(by_hand([[1], [2], [3], [4], [5]], t=[[0], [1], [2], [3], [4]]))
    assert len(replay) == 1
    columns = replay.sample(np.random.default_rng(0), 1, 2)
    assert columns["obs"].tolist() == [[[2, 3, 4]] * 2]
    assert columns["next_obs"].tolist() == [[[3, 4, 5]] * 2]


def test_the_first_observation_stands_for_those_that_never_were():
    replay = Replay(9, framestack=4, n_step=2)
    replay.add(by_hand([[1], [2], [3]], t=[[0], [1], [2]]))
    columns = replay.sample(np.random.default_rng(0), 1, 1)
    assert columns["obs"].tolist() == [[[1, 1, 1, 1]]]
    assert columns["next_obs"].tolist() == [[[1, 1, 2, 3]]]


def test_a_terminated_outcome_is_not_bootstrapped_from_and_a_truncated_one_is():
    rows = by_hand([[1, 4], [2, 5], [3, 6]], t=[[0, 0], [1, 1], [2, 2]], continues=False)
    last = np.arange(3)[:, None] == 2
    rows = replace(rows, terminated=last & [True, False], truncated=last & [False, True])
    replay = Replay(9, n_step=3, gamma=0.5)
    replay.add(rows)
    assert outcomes(replay) == {1: (3.5, 0.0, 3), 2: (3.0, 0.0, 3), 4: (8.0, 0.25, 6), 5: (6.0, 0.5, 6)}


def test_actions_that_are_chosen_later_arrive_with_the_next_fragment():
    """Nobody had acted when the first fragment closed, and row 3 was not answered when the second did."""
    replay = Replay(9)
    assert replay.add(by_hand([[1]], t=[[0]], action=False)) == 1
    assert len(replay) == 0
    second = by_hand([[1], [2], [3]], t=[[0], [1], [2]], sequence=1)
    second.action[:, 0] = 11, 12, 0
    assert replay.add(second) == 2
    third = by_hand([[3], [5]], t=[[2], [3]], sequence=2)
    third.action[:, 0] = 13, 0
    assert replay.add(third) == 1
    assert {number: int(row["action"]) for number, row in everything(replay).items()} == {1: 11, 2: 12, 3: 13}


@pytest.mark.parametrize(("framestack", "wanted"), [(1, [2, 8, 9]), (2, [9])])
def test_one_that_was_silent_while_the_ring_turned_is_stored_anew(framestack, wanted):
    """Row 2 waits in its lane while the other acts; the row before it is forgotten by then."""
    replay = Replay(5, gamma=0.5, framestack=framestack)
    stored = [replay.add(by_hand([[1, 3], [2, 4]], t=[[0, 0], [1, 1]]))]
    for i in range(5, 10):
        rows = by_hand([[2, i - 1], [0, i]], t=[[1, i - 4], [0, i - 3]], sequence=i - 4)
        stored.append(replay.add(rows))
    assert stored == [4, 1, 1, 1, 1, 2]
    replay.add(by_hand([[2, 9], [11, 10]], t=[[1, 6], [2, 7]], sequence=6))
    columns = replay.columns(np.sort(replay._ready.members))
    newest = columns["obs"].reshape(-1, framestack)[:, -1]
    assert sorted(newest.tolist()) == wanted
    assert columns["reward"][newest == 2].tolist() == [11.0] * (framestack == 1)


def test_columns_keep_their_form_and_dtype():
    base = by_hand([[1], [2]], t=[[0], [1]])
    image = np.arange(2 * 12, dtype=np.uint8).reshape(2, 1, 2, 2, 3)
    obs = {"image": image, "rest": (base.obs.astype(np.float64), base.t[..., None])}
    action = (base.action, np.ones((2, 1, 2), np.float32))
    replay = Replay(5, framestack=2)
    replay.add(replace(base, obs=obs, action=action))
    columns = replay.sample(np.random.default_rng(0), 3, 4)
    assert columns["obs"]["image"].shape == (3, 4, 2, 2, 2, 3)
    assert columns["obs"]["image"].dtype == np.uint8
    assert columns["next_obs"]["image"][2, 1].tolist() == image[:, 0].tolist()
    assert columns["obs"]["rest"][0].dtype == np.float64
    assert columns["obs"]["rest"][1].shape == (3, 4, 2, 1)
    assert columns["action"][0].shape == (3, 4)
    assert columns["action"][1].shape == (3, 4, 2)
    assert {name: columns[name].dtype.name for name in ("reward", "discount", "weight", "index")} == {
        "reward": "float32",
        "discount": "float32",
        "weight": "float32",
        "index": "int32",
    }


def test_each_row_is_as_probable_as_any_other():
    rows = by_hand(1 + np.arange(80).reshape(20, 4), t=np.arange(20)[:, None].repeat(4, axis=1))
    replay = Replay(60)
    replay.add(rows)
    columns = replay.sample(np.random.default_rng(1), 100, 560)
    count = np.bincount(columns["index"].ravel(), minlength=60)
    assert len(replay) == np.count_nonzero(count) == 56
    expected = 1000.0
    assert ((count[count > 0] - expected) ** 2 / expected).sum() < 83  # 99 % of chi-square with 55 degrees
    assert (columns["weight"] == 1).all()


@settings(max_examples=15)
@given(scripts, POLICIES, sizes)
def test_a_replay_goes_on_from_its_state(drawn, policy, size):
    replay = Replay(**size)
    _, rollouts = turns(drawn, policy, 2)
    half = len(rollouts) // 2
    for rollout in rollouts[:half]:
        replay.add(rollout)
    again = Replay(**size)
    again.set_state(copy.deepcopy(replay.get_state()))
    assert state_hash(again.get_state()) == state_hash(replay.get_state())
    for rollout in rollouts[half:]:
        assert again.add(rollout) == replay.add(rollout)
    assert diff(again.get_state(), replay.get_state()) == []
    if len(replay):
        drawn_once, drawn_again = (one.sample(np.random.default_rng(3), 2, 8) for one in (replay, again))
        assert diff(drawn_once, drawn_again) == []


def test_a_large_replay_survives_a_checkpoint(tmp_path):
    """100,000 rows of a Dict with a Tuple in it."""
    numbers = 1 + np.arange(100_000).reshape(-1, 10)
    base = by_hand(numbers, t=np.arange(len(numbers))[:, None].repeat(10, axis=1))
    obs = {"a": (base.obs, base.t), "b": numbers[..., None].repeat(3, axis=2).astype(np.uint8)}
    replay, again = Replay(150_000, n_step=3, framestack=2), Replay(150_000, n_step=3, framestack=2)
    assert replay.add(replace(base, obs=obs)) == 100_000
    checkpoint.save(tmp_path / "c", {"learner": {"replay": replay.get_state()}}, {"run_id": "test"})
    again.set_state(checkpoint.load(tmp_path / "c")[0]["learner"]["replay"])
    assert diff(*(one.sample(np.random.default_rng(0), 2, 64) for one in (replay, again))) == []
    assert again.add(replace(base, obs=obs, sequence=1)) == replay.add(replace(base, obs=obs, sequence=1))
    assert state_hash(again.get_state()) == state_hash(replay.get_state())


def test_a_state_of_other_sizes_is_refused():
    replay = Replay(9)
    replay.add(FIRST)
    with pytest.raises(CheckpointError, match=r"has capacity=9, this one capacity=10: go on with the value"):
        Replay(10).set_state(replay.get_state())
