"""Envs of one agent in a vector env: the rows are those of the envs by themselves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import steppe
from steppe.envs.gym import GymEnv
from steppe.envs.vector import VectorEnv, VectorRows
from steppe.errors import ConfigError, EnvError


def pole(index):
    return gymnasium.make("CartPole-v1", max_episode_steps=12 + index)


class OldWalk:
    """A walk with the old interface, without a base class: until 3 or -3, or five steps."""

    observation_space, action_space = (
        gymnasium.spaces.Box(-3, 3, (1,), np.float32),
        gymnasium.spaces.Discrete(2),
    )

    def __init__(self, index):
        self.index, self.seeds, self.closed, self.rng = index, [], 0, np.random.RandomState(0)

    def seed(self, seed=None):
        self.seeds.append(seed)
        self.rng = np.random.RandomState(seed % 2**32)

    def reset(self):
        self.at, self.t = self.rng.randint(-1, 2), 0
        return np.array([self.at], np.float32)

    def step(self, action):
        self.at, self.t = self.at + 2 * action - 1, self.t + 1
        out, late = abs(self.at) >= 3, self.t == 5
        info = {"TimeLimit.truncated": True} if late and not out else {}
        return np.array([self.at], np.float32), float(self.at), out or late, info

    def render(self, mode="human"):
        return f"walk {self.index} at {self.at}"

    def close(self):
        self.closed += 1


def rows_of(env, polls, seed=0):
    """Every row by env, as (episode, t, obs, reward, terminated, truncated)."""
    rng, who, found = np.random.default_rng(seed), {}, {}
    for _ in range(polls):
        (step,) = env.poll()
        who |= {info.slot: info for info in step.opened}
        columns = (step.slot, step.t, step.obs, step.reward, step.terminated, step.truncated)
        for slot, t, *row in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(who[slot].env, []).append((who[slot].episode, t, *row))
        acting = np.sort(step.slot[~(step.terminated | step.truncated)])
        actions = dict(zip(range(env.num_envs), rng.integers(0, 2, env.num_envs), strict=True))
        env.send_actions(acting, np.array([actions[who[slot].env] for slot in acting.tolist()]))
    return {i: sorted(rows) for i, rows in found.items()}


@pytest.mark.parametrize("make", [pole, OldWalk])
def test_rows_are_those_of_the_envs_by_themselves(make):
    from steppe.envs.legacy_gym import modern_step, modernize

    seeds = [5, 6, 7]
    ours = VectorRows(steppe.VectorEnv.wrap(make, num_envs=3), seeds=seeds)
    plain = GymEnv([modernize(make(i)) for i in range(3)], seeds=seeds, modern_step=modern_step)
    found = rows_of(ours, 60)
    assert found == rows_of(plain, 60)
    ends = [row[4:] for rows in found.values() for row in rows if row[4] or row[5]]
    assert {(True, False), (False, True)} <= set(ends) or make is pole
    assert len(ends) > 8


def test_training_through_it_is_training_on_the_envs():
    small = {"train_batch_size": 80, "minibatch_size": 40, "num_epochs": 2, "fcnet_hiddens": [8]}
    small |= {"num_envs_per_env_runner": 4, "write_run": False, "seed": 3}

    def wrapped(ctx):
        return steppe.VectorEnv.wrap(lambda i: gymnasium.make("CartPole-v1"), num_envs=ctx.num_envs)

    results = []
    for env in (wrapped, "CartPole-v1"):
        with steppe.PPOConfig(env=env, **small).build() as algo:
            algo.train()
            result = algo.train()
            weights = algo.get_weights()
        results.append((result["episode_reward_mean"], result["episodes_total"], weights))
    (one, count, ours), (other, same, theirs) = results
    assert (one, count) == (other, same)
    for a, b in zip(_leaves(ours), _leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def _leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])]
    return [np.asarray(tree)]


def test_envs_that_are_there_come_first_and_the_rest_is_made():
    made = []

    def make(index):
        made.append(index)
        return OldWalk(index)

    first = [OldWalk(0), pole(1)]
    env = VectorEnv.wrap(make, first, 4)
    assert made == [2, 3]
    assert env.num_envs == len(env.get_sub_environments()) == 4
    assert env.get_sub_environments()[1] is first[1]
    assert env.observation_space == OldWalk.observation_space
    assert VectorEnv.wrap(existing_envs=[OldWalk(0), OldWalk(1)]).num_envs == 2
    wide, three = gymnasium.spaces.Box(-9, 9, (1,), np.float32), gymnasium.spaces.Discrete(3)
    given = VectorEnv.wrap(OldWalk, num_envs=1, action_space=three, observation_space=wide)
    assert (given.observation_space, given.action_space) == (wide, three)


def test_the_old_methods_one_by_one():
    env = VectorEnv.wrap(OldWalk, num_envs=2)
    obs, infos = env.vector_reset(seeds=[1, 2])
    assert [walk.env.seeds for walk in env.get_sub_environments()] == [[1], [2]]
    assert infos == [{}, {}]
    starts = [int(one[0]) for one in obs]
    obs, rewards, terminated, truncated, infos = env.vector_step([1, 0])
    assert [int(one[0]) for one in obs] == rewards == [starts[0] + 1, starts[1] - 1]
    assert (terminated, truncated, infos) == ([False] * 2, [False] * 2, [{}, {}])
    for _ in range(4):
        result = env.vector_step([0, 1] if _ % 2 else [1, 0])
    assert [a or b for a, b in zip(*result[2:4], strict=True)] == [True, True]
    first, info = env.reset_at(1)
    assert info == {}
    assert first.shape == (1,)
    assert env.try_render_at(1) == f"walk 1 at {int(first[0])}"
    assert env.try_render_at().startswith("walk 0")
    before = env.get_sub_environments()
    env.restart_at(1)
    after = env.get_sub_environments()
    assert after[0] is before[0]
    assert after[1] is not before[1]
    assert before[1].env.closed == 1
    env.close()
    assert [walk.env.closed for walk in after] == [1, 1]


def test_what_cannot_be_wrapped():
    with pytest.raises(ConfigError, match=r"VectorEnv.wrap: 2 of 3 envs are missing and make_env is None"):
        VectorEnv.wrap(existing_envs=[OldWalk(0)], num_envs=3)
    with pytest.raises(ConfigError, match="1 of 1 envs are missing"):
        VectorEnv.wrap()

    class Short(OldWalk):
        def step(self, action):
            return super().step(action)[:3]

    rows = VectorRows(VectorEnv.wrap(Short, num_envs=2), seeds=[0, 1])
    rows.poll()
    rows.send_actions(np.arange(2), np.zeros(2, np.int64))
    with pytest.raises(EnvError, match="E301"):
        rows.poll()
