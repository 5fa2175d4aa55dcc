"""Envs that fail are made anew: what is said, counted and kept, and that the others do not notice."""

import json
import logging
from collections import Counter
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from pettingzoo import ParallelEnv

import steppe
from steppe.envs import restarting
from steppe.errors import EnvError
from steppe.seeding import env_seed
from steppe.types import EpisodeEnd


class SimulatorError(Exception):
    """What an env of the user raises."""


class Plan:
    """What happens where, by vector index: ``plan[i]`` holds, for each incarnation of env i, its life.

    A life is a dict from a moment to what happens then: "make", "close", "reset 0" (the first), "step 4" (the
    fourth of all its steps); an exception is raised, anything else is returned.
    """

    def __init__(self, **lives):
        self.lives = {int(name[1:]): list(own) for name, own in lives.items()}
        self.made = Counter()
        self.seeds, self.steps, self.closed = [], Counter(), Counter()

    def next_life(self, i):
        self.made[i] += 1
        own = self.lives.get(i, [])
        return own.pop(0) if own else {}


class Walker(gymnasium.Env):
    """Five steps an episode; observes who it is, which incarnation, the episode and the step."""

    def __init__(self, ctx):
        self.plan, self.index = ctx["plan"], ctx.vector_index
        self.life = self.plan.next_life(self.index)
        self.incarnation = self.plan.made[self.index] - 1
        self.observation_space = gymnasium.spaces.Box(-1, 1000, (4,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)
        self.episode, self.all_steps = -1, 0
        self.now("make", None)

    def now(self, moment, result):
        happens = self.life.get(moment, result)
        if isinstance(happens, BaseException):
            raise happens
        return happens

    def look(self):
        return np.array([self.index, self.incarnation, self.episode, self.t], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.plan.seeds.append(seed)
        self.episode, self.t = self.episode + 1, 0
        return self.now(f"reset {self.episode}", (self.look(), {}))

    def step(self, action):
        self.t, self.all_steps = self.t + 1, self.all_steps + 1
        result = self.now(f"step {self.all_steps}", (self.look(), 1.0, self.t == 5, False, {}))
        self.plan.steps[self.index] += 1
        return result

    def close(self):
        self.plan.closed[self.index] += 1
        self.now("close", None)


def built(plan, num_envs=3, env=Walker, **more):
    # A dict of the env's own is not copied for each: all share one plan.
    creator = more.pop("creator", lambda ctx: env(restored(ctx, plan)))
    return restarting.build(creator, {}, num_envs=num_envs, run_seed=7, **more)


def restored(ctx, plan):
    ctx["plan"] = plan
    return ctx


def boom(text="it died"):
    return SimulatorError(text)


def play(env, polls, action=1):
    """Poll and answer everybody; returns what was polled."""
    seen = []
    for _ in range(polls):
        steps = env.poll()
        seen.append(steps)
        for step in steps:
            waits = step.slot[~(step.terminated | step.truncated)]
            env.send_actions(waits, np.full(len(waits), action))
    return seen


def rows_of(seen, i):
    """Rows of env i as tuples, in the order in which they came."""
    live, rows = {}, []
    for steps in seen:
        for step in steps:
            live |= {info.slot: info for info in step.opened}
            for row, slot in enumerate(step.slot.tolist()):
                if live[slot].env == i:
                    final = bool(step.terminated[row] or step.truncated[row])
                    rows.append((*step.obs[row].tolist(), float(step.reward[row]), final, live[slot].episode))
    return rows


def lost_of(seen):
    return [end for steps in seen for step in steps for end in step.lost]


def test_the_env_begins_anew_and_the_others_do_not_notice(caplog):
    plan = Plan(e1=[{"step 8": boom()}])
    seen = play(built(plan), 12)
    whole = play(built(Plan()), 12)
    assert rows_of(seen, 0) == rows_of(whole, 0)
    assert rows_of(seen, 2) == rows_of(whole, 2)
    rows = rows_of(seen, 1)
    # Five steps of episode 0, two of episode 1; in its place episode 2 begins, in the same poll.
    before, after = [row for row in rows if row[1] == 0], [row for row in rows if row[1] == 1]
    assert [row[3] for row in before] == [0, 1, 2, 3, 4, 0, 5, 1, 2]
    assert [row[-1] for row in before] == [0] * 5 + [1, 0, 1, 1]
    assert [row[3] for row in after[:4]] == [0, 1, 2, 3]
    assert {row[-1] for row in after} == {2}
    assert lost_of(seen) == [EpisodeEnd(1, 1, 2)]
    assert [len(steps[0].lost) for steps in seen] == [0] * 8 + [1] + [0] * 3
    assert plan.closed[1] == 1
    assert plan.made == {0: 1, 1: 2, 2: 1}
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    said = record.getMessage()
    assert "SimulatorError: it died" in said
    assert "Walker, runner 0, env 1, episode 1, step 3, seed" in said


def test_its_traceback_is_there_for_those_who_debug(caplog):
    caplog.set_level(logging.DEBUG, "steppe")
    play(built(Plan(e0=[{"step 1": boom()}])), 3)
    (record,) = [r for r in caplog.records if r.levelno == logging.DEBUG]
    assert "in step" in logging.Formatter().formatException(record.exc_info)


def test_steps_are_those_that_returned():
    plan = Plan(
        e0=[{"step 3": boom()}], e1=[{"step 2": (None, 1.0, False, False, {})}], e2=[{"reset 1": boom()}]
    )
    env = built(plan)
    seen = play(env, 9)
    # Env 0 raised out of its third step; env 1 returned no observation in its second, which was a step; env 2
    # took all five, but its next episode did not begin, so that the last row never came.
    assert sorted(lost_of(seen)) == [EpisodeEnd(0, 0, 2), EpisodeEnd(1, 0, 2), EpisodeEnd(2, 0, 5)]
    assert env.env_steps == sum(plan.steps.values())
    assert env.health() == {"E503 SimulatorError": 2, "E503 EnvError": 1}


def test_seeds_are_new_ones_of_the_run_and_the_same_again():
    def seeds():
        plan = Plan(e0=[{"step 1": boom()}, {"step 2": boom()}], e2=[{"step 1": boom()}])
        play(built(plan), 8)
        return plan.seeds

    assert seeds() == [env_seed(7, 0, i) for i in range(6)]  # in the order of failures
    assert len(set(seeds())) == 6


def test_the_first_reset_is_the_users_own_error_at_once():
    plan = Plan(e1=[{"reset 0": boom()}])
    with pytest.raises(SimulatorError, match="it died") as raised:
        built(plan).poll()
    assert any("env 1, episode 0, step 0" in note for note in raised.value.__notes__)
    assert plan.made[1] == 1
    with pytest.raises(SimulatorError):
        built(Plan(e1=[{"make": boom()}]))


@pytest.mark.parametrize("moment", ["step 1", "reset 0", "make"])
def test_three_failures_alike_without_a_step_between_end_the_run(moment):
    lives = [{"step 2": boom("other")}, *[{moment: boom()} for _ in range(9)]]
    plan = Plan(e1=lives)
    env = built(plan)
    with pytest.raises(SimulatorError, match="it died") as raised:
        play(env, 20)
    assert plan.made[1] == 4  # the first life, and three that failed alike
    assert any("3 times in the same way" in note for note in raised.value.__notes__)
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def test_a_step_between_begins_the_count_anew():
    plan = Plan(e1=[{"step 2": boom()} for _ in range(6)])
    env = built(plan)
    play(env, 14)
    assert env.health() == {"E503 SimulatorError": 6}


def test_bad_data_is_no_step_between():
    plan = Plan(e1=[{"step 1": (np.full(4, np.nan, np.float32), 1.0, False, False, {})} for _ in range(9)])
    with pytest.raises(EnvError, match=r"E104.*\n.*env 1, episode 2, step 1") as raised:
        play(built(plan), 20)
    assert (raised.value.env, raised.value.episode) == (1, 2)
    assert plan.made[1] == 3


def test_ten_failures_of_any_kind_without_a_step_end_the_run():
    plan = Plan(e1=[{"step 1": boom(str(n))} for n in range(99)])
    with pytest.raises(SimulatorError, match="9") as raised:
        play(built(plan), 20)
    assert plan.made[1] == 10
    assert any("10 times without" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("most", [0, 2])
def test_there_may_be_a_limit_for_each_env(most):
    plan = Plan(e0=[{"step 3": boom()}, {"step 3": boom()}], e1=[{"step 2": boom()} for _ in range(5)])
    with pytest.raises(SimulatorError) as raised:
        play(built(plan, most_restarts=most), 20)
    assert plan.made[1] == most + 1
    assert any(f"max_env_restarts is {most}" in note for note in raised.value.__notes__)


def test_an_env_that_does_not_close_is_no_trouble():
    plan = Plan(e1=[{"step 2": boom(), "close": boom("not closed")}])
    env = built(plan)
    play(env, 5)
    env.close()
    assert plan.closed == {0: 1, 1: 2, 2: 1}
    env.close()


def test_closing_closes_all_and_raises_the_first_error():
    plan = Plan(e0=[{"close": boom("one")}], e1=[{"close": boom("two")}])
    with pytest.raises(SimulatorError, match="one"):
        built(plan).close()
    assert plan.closed == {0: 1, 1: 1, 2: 1}


def test_a_keyboard_interrupt_is_no_failure_of_an_env():
    plan = Plan(e1=[{"step 2": KeyboardInterrupt()}])
    env = built(plan)
    with pytest.raises(KeyboardInterrupt):
        play(env, 5)
    with pytest.raises(RuntimeError, match="failed before"):
        env.poll()


def visible(steps):
    return [
        (*[c.tolist() for c in (s.slot, s.t, s.obs, s.reward, s.terminated)], list(s.opened), list(s.lost))
        for s in steps
    ]


@pytest.mark.parametrize("polls", [3, 9, 14])
def test_a_restored_run_makes_the_same_restarts(polls):
    def plan():
        lives = [{"step 4": boom()}, {"step 7": boom()}, {"step 1": boom()}]
        return Plan(e0=[{"step 11": boom()}], e1=lives, e2=[{"reset 2": boom()}])

    theirs, ours = plan(), plan()
    env = built(theirs)
    play(env, polls)
    steps = env.poll()
    state = env.get_state()
    assert json.dumps(state, default=np.ndarray.tolist)
    again = built(ours)
    for i, own in theirs.lives.items():  # the same incarnations are alive, and have as long to live
        done = theirs.made[i] - 1
        while ours.made[i] <= done:
            again.get_sub_environments()[i].__init__(restored(steppe.EnvContext({}, 0, i), ours))
        assert ours.lives[i] == own or len(ours.lives[i]) == len(own)
    for mine, their in zip(again.get_sub_environments(), env.get_sub_environments(), strict=True):
        mine.all_steps = their.all_steps - their.t  # a replay plays its episode again
        mine.episode = their.episode - 1 - (their.episode > 0)
    assert again.set_state(state) == []
    assert sorted(info.seed for step in again.pending() for info in step.opened) == sorted(state["seeds"])
    assert again.env_steps == env.env_steps
    for one in (env, again):
        for step in one.pending():
            one.send_actions(step.slot, np.ones(len(step.slot), np.int64))
    assert steps
    for a, b in zip(play(env, 12), play(again, 12), strict=True):
        assert visible(a) == visible(b)
    assert again.health() == env.health()
    assert again.env_steps == env.env_steps


def test_a_state_of_another_number_of_envs_is_refused():
    state = built(Plan(), 2).get_state()
    with pytest.raises(steppe.CheckpointError, match="2 envs, here are 3"):
        built(Plan(), 3).set_state(state)


def test_oddities_are_said_once_for_all_lives(caplog):
    plan = Plan(e0=[{"step 2": boom()}, {"step 3": boom()}])
    env = built(plan, 1, max_episode_steps=3, creator=lambda ctx: Loud(restored(ctx, plan)))
    play(env, 9)
    assert sum("E101" in record.getMessage() for record in caplog.records) == 1
    assert (
        env.health()["E101 obs[3]"] == 4
    )  # the resets of three lives, and that of the second episode of the last one


class Loud(Walker):
    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        return obs - [0, 0, 0, 2], info


class Old:
    """The interface of old gym, around a Walker."""

    def __init__(self, ctx):
        self.inner = Walker(ctx)
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

    def seed(self, seed=None):
        self.inner.plan.seeds.append(seed)

    def reset(self):
        return self.inner.reset()[0]

    def step(self, action):
        obs, reward, done, _, info = self.inner.step(action)
        return obs, reward, done, info

    def close(self):
        self.inner.close()


class Pair(steppe.MultiAgentEnv):
    """Two agents; the second one skips every other turn."""

    def __init__(self, ctx):
        self.inner = Walker(ctx)
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        self.possible_agents = ["left", "right"]

    def reset(self, *, seed=None, options=None):
        obs, _ = self.inner.reset(seed=seed)
        return {"left": obs, "right": obs}, {}

    def step(self, actions):
        obs, reward, done, _, _ = self.inner.step(0)
        seen = {"left": obs} | ({} if self.inner.t % 2 and not done else {"right": obs})
        return seen, dict.fromkeys(seen, reward), {"__all__": done}, {"__all__": False}, {}

    def close(self):
        self.inner.close()


class Together(Pair):
    """The same without turns: a group needs all of its members."""

    def step(self, actions):
        obs, reward, done, _, _ = self.inner.step(0)
        seen = {"left": obs, "right": obs}
        return seen, dict.fromkeys(seen, reward), {"__all__": done}, {"__all__": False}, {}


def grouped(ctx):
    own = Together(ctx)
    both = [gymnasium.spaces.Tuple([space] * 2) for space in (own.observation_space, own.action_space)]
    return own.with_agent_groups({"team": ["left", "right"]}, obs_space=both[0], act_space=both[1])


class Zoo(ParallelEnv):
    """Two agents of PettingZoo, who act together."""

    metadata: ClassVar = {"name": "zoo"}

    def __init__(self, ctx):
        self.inner = Walker(ctx)
        self.possible_agents = self.agents = ["left", "right"]

    def observation_space(self, agent):
        return self.inner.observation_space

    def action_space(self, agent):
        return self.inner.action_space

    def reset(self, seed=None, options=None):
        obs, _ = self.inner.reset(seed=seed)
        self.agents = self.possible_agents[:]
        return dict.fromkeys(self.agents, obs), {agent: {} for agent in self.agents}

    def step(self, actions):
        obs, reward, done, cut, _ = self.inner.step(0)
        told = [dict.fromkeys(self.agents, value) for value in (obs, reward, done, cut)]
        infos = {agent: {} for agent in self.agents}
        self.agents = [] if done else self.agents
        return (*told, infos)

    def close(self):
        self.inner.close()


KINDS = [Walker, Old, Pair, grouped, lambda ctx: steppe.ParallelPettingZooEnv(Zoo(ctx))]


@pytest.mark.parametrize("make", KINDS, ids=["gym", "legacy", "agents", "groups", "PettingZoo"])
def test_all_kinds_that_step_one_by_one(make, caplog):
    caplog.set_level(logging.ERROR)
    plan = Plan(e1=[{"step 8": boom()}, {"step 4": boom()}])
    env = restarting.build(lambda ctx: make(restored(ctx, plan)), {}, num_envs=2, run_seed=7)
    live, seen = {}, 0
    for _ in range(16):
        steps = env.poll()
        for end in steps[0].lost:
            gone = [slot for slot, info in live.items() if (info.env, info.episode) == (end.env, end.episode)]
            assert gone  # who lives in them will not be heard of again
            for slot in gone:
                del live[slot]
        for step in steps:
            assert not live.keys() & {info.slot for info in step.opened}
            live |= {info.slot: info for info in step.opened}
            over = step.terminated | step.truncated
            for slot in step.slot[over].tolist():
                del live[slot]
            waits = step.slot[~over]
            assert set(waits.tolist()) <= live.keys()
            action = gymnasium.vector.utils.batch_space(gymnasium.spaces.Discrete(3), len(waits)).sample()
            both = make is grouped
            env.send_actions(waits, (action, action) if both else action)
            seen += len(waits)
    assert env.health()["E503 SimulatorError"] == 2
    assert env.env_steps == sum(plan.steps.values())
    assert {(info.env, info.episode) for info in live.values()} == {(0, 3), (1, 3)}
    assert seen > 16


class Low(steppe.BaseEnv):
    def poll(self):
        return {}, {}, {}, {}, {}, {}

    def send_actions(self, actions):
        pass


def several(ctx):
    return gymnasium.vector.SyncVectorEnv([lambda: Walker(restored(ctx, Plan()))] * 2)


@pytest.mark.parametrize("make", [several, lambda ctx: Low()])
def test_what_steps_its_envs_itself_is_refused(make):
    with pytest.raises(steppe.ConfigError, match="on_env_error='restart' is for envs that step one by one"):
        restarting.build(lambda ctx: make(ctx), {}, num_envs=2, run_seed=0)


def test_observation_fn_is_refused():
    with pytest.raises(steppe.ConfigError, match="observation_fn"):
        built(Plan(), observing=object())


def test_an_env_that_comes_back_with_other_spaces_ends_the_run():
    class Changing(Walker):
        def __init__(self, ctx):
            super().__init__(ctx)
            self.action_space = gymnasium.spaces.Discrete(3 + self.incarnation)

    plan = Plan(e1=[{"step 2": boom()}])
    with pytest.raises(steppe.ConfigError, match="spaces of its envs differ"):
        play(built(plan, env=Changing), 5)


class Stateful(Walker):
    """Gives its own state, of which env 1 says what no file can hold; takes none of env 2 back."""

    def get_state(self):
        return {"t": self.t, "episode": self.episode, "door": object() if self.life.get("door") else 0}

    def set_state(self, state):
        if self.index == 2:
            raise SimulatorError("not taken back")
        self.t, self.episode = state["t"], state["episode"]


def save(env):
    env.poll()
    env.get_state()


def test_what_cannot_be_saved_is_named_by_its_env_and_episode():
    env = built(Plan(e1=[{"step 7": boom()}, {"door": True}]), env=Stateful)
    play(env, 10)
    with pytest.raises(EnvError, match=r"E402(.|\n)*env 1, episode 2, step 3") as raised:
        save(env)
    assert (raised.value.env, raised.value.episode) == (1, 2)


def test_what_cannot_be_restored_begins_anew_and_is_named():
    plan = Plan(e2=[{"step 3": boom()}])
    env = built(plan, env=Stateful)
    play(env, 8)
    env.poll()
    again = built(Plan(), env=Stateful)
    (note,) = again.set_state(env.get_state())
    assert note.startswith("E402 env 2 (Stateful) begins a new episode, it was at step ")
    was, now = ({info.env: info for step in one.pending() for info in step.opened} for one in (env, again))
    assert now[2].episode == was[2].episode + 1
    assert (now[0], now[1]) == (was[0], was[1])
    seen = play(again, 1)  # nothing is new, and everybody waits
    assert [steps for steps in seen if steps] == []
