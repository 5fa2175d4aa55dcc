"""PettingZoo envs: each agent is told what PettingZoo's own loop tells it, and every episode ends."""

import copy
import itertools
from collections import defaultdict
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import pettingzoo
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.env_registry.exceptions import FailedToImport
from pettingzoo.utils.wrappers import OrderEnforcingWrapper

import steppe
from steppe import spaces
from steppe.envs.agents import MultiAgentRows
from steppe.envs.pettingzoo import ParallelPettingZooEnv, PettingZooEnv

BOX = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)


@dataclass
class Move:
    """What one move does: rewards by agent, who terminates or is truncated, who is next among the living."""

    rewards: dict[str, float] = field(default_factory=dict)
    terminates: tuple[str, ...] = ()
    truncates: tuple[str, ...] = ()
    next: int = 0
    removes: tuple[str, ...] = ()


class Scripted(AECEnv):
    """Plays a list of moves whatever the actions; an observation is (moves so far, index of the agent)."""

    metadata = {"name": "scripted_v0"}  # noqa: RUF012 - as PettingZoo has it

    def __init__(self, names, moves):
        self.possible_agents, self.moves, self.render_mode = list(names), moves, None
        self.taken, self.buffer, self.closed = [], np.zeros(2, np.float32), 0

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(2 + self.possible_agents.index(agent))

    def reset(self, seed=None, options=None):
        self.agents, self.at, self.seed, self.options = list(self.possible_agents), 0, seed, options
        self.rewards, self._cumulative_rewards = dict.fromkeys(self.agents, 0), dict.fromkeys(self.agents, 0)
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.infos, self.agent_selection = {agent: {} for agent in self.agents}, self.agents[0]
        self._skip_agent_selection = None

    def observe(self, agent):
        self.buffer[:] = self.at, self.possible_agents.index(agent)  # one buffer for all
        return self.buffer

    def state(self):
        return np.array([self.at])

    def render(self):
        return f"move {self.at}"

    def close(self):
        self.closed += 1

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        self.taken.append((agent, action))
        move, self.at = self.moves[self.at], self.at + 1
        self._cumulative_rewards[agent] = 0
        self.rewards = {one: move.rewards.get(one, 0) for one in self.agents}
        self.terminations.update((one, True) for one in move.terminates if one in self.agents)
        self.truncations.update((one, True) for one in move.truncates if one in self.agents)
        if self.at == len(self.moves):
            self.truncations.update((one, True) for one in self.agents if not self.terminations[one])
        self._accumulate_rewards()
        for one in move.removes:
            self.agents.remove(one)
        alive = [one for one in self.agents if not (self.terminations[one] or self.truncations[one])]
        if alive:
            self.agent_selection = alive[move.next % len(alive)]
        self._deads_step_first()


def told(env, choose=lambda agent, obs: 0, seed=5):
    """What each agent is told in one episode of a MultiAgentEnv: observation, reward and flags."""
    obs, infos = env.reset(seed=seed)
    assert set(infos) == set(obs)
    found = defaultdict(list)
    for agent, one in obs.items():
        found[agent].append((copied(one), 0.0, False, False))
    waiting = defaultdict(float)
    while True:
        obs, rewards, terminateds, truncateds, _ = env.step({a: choose(a, o) for a, o in obs.items()})
        for agent, reward in rewards.items():
            waiting[agent] += reward
        over = terminateds["__all__"] or truncateds["__all__"]
        for agent in [*obs, *(a for a in terminateds if a != "__all__" and a not in obs)]:
            flags = bool(terminateds[agent]), bool(truncateds[agent])
            found[agent].append((copied(obs.get(agent)), waiting.pop(agent, 0.0), *flags))
        obs = {a: o for a, o in obs.items() if not (terminateds[a] or truncateds[a])}
        if over:
            assert not obs
            assert not any(waiting.values())
            return dict(found)


def told_by_pettingzoo(env, choose=lambda agent, obs: 0, seed=5):
    """The same by the loop of PettingZoo's documentation."""
    env.reset(seed=seed)
    found = defaultdict(list)
    for agent in env.agent_iter():
        obs, reward, terminated, truncated, _ = env.last()
        found[agent].append((copied(obs), float(reward), bool(terminated), bool(truncated)))
        env.step(None if terminated or truncated else choose(agent, obs))
    return dict(found)


def copied(obs):
    if isinstance(obs, dict):
        return {key: copied(value) for key, value in obs.items()}
    if obs is None:
        return None
    array = np.array(obs)
    return array.tolist() if array.size < 1000 else array.tobytes()  # images


# --- AEC: agents that move by turns


def test_a_game_with_a_death_in_the_middle_and_a_mixed_ending_number_by_number():
    moves = [
        Move({"a": 1, "b": 2, "c": 4}, next=1),
        Move({"a": 10, "b": 20, "c": 40}, terminates=("b",), next=1),
        Move({"a": 100, "c": 200}, terminates=("a",), truncates=("c",)),
    ]
    env = PettingZooEnv(Scripted("abc", moves))
    obs, infos = env.reset(seed=7, options={"size": 3})
    assert (env.env.seed, env.env.options) == (7, {"size": 3})
    assert (copied(obs), infos) == ({"a": [0, 0]}, {"a": {}})
    assert [copied(one) for one in env.step({"a": 1})] == [
        {"b": [1, 1]},
        {"b": 2},
        {"b": False, "__all__": False},
        {"b": False, "__all__": False},
        {"b": {}},
    ]
    # b's own buffer would by now hold c's observation.
    obs, rewards, terminateds, truncateds, _ = env.step({"b": 1})
    assert copied(obs) == {"b": [2, 1], "c": [2, 2]}
    assert rewards == {"b": 20, "c": 4 + 40}
    assert terminateds == {"b": True, "c": False, "__all__": False}
    assert truncateds == {"b": False, "c": False, "__all__": False}
    obs, rewards, terminateds, truncateds, _ = env.step({"c": 3})
    assert copied(obs) == {"a": [3, 0], "c": [3, 2]}
    assert rewards == {"a": 1 + 10 + 100, "c": 200}
    assert terminateds == {"a": True, "c": False, "__all__": False}
    assert truncateds == {"a": False, "c": True, "__all__": True}
    assert env.env.taken == [("a", 1), ("b", 1), ("c", 3)]
    assert copied(env.step({})[2]) == {"__all__": True}


def test_an_agent_that_never_acts_has_its_last_observation_alone():
    env = PettingZooEnv(Scripted("ab", [Move({"b": -1}, terminates=("b",)), Move()]))
    env.reset()
    obs, rewards, terminateds, *_ = env.step({"a": 0})
    assert copied(obs) == {"b": [1, 1], "a": [1, 0]}
    assert rewards == {"b": -1, "a": 0}
    assert terminateds == {"b": True, "a": False, "__all__": False}


def test_all_terminate_in_one_step_and_both_flags_are_passed_on():
    env = PettingZooEnv(Scripted("ab", [Move({"a": 1}, terminates=("a", "b"), truncates=("b",))]))
    env.reset()
    obs, rewards, terminateds, truncateds, _ = env.step({"a": 0})
    assert (list(obs), rewards) == (["a", "b"], {"a": 1, "b": 0})
    assert terminateds == {"a": True, "b": True, "__all__": True}
    assert truncateds == {"a": False, "b": True, "__all__": False}


def test_agents_that_are_removed_without_a_last_turn_end_with_what_they_earned():
    moves = [Move({"b": 2, "c": 3}, removes=("b",), next=1), Move({"a": 5}, removes=("a", "c"))]
    env = PettingZooEnv(Scripted("abc", moves))
    env.reset()
    obs, rewards, terminateds, truncateds, _ = env.step({"a": 0})
    assert (list(obs), rewards) == (["c"], {"c": 3, "b": 2})
    assert terminateds == {"c": False, "b": False, "__all__": False}
    assert truncateds == {"c": False, "b": True, "__all__": False}
    obs, rewards, terminateds, truncateds, _ = env.step({"c": 0})
    assert (obs, rewards) == ({}, {"a": 5, "c": 0})
    assert truncateds == {"a": True, "c": True, "__all__": True}


@st.composite
def games(draw):
    names = "abcd"[: draw(st.integers(1, 4))]
    some = st.sets(st.sampled_from(names)).map(lambda found: tuple(sorted(found)))
    rare = st.one_of(st.just(()), st.just(()), some)
    rewards = st.dictionaries(st.sampled_from(names), st.integers(-9, 9))
    move = st.builds(Move, rewards=rewards, terminates=rare, truncates=rare, next=st.integers(0, 3))
    return names, draw(st.lists(move, min_size=1, max_size=10))


@given(games())
def test_each_agent_is_told_what_pettingzoo_tells_it(game):
    names, moves = game
    ours = told(PettingZooEnv(Scripted(names, moves)))
    assert ours == told_by_pettingzoo(OrderEnforcingWrapper(Scripted(names, moves)))
    for one in ours.values():
        assert [terminated or truncated for *_, terminated, truncated in one[:-1]] == [False] * (len(one) - 1)


@pytest.mark.parametrize("kind", [PettingZooEnv, ParallelPettingZooEnv])
def test_each_episode_has_a_seed_of_its_own(kind):
    def seeds(first):
        env = kind(Scripted("ab", [Move()]) if kind is PettingZooEnv else Together([]))
        found = []
        for seed in (first, None, None):
            env.reset(seed=seed)
            found.append(env.env.seed)
        return found

    assert seeds(None) == [None, None, None]
    assert seeds(4)[0] == 4
    assert len({*seeds(4), *seeds(5)}) == 6
    assert seeds(4) == seeds(4)


def test_a_move_out_of_turn_and_an_env_that_does_not_go_on_are_told():
    env = PettingZooEnv(Scripted("ab", [Move(next=1), Move()]))
    env.reset()
    with pytest.raises(ValueError, match=r"it is the turn of 'a' alone, the actions are of \['b'\]"):
        env.step({"b": 0})
    with pytest.raises(ValueError, match=r"the actions are of \['a', 'b'\]"):
        env.step({"a": 0, "b": 0})
    stuck = Scripted("ab", [Move(terminates=("b",))])
    stuck._was_dead_step = lambda action: None
    env = PettingZooEnv(stuck)
    env.reset()
    with pytest.raises(steppe.EnvError, match=r"(?s)E404.*'b'.*_was_dead_step.*scripted_v0"):
        env.step({"a": 0})


@pytest.mark.parametrize("kind", [PettingZooEnv, ParallelPettingZooEnv])
def test_spaces_state_render_and_close_are_the_envs_own(kind):
    inner = Scripted("ab", [Move()]) if kind is PettingZooEnv else Together([])
    env = kind(inner)
    env.reset()
    assert env.possible_agents == ["a", "b"]
    assert env.get_observation_space("b") is BOX
    assert env.get_action_space("b") == gymnasium.spaces.Discrete(3)
    assert env.state().tolist() == [0]
    assert env.render() == "move 0"
    assert env.metadata == inner.metadata
    env.close()
    assert inner.closed == 1


def test_another_kind_of_env_is_refused_with_the_class_to_use():
    with pytest.raises(steppe.ConfigError, match=r"Together.*use steppe.ParallelPettingZooEnv"):
        PettingZooEnv(Together([]))
    with pytest.raises(steppe.ConfigError, match=r"use steppe.PettingZooEnv"):
        ParallelPettingZooEnv(Scripted("ab", []))
    with pytest.raises(steppe.ConfigError, match=r"takes an AEC env.*function.*call it"):
        PettingZooEnv(lambda: Scripted("ab", []))
    with pytest.raises(steppe.ConfigError, match="takes a parallel env"):
        ParallelPettingZooEnv(gymnasium.make("CartPole-v1"))


# --- Parallel: agents that move together


class Together(ParallelEnv):
    """Returns scripted results, each with the agents that live after it."""

    metadata = {"name": "together_v0"}  # noqa: RUF012
    possible_agents = ("a", "b")
    closed = 0

    def __init__(self, results):
        self.results, self.taken = results, []

    def observation_space(self, agent):
        return BOX

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(2 + self.possible_agents.index(agent))

    def reset(self, seed=None, options=None):
        self.agents, self.seed, self.options = ["a", "b"], seed, options
        return {"a": 1, "b": 2}, {"a": {}, "b": {"x": 1}}

    def step(self, actions):
        self.taken.append(actions)
        self.agents, *result = self.results[len(self.taken) - 1]
        return tuple(result)

    def state(self):
        return np.array([0])

    def render(self):
        return "move 0"

    def close(self):
        self.closed += 1


def test_parallel_agents_die_apart_and_the_episode_ends_with_the_last():
    inner = Together(
        [
            (["a", "b"], {"a": 3, "b": 4}, {"a": 1, "b": 2}, {"a": 0, "b": 0}, {"a": 0, "b": 0}, {}),
            (["b"], {"a": 5, "b": 6}, {"a": 3, "b": 4}, {"a": 1, "b": 0}, {"a": 0, "b": 0}, {}),
            # a is described although it ended; its zero reward is of no account.
            ([], {"a": 7, "b": 8}, {"a": 0, "b": 9}, {"a": 1, "b": 0}, {"a": 0, "b": 1}, {}),
        ]
    )
    env = ParallelPettingZooEnv(inner)
    assert env.reset(seed=3, options={"n": 1}) == ({"a": 1, "b": 2}, {"a": {}, "b": {"x": 1}})
    assert (inner.seed, inner.options) == (3, {"n": 1})
    obs, rewards, terminateds, truncateds, _ = env.step({"a": 0, "b": 1})
    assert (obs, rewards) == ({"a": 3, "b": 4}, {"a": 1, "b": 2})
    assert not any([*terminateds.values(), *truncateds.values()])
    obs, rewards, terminateds, truncateds, _ = env.step({"a": 0, "b": 1})
    assert (obs, rewards) == ({"a": 5, "b": 6}, {"a": 3, "b": 4})
    assert terminateds == {"a": True, "b": False, "__all__": False}
    obs, rewards, terminateds, truncateds, _ = env.step({"b": 2})
    assert (obs, rewards["b"]) == ({"b": 8}, 9)
    assert (terminateds["__all__"], truncateds) == (False, {"a": 0, "b": 1, "__all__": True})
    assert inner.taken == [{"a": 0, "b": 1}, {"a": 0, "b": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("terminated", "truncated", "over"),
    [((1, 1), (0, 0), (True, False)), ((1, 0), (0, 1), (False, True)), ((0, 0), (1, 1), (False, True))],
)
@pytest.mark.parametrize("left", [[], ["a", "b"]])
def test_parallel_agents_that_end_together(terminated, truncated, over, left):
    flags = [dict(zip("ab", one, strict=True)) for one in (terminated, truncated)]
    env = ParallelPettingZooEnv(Together([(left, {"a": 3, "b": 4}, {"a": 1, "b": 2}, *flags, {})]))
    env.reset()
    obs, _, terminateds, truncateds, _ = env.step({"a": 0, "b": 0})
    assert obs == {"a": 3, "b": 4}
    assert (terminateds["__all__"], truncateds["__all__"]) == over


def test_parallel_agents_that_come_later_or_vanish_unsaid():
    none = {"a": 0, "b": 0}
    inner = Together(
        [
            (["b", "c"], {"b": 4, "c": 5}, {"b": 1}, none, none, {}),
            (["b", "c"], {"b": 4, "c": 5}, {"b": 1, "c": 2}, none, none, {}),
        ]
    )
    env = ParallelPettingZooEnv(inner)
    env.reset()
    obs, _, terminateds, truncateds, _ = env.step({"a": 0, "b": 0})
    assert obs == {"b": 4, "c": 5}
    assert (terminateds["a"], truncateds) == (0, {"a": True, "b": 0, "__all__": False})
    obs, _, _, truncateds, _ = env.step({"b": 0, "c": 0})
    assert (obs, truncateds) == ({"b": 4, "c": 5}, {"a": 0, "b": 0, "__all__": False})


def test_a_parallel_result_of_another_form_is_left_to_be_judged():
    env = ParallelPettingZooEnv(Together([(["a", "b"], {"a": 1}, "rewards")]))
    env.reset()
    assert env.step({"a": 0, "b": 0}) == ({"a": 1}, "rewards")


# --- Through the adapter: rows


def lived(rows, polls, choose=lambda agent, obs: 0):
    """The rows of some polls as tuples ``(agent, episode, t, observation, reward, how it ended)``.

    Rows that await an action already come first.
    """
    who, found = {}, []
    for steps in itertools.chain([rows.pending()], (rows.poll() for _ in range(polls))):
        for step in steps:
            who.update((info.slot, info) for info in step.opened)
        for step in steps:
            final, answered, actions = step.terminated | step.truncated, [], []
            for row, slot in enumerate(step.slot.tolist()):
                end = "terminated" if step.terminated[row] else "truncated" if step.truncated[row] else ""
                info, obs = who[slot], spaces.take(step.obs, row)
                place = info.agent, info.episode, int(step.t[row])
                found.append((*place, copied(obs), float(step.reward[row]), end))
                if not final[row]:
                    answered.append(slot)
                    actions.append(choose(info.agent, obs))
            if answered:
                rows.send_actions(np.array(answered), np.stack(actions))
    return found


def test_the_rows_of_a_game_by_turns_number_by_number():
    moves = [
        Move({"a": 1, "b": 2, "c": 4}, next=1),
        Move({"a": 10, "b": 20, "c": 40}, terminates=("b",), next=1),
        Move({"a": 100, "c": 200}, terminates=("a",), truncates=("c",)),
    ]
    rows = MultiAgentRows([PettingZooEnv(Scripted("abc", moves))], seeds=[3])
    found = lived(rows, 5)
    assert [pair.action.n for pair in rows.spaces] == [2, 3, 4]
    assert rows.env_steps == 4
    assert sorted(found, key=lambda row: row[1:3]) == [
        ("a", 0, 0, [0, 0], 0, ""),
        ("b", 0, 1, [1, 1], 2, ""),
        ("b", 0, 2, [2, 1], 20, "terminated"),
        ("c", 0, 2, [2, 2], 44, ""),
        ("a", 0, 3, [3, 0], 111, "terminated"),
        ("c", 0, 3, [3, 2], 200, "truncated"),
        ("a", 1, 0, [0, 0], 0, ""),
        ("b", 1, 1, [1, 1], 2, ""),
    ]


@given(games(), st.integers(1, 3))
def test_the_rows_are_what_pettingzoo_tells_each_agent(game, episodes):
    names, moves = game
    theirs = told_by_pettingzoo(Scripted(names, moves))
    rows, by_agent = MultiAgentRows([PettingZooEnv(Scripted(names, moves))], seeds=[3]), defaultdict(list)
    for agent, episode, _, *row in lived(rows, episodes * len(moves)):
        by_agent[agent, episode].append(tuple(row))
    for episode in range(episodes - 1):
        for agent, told in theirs.items():
            # Terminated and truncated at once has terminated.
            ends = ["terminated" if one[2] else "truncated" if one[3] else "" for one in told]
            assert by_agent[agent, episode] == [(*one[:2], end) for one, end in zip(told, ends, strict=True)]


class Blind(Scripted):
    """Shows nothing to those that ended."""

    def observe(self, agent):
        ended = self.terminations[agent] or self.truncations[agent]
        return None if ended else super().observe(agent)


def test_an_agent_that_is_shown_nothing_at_its_end_ends_with_what_it_saw_before():
    moves = [Move(next=1), Move({"a": 3}, terminates=("a",)), Move()]
    found = lived(MultiAgentRows([PettingZooEnv(Blind("ab", moves))], seeds=[3]), 3)
    assert [row for row in found if row[0] == "a"] == [
        ("a", 0, 0, [0, 0], 0, ""),
        ("a", 0, 2, [0, 0], 3, "terminated"),
    ]


class Dealt(Scripted):
    """Deals a card to each observation; without a seed its cards are anybody's guess."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.rng = np.random.default_rng(seed)

    def observe(self, agent):
        return super().observe(agent) + np.float32(self.rng.random())


def test_an_episode_is_resumed_in_the_middle():
    moves = [Move({"b": 1}, next=1), Move(), Move(), Move()]
    one, other = (MultiAgentRows([PettingZooEnv(Dealt("ab", moves))], seeds=[3]) for _ in range(2))
    lived(one, 10)
    one.poll()
    assert other.set_state(one.get_state()) == []
    found = lived(one, 6)
    assert found == lived(other, 6)
    assert len({row[3][0] for row in found}) == len(found) >= 6


# --- PettingZoo's own games


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def at_random(env, seed=0):
    """Chooses among the legal actions; the same every time it is made."""
    rng = np.random.default_rng(seed)

    def choose(agent, obs):
        if isinstance(obs, dict):
            return rng.choice(np.flatnonzero(obs["action_mask"]))
        space = copy.deepcopy(env.action_space(agent))
        space.seed(int(rng.integers(1 << 30)))
        return space.sample()

    return choose


def game(name, kind="aec", **kwargs):
    """A game of PettingZoo's, or a skipped test that says what is missing."""
    pytest.importorskip("pygame", reason="the games draw with pygame: extra pettingzoo", exc_type=ImportError)
    if name.startswith("mpe2."):
        module = pytest.importorskip(name, reason="mpe2 is not installed: extra pettingzoo")
        return module.env(**kwargs) if kind == "aec" else module.parallel_env(**kwargs)
    try:
        return pettingzoo.make(kind, name, **kwargs)
    except FailedToImport as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["classic/rps-v2", "classic/tictactoe-v3", "classic/connect_four-v3"])
def test_games_are_told_as_pettingzoo_tells_them(name):
    for seed in range(5):
        env, theirs = PettingZooEnv(game(name)), game(name)
        ours = told(env, at_random(env.env, seed), seed)
        assert ours == told_by_pettingzoo(theirs, at_random(theirs, seed), seed)
        assert all(one[-1][2] or one[-1][3] for one in ours.values())


def test_an_illegal_move_ends_the_game_and_costs_who_made_it(caplog):
    env = PettingZooEnv(game("classic/tictactoe-v3"))
    obs, _ = env.reset(seed=1)
    assert obs["player_1"]["action_mask"].tolist() == [1] * 9
    obs, *_ = env.step({"player_1": 4})
    assert obs["player_2"]["action_mask"].tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1]
    obs, rewards, terminateds, _, _ = env.step({"player_2": 4})
    assert "Illegal move" in caplog.text
    assert set(obs) == {"player_1", "player_2"}
    assert rewards == {"player_1": 0, "player_2": -1}
    assert terminateds == {"player_1": True, "player_2": True, "__all__": True}


CLASSIC = (
    "chess-v6 connect_four-v3 go-v5 hanabi-v5 leduc_holdem-v4 rps-v2 texas_holdem-v4 "
    "texas_holdem_no_limit-v6 tictactoe-v3"
)
MOVING = (
    "butterfly/cooperative_pong-v6 butterfly/knights_archers_zombies-v11 butterfly/pistonball-v6 "
    "sisl/multiwalker-v9 sisl/pursuit-v5"
)
PARTICLES = (
    "collect_treasure_v1 simple_adversary_v3 simple_crypto_v3 simple_formation_v1 simple_line_v1 "
    "simple_push_v3 simple_reference_v3 simple_speaker_listener_v4 simple_spread_v3 simple_tag_v3 simple_v3 "
    "simple_world_comm_v3"
)
TOGETHER = ["classic/rps-v2", *MOVING.split(), *(f"mpe2.{name}" for name in PARTICLES.split())]
GAMES = [
    *(("aec", f"classic/{name}") for name in CLASSIC.split()),
    *(("aec", name) for name in TOGETHER if name != "classic/rps-v2"),
    *(("parallel", name) for name in TOGETHER),
]
"""All that PettingZoo and MPE2 ship but Atari, by turns and together; MAgent and Waterworld left them."""

# Some games warn about themselves: one draws without being asked to, one has a space of float64 bounds.
of_games = pytest.mark.filterwarnings(
    "ignore:.*You are calling render method without specifying any render mode",
    "ignore:.*precision lowered by casting",
)


def adapted(kind, name):
    env = game(name, kind)
    return PettingZooEnv(env) if kind == "aec" else ParallelPettingZooEnv(env)


def rows_of(kind, name):
    env = adapted(kind, name)
    return MultiAgentRows([env], seeds=[3]), at_random(env.env)


@pytest.mark.slow
@of_games
@pytest.mark.parametrize(("kind", "name"), GAMES)
def test_a_game_runs_and_is_the_same_again_from_its_seed(kind, name):
    found = []
    for _ in range(2):
        rows, choose = rows_of(kind, name)
        found.append(lived(rows, 201, choose))
        assert rows.env_steps == 200
        assert not {code for code in rows.health() if not code.startswith("E106")}
        rows.close()
    assert found[0] == found[1]
    one, choose = rows_of(kind, name)
    lived(one, 120, choose)
    one.poll()
    again, _ = rows_of(kind, name)
    assert again.set_state(one.get_state()) == []
    ends = [lived(rows, 30, at_random(adapted(kind, name).env)) for rows in (one, again)]
    assert ends[0] == ends[1]
    live = set()
    for agent, episode, *_, end in found[0]:
        live = live - {(agent, episode)} if end else live | {(agent, episode)}
    assert len({episode for _, episode in live}) == 1, "agents of an episode that is over were left alive"


@pytest.mark.slow
@of_games
@pytest.mark.parametrize(
    ("kind", "name"), [one for one in GAMES if one[0] == "parallel" or "classic" in one[1]]
)
def test_a_game_trains_for_an_iteration(kind, name):
    env = adapted(kind, name)
    crews = sorted({crew(agent) for agent in env.possible_agents})
    image = len(env.get_observation_space(env.possible_agents[0]).shape or ()) == 3
    steps = 8 if image else 64  # images of many agents take their time
    config = steppe.PPOConfig(
        env=lambda config: adapted(kind, name),
        policies=crews,
        policy_mapping_fn=crew,
        num_envs_per_env_runner=1,
        train_batch_size=steps,
        minibatch_size=64,
        num_epochs=1,
        seed=0,
    )
    with config.build() as algorithm:
        result = algorithm.train()
    assert result["timesteps_total"] == steps
    assert result["agent_timesteps_total"] >= steps
    assert set(result["info"]) <= set(crews)


def crew(agent, *args, **kwargs):
    """Agents of one crew have the same spaces: ``adversary_0`` is of ``adversary``."""
    return agent.rstrip("0123456789").rstrip("_")


STATE = gymnasium.spaces.Box(-1e6, 1e6, (3,), np.float32)


class Stated(Scripted):
    """Has a global state, written to one buffer: moves so far, who lives, and whose turn it is."""

    state_space, whole = STATE, np.zeros(3, np.float32)

    def state(self):
        turn = self.possible_agents.index(self.agent_selection) if self.agents else -1
        self.whole[:] = self.at, len(self.agents), turn
        return self.whole


def test_the_global_state_by_turns_number_by_number():
    """The state of an agent's last row is that of the moment when PettingZoo comes to it."""
    env = PettingZooEnv(Stated("ab", [Move(next=1), Move(), Move(terminates=("a", "b"))]), state=True)
    space = gymnasium.spaces.Dict({"observation": BOX, "state": STATE})
    assert env.get_observation_space("b") == env.observation_spaces["a"] == space
    env.reset(seed=1)
    told = [copy.deepcopy(env.step({env.env.agent_selection: 0})[0]) for _ in range(3)]
    plain = [{a: (*one["observation"], *one["state"]) for a, one in obs.items()} for obs in told]
    assert plain == [
        {"b": (1, 1, 1, 2, 1)},
        {"a": (2, 0, 2, 2, 0)},
        {"a": (3, 0, 3, 2, 0), "b": (3, 1, 3, 1, 1)},
    ]


def test_the_global_state_of_agents_that_move_together():
    class Cross(Together):
        state_space = STATE

        def state(self):
            return np.array([len(self.taken), len(self.agents), 7], np.float32)

    nobody = {"a": False, "b": False}
    steps = [
        (["a", "b"], {"a": 3, "b": 4}, {"a": 1, "b": 1}, nobody, nobody, {"a": {}, "b": {}}),
        ([], {"a": 5, "b": 6}, {"a": 1, "b": 1}, {"a": True, "b": True}, nobody, {"a": {}, "b": {}}),
    ]
    env = ParallelPettingZooEnv(Cross(steps), state=True)
    first, _ = env.reset()
    told = [{a: (one["observation"], one["state"].tolist()) for a, one in first.items()}]
    for _ in steps:
        obs, *_ = env.step({"a": 0, "b": 0})
        told.append({a: (one["observation"], one["state"].tolist()) for a, one in obs.items()})
    assert told == [
        {"a": (1, [0, 2, 7]), "b": (2, [0, 2, 7])},
        {"a": (3, [1, 2, 7]), "b": (4, [1, 2, 7])},
        {"a": (5, [2, 0, 7]), "b": (6, [2, 0, 7])},
    ]


def test_a_dict_gets_the_state_as_another_key_and_what_has_none_is_refused():
    class Masked(Stated):
        def observation_space(self, agent):
            return gymnasium.spaces.Dict({"observation": BOX, "action_mask": STATE})

        def observe(self, agent):
            return {"observation": super().observe(agent), "action_mask": np.ones(3, np.float32)}

    env = PettingZooEnv(Masked("ab", [Move()]), state=True)
    obs, _ = env.reset()
    assert (
        set(obs["a"]) == set(env.get_observation_space("a").spaces) == {"observation", "action_mask", "state"}
    )

    class Taken(Stated):
        def observation_space(self, agent):
            return gymnasium.spaces.Dict({"state": BOX})

    with pytest.raises(steppe.ConfigError, match='observes has a key "state" already'):
        PettingZooEnv(Taken("ab", [Move()]), state=True)
    for kind, inner in ((PettingZooEnv, Scripted("ab", [Move()])), (ParallelPettingZooEnv, Together([]))):
        with pytest.raises(steppe.ConfigError, match="has no state_space, so it has no global state"):
            kind(inner, state=True)


def test_a_critic_sees_the_state_of_a_game_and_its_agents_do_not(tmp_path):
    from mpe2 import simple_spread_v3

    def spread(config):
        return ParallelPettingZooEnv(simple_spread_v3.parallel_env(max_cycles=10), state=True)

    small = {"train_batch_size": 40, "minibatch_size": 20, "num_epochs": 1, "fcnet_hiddens": [8]}
    small |= {"num_envs_per_env_runner": 2, "write_run": False, "seed": 0}
    with steppe.PPOConfig(env=spread, critic_only=["state"], **small).build() as algo:
        result = algo.train()
        path = algo.save(tmp_path / "c")
    assert result["episode_len_mean"] == 10
    assert result["env_health"] == {}
    policy = steppe.load_policy(path)
    seen = {"observation": np.linspace(-1, 1, 18, dtype=np.float32)}
    actions = [policy.act({**seen, "state": np.full(54, fill, np.float32)}) for fill in (-9, 0, 9)]
    assert len(set(map(int, actions))) == 1
