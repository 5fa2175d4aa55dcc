"""The examples: their envs by numbers worked out by hand, and their programs from start to end, tiny."""

import doctest
import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples import (
    base_env,
    centralized_critic,
    custom_env,
    env_ensemble,
    external_env,
    grouped_agents,
    hierarchical_maze,
    mappo,
    multi_agent_cartpole,
    pettingzoo_pistonball,
    rock_paper_scissors,
    self_play_tictactoe,
    traffic,
    two_configs,
    two_step_game,
    vector_env,
)
from steppe import EnvContext
from steppe.envs import registry

EXAMPLES = Path(custom_env.__file__).parent
TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "max_episode_steps": 20,
    "write_run": False,
}
GAMES = (pettingzoo_pistonball, rock_paper_scissors, self_play_tictactoe)
ALONE = (
    base_env,
    centralized_critic,
    custom_env,
    env_ensemble,
    external_env,
    grouped_agents,
    hierarchical_maze,
    mappo,
    multi_agent_cartpole,
    traffic,
    two_configs,
    two_step_game,
    vector_env,
)


@pytest.fixture(autouse=True)
def _names_are_forgotten(monkeypatch):
    monkeypatch.setattr(registry, "REGISTERED", {})


def needs_games(example):
    """Skip where what a game is made of is not installed."""
    if example in GAMES and importlib.util.find_spec("pygame") is None:
        pytest.skip("PettingZoo's games draw with pygame, which is missing: extra pettingzoo")
    if example is pettingzoo_pistonball and importlib.util.find_spec("pymunk") is None:
        pytest.skip("pistonball moves by pymunk, which is missing: extra pettingzoo")


@pytest.mark.parametrize("example", [*ALONE, *GAMES], ids=lambda example: example.__name__.rpartition(".")[2])
def test_a_program_runs(example, capsys):
    needs_games(example)
    small = {"train_batch_size": 8} if example is pettingzoo_pistonball else {}
    if example in (base_env, external_env):  # their episodes begin and end when their threads say so
        small = {"max_episode_steps": None}
    more = {"n_pistons": 2} if example is pettingzoo_pistonball else {}
    settings = {**TINY, **small}
    if example is two_step_game:  # which learns from a replay
        settings = {name: settings[name] for name in settings.keys() - {"minibatch_size", "num_epochs"}}
    result = example.main(iterations=1, **settings, **more)
    assert result["training_iteration"] == 1
    assert str(result["timesteps_total"]) in capsys.readouterr().out
    # A move of rps is an int64 in a space of another type, which is said.
    assert set(result["env_health"]) <= ({"E106 obs"} if example is rock_paper_scissors else set())


def test_every_example_is_tested_and_short():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {example.__name__.rpartition(".")[2] for example in (*ALONE, *GAMES)}
    for path in EXAMPLES.glob("*.py"):
        code = path.read_text().split('"""', 2)[2]  # below what it says of itself
        assert sum(1 for line in code.splitlines() if line.strip()) <= 60, path.name


def test_an_example_is_a_program(tmp_path):
    words = [sys.executable, str(EXAMPLES / "custom_env.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    steps, means = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
    assert steps == (4000, 8000, 12000, 16000, 20000)
    assert means[0] < 0 < means[-1] < 0.6


def test_the_session_of_the_traffic_env_is_true():
    found = doctest.testmod(traffic)
    assert found.attempted >= 5
    assert found.failed == 0
    page = (EXAMPLES.parent / "docs" / "environments.md").read_text()
    assert traffic.__doc__.partition("\n\n")[2] in page


def test_the_corridor_by_hand():
    env = custom_env.SimpleCorridor({"corridor_length": 2})
    assert env.reset()[0] == 0
    steps = [env.step(action) for action in (0, 1, 1)]
    assert [(obs.tolist(), reward, over) for obs, reward, over, _, _ in steps] == [
        ([0.0], -0.1, False),
        ([1.0], -0.1, False),
        ([2.0], 1.0, True),
    ]


def test_the_ensemble_takes_turns_by_worker_and_place():
    kinds = [
        env_ensemble.MultiEnv(EnvContext({}, worker_index=worker, vector_index=vector)).env.unwrapped.length
        for worker, vector in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))
    ]
    assert kinds == [0.25, 0.5, 1.0, 0.25, 0.5]


def test_the_ensemble_is_measured_by_kind():
    result = env_ensemble.main(iterations=1, **TINY | {"num_envs_per_env_runner": 3, "train_batch_size": 120})
    kinds = {name for name in result["custom_metrics"] if name.endswith("_mean")}
    assert kinds == {"pole_0.25_mean", "pole_0.5_mean", "pole_1.0_mean"}


def test_pucks_move_together_as_one_would():
    env = vector_env.Pucks(EnvContext(num_envs=3))
    env.vector_reset(seeds=[1, 2, 3])
    env.state[:] = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
    obs, rewards, terminated, truncated, _ = env.vector_step([[0.0], [0.0], [1.0]])
    np.testing.assert_allclose(obs, [[1.0, 0.0], [0.9, 0.9], [-0.9, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(rewards, [-1.0, -0.9, -0.9], rtol=1e-6)
    assert not terminated.any()
    assert not truncated.any()
    for _ in range(vector_env.STEPS - 1):
        truncated = env.vector_step([[0.0]] * 3)[3]
    assert truncated.all()


@pytest.fixture
def crossing():
    """One car, one cell before its light."""
    env = traffic.MultiAgentTrafficEnv(num_cars=1, num_traffic_lights=1)
    env.reset(seed=0)
    env.cells = {"car_1": 2}
    return env


@pytest.mark.parametrize(("light", "reward", "people"), [(1, 3, 1), (0, -5, 0)])
def test_a_car_passes_at_green_and_pays_at_red(crossing, light, reward, people):
    crossing.step({"car_1": 1, "traffic_light_1": 0})
    obs, rewards, terminateds, truncateds, _ = crossing.step({"car_1": 1, "traffic_light_1": light})
    assert rewards == {"car_1": reward, "traffic_light_1": -people}
    assert terminateds == {"car_1": True, "__all__": True}
    assert truncateds == {"__all__": False}
    assert set(obs) == {"traffic_light_1"}


def test_a_car_that_waits_stays_while_people_gather(crossing):
    for n in (1, 2, 3):
        obs, rewards, terminateds, _, _ = crossing.step({"car_1": 0, "traffic_light_1": 1})
        assert rewards == {"car_1": -1, "traffic_light_1": -(1 + n)}
        assert obs["car_1"].tolist() == [2.0, 1.0]
        assert obs["traffic_light_1"].tolist() == [1.0, n]
    assert terminateds == {"__all__": False}


def test_cars_act_by_either_policy_and_lights_by_their_own():
    assert {traffic.policy_of("car_7") for _ in range(64)} == {"car1", "car2"}
    assert traffic.policy_of("traffic_light_2") == "traffic_light"
    result = traffic.main(iterations=1, **TINY | {"env_config": {"num_cars": 4, "num_traffic_lights": 2}})
    assert set(result["info"]) == {"car1", "car2", "traffic_light"}


def test_the_two_step_game_by_hand():
    paid = {}
    for first, second, third in [(0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)]:
        env = centralized_critic.TwoStepGame({})
        assert env.reset()[0] == {"agent_0": 0, "agent_1": 0}
        obs, rewards, terminateds, _, _ = env.step({"agent_0": first, "agent_1": 1})
        assert obs == {"agent_0": 1 + first, "agent_1": 1 + first}
        assert (sum(rewards.values()), terminateds) == (0, {"__all__": False})
        _, rewards, terminateds, _, _ = env.step({"agent_0": second, "agent_1": third})
        assert terminateds == {"__all__": True}
        assert rewards["agent_0"] == rewards["agent_1"]
        paid[first, second, third] = sum(rewards.values())
    assert paid == {(0, 0, 0): 7, (1, 0, 0): 0, (1, 0, 1): 1, (1, 1, 0): 1, (1, 1, 1): 8}


@pytest.mark.parametrize("way", [1, 2])
def test_either_way_to_a_central_critic_runs_and_acts_without_it(way):
    with centralized_critic.config(way, **TINY).build() as algo:
        result = algo.train()
        assert set(result["info"]) == {"agent_0", "agent_1"}
        obs = 2 if way == 1 else {"own": 2}
        assert algo.compute_single_action(obs, policy_id="agent_1") in (0, 1)


def test_a_slow_tank_holds_up_no_other():
    tanks = base_env.Tanks(EnvContext({}, num_envs=3))
    tanks.seed([1, 2, 3])
    tanks.tanks[0].delay, tanks.tanks[1].delay, tanks.tanks[2].delay = 0.2, 0.0, 0.0
    steps = [0, 0, 0]
    while max(steps) < 40:
        obs, _, terminateds, truncateds, *_ = tanks.poll()
        for i in obs:
            steps[i] += 1
            over = terminateds[i]["__all__"] or truncateds[i]["__all__"]
            if over:
                tanks.try_reset(i)
            else:
                tanks.send_actions({i: {"agent0": int(obs[i]["agent0"][0] < 0.5)}})
    tanks.stop()
    assert steps[0] < min(steps[1:]) // 2


def test_two_configs_are_two_ways_to_learn():
    settings = {name: value for name, value in TINY.items() if name not in ("num_epochs", "fcnet_hiddens")}
    with two_configs.config().copy(**settings).build() as algo:
        sizes = {id: len(weights) for id, weights in algo.get_weights().items()}
    # 4 observations, 2 actions: the actor's and the critic's hidden layers and outputs.
    assert sizes == {
        id: 2 * (5 * n + (n + 1) * n) + (n + 1) * 2 + (n + 1) for id, n in (("cautious", 32), ("bold", 64))
    }


def test_the_rules_of_rock_paper_scissors():
    rng = np.random.default_rng(0)
    beat, same = rock_paper_scissors.BeatLast(), rock_paper_scissors.AlwaysSame()
    assert [beat.act(np.int64(move), None, rng) for move in (0, 1, 2)] == [1, 2, 0]
    assert {beat.act(np.int64(3), None, rng) for _ in range(64)} == {0, 1, 2}
    first, state = same.act(3, same.initial_state(), rng)
    assert [same.act(move, state, rng)[0] for move in (0, 1, 2)] == [first] * 3
    assert {same.act(3, same.initial_state(), rng)[0] for _ in range(64)} == {0, 1, 2}


def test_opponents_change_by_episode():
    class Episode:
        episode_id = 4

    assert rock_paper_scissors.policy_of("player_0", Episode) == "learned"
    assert rock_paper_scissors.policy_of("player_1", Episode) == "always_same"
    Episode.episode_id = 5
    assert rock_paper_scissors.policy_of("player_1", Episode) == "beat_last"


def test_a_turn_of_the_maze_by_hand():
    env = hierarchical_maze.WindyMaze()
    obs, _ = env.reset(seed=0)
    assert {agent: one.tolist() for agent, one in obs.items()} == {"high": [1, 1]}
    obs, rewards, *_ = env.step({"high": 1})
    assert list(obs) == ["low_0"]
    assert rewards == {}
    for wind, action, place, reward in (
        (1, 0, (1, 1), 0),
        (1, 1, (1, 2), 1),
        (3, 1, (1, 1), -1),
        (0, 1, (1, 1), 0),
    ):
        env.wind = wind
        obs, rewards, *_ = env.step({"low_0": action})
        assert (env.place, rewards["low_0"]) == (place, reward)
    for _ in range(hierarchical_maze.TURN - 5):
        obs, *_ = env.step({"low_0": 0})
    assert list(obs) == ["low_0"]
    obs, _, terminateds, _, _ = env.step({"low_0": 0})
    assert set(obs) == {"low_0", "high"}  # the last observation of one, and the turn of the other
    assert terminateds == {"low_0": True, "__all__": False}
    obs, *_ = env.step({"high": 2})
    assert list(obs) == ["low_1"]


def test_the_goal_of_the_maze_is_the_upper_levels():
    env = hierarchical_maze.WindyMaze()
    env.reset(seed=0)
    env.step({"high": 3})
    env.place, env.wind = (6, 2), 3
    _, rewards, terminateds, truncateds, _ = env.step({"low_0": 1})
    assert rewards == {"high": 100.0, "low_0": 1.0}
    assert (terminateds["__all__"], truncateds["__all__"]) == (True, False)


def test_a_pair_is_right_by_what_neither_knows_alone():
    env = grouped_agents.grouped({})
    env.reset(seed=0)
    env.unwrapped.seen = {"ann": 1, "bob": 0}
    _, rewards, *_ = env.step({"pair": (1, 0)})
    assert rewards == {"pair": 1.0}
    env.unwrapped.seen = {"ann": 1, "bob": 1}
    _, rewards, *_ = env.step({"pair": (0, 0)})
    assert rewards == {"pair": 2.0}


def test_past_versions_play_and_the_oldest_leaves(monkeypatch):
    needs_games(self_play_tictactoe)
    monkeypatch.setattr(self_play_tictactoe, "MOST", 2)
    made = []
    monkeypatch.setattr(
        self_play_tictactoe.PastVersions, "on_algorithm_init", lambda _, algorithm: made.append(algorithm)
    )
    games = {"evaluation_interval": 1, "evaluation_duration": 20}
    result = self_play_tictactoe.main(iterations=3, **TINY, **games)
    assert made[0].runner.policy_ids == ["learned", "past_0", "any_move", "past_2", "past_3"]
    assert result["policy_reward_mean"].keys() <= {"learned", "past_0", "past_1", "past_2"}
    assert result["evaluation"]["policy_reward_mean"].keys() == {"learned", "any_move"}
    assert result["reward_per_step"] == 0.0  # what one wins the other loses: no move was illegal


def test_each_seat_is_taken_in_every_second_game():
    class Worker:
        in_evaluation, policy_ids = True, ["learned", "past_0", "any_move"]

    class Episode:
        number = 0

    seats = {}
    for Episode.number in (0, 1):
        for agent in ("player_1", "player_2"):
            seats[Episode.number, agent] = self_play_tictactoe.policy_of(agent, Episode, Worker)
    assert [who == "learned" for who in seats.values()] == [True, False, False, True]
    Worker.in_evaluation = False
    assert self_play_tictactoe.policy_of("player_2", Episode, Worker) == "learned"
    assert self_play_tictactoe.policy_of("player_1", Episode, Worker) == "past_0"


def test_any_move_is_legal():
    rng = np.random.default_rng(0)
    obs = {"action_mask": np.array([0, 1, 0, 0, 1, 0, 0, 0, 1])}
    assert {self_play_tictactoe.AnyMove().act(obs, None, rng) for _ in range(64)} == {1, 4, 8}


def test_the_two_step_game_shows_its_state_in_either_way():
    for apart, one_hot in itertools.product((False, True), repeat=2):
        env = two_step_game.grouped({"separate_state_space": apart, "one_hot_state_encoding": one_hot})
        obs, _ = env.reset()
        assert env.get_observation_space("team").contains(obs["team"])
        obs, rewards, *_ = env.step({"team": (1, 0)})
        state = obs["team"][0]["state"] if apart else obs["team"][1]
        assert (state.tolist() == [0, 0, 1]) if one_hot else (state == 2)
        _, paid, over, _, _ = env.step({"team": (1, 1)})
        assert (rewards, paid, over["__all__"]) == ({"team": 0.0}, {"team": 8.0}, True)


def test_goals_are_paid_for_once_however_many_stand_there():
    env = mappo.Cover({})
    obs, _ = env.reset(seed=0)
    env.goals, env.places = np.array([1, 4, 7]), np.array([0, 5, 5])
    obs, rewards, *_ = env.step({"r0": 2, "r1": 0, "r2": 0})
    np.testing.assert_allclose(list(rewards.values()), 2 / 9)
    assert env.observation_space["state"].contains(obs["r0"]["state"])
    np.testing.assert_allclose(obs["r1"]["obs"], [-0.75, 0.0, 0.75, 0.0])
    assert obs["r0"]["state"] is obs["r2"]["state"]


def test_one_policy_acts_for_all_robots_without_the_state_and_knows_who_they_are():
    config = mappo.config(**TINY)
    assert (config.critic_only, config.add_agent_id) == (["state"], True)
    with config.build() as algo:
        result = algo.train()
        assert set(result["info"]) == {"shared"}
        obs = {"obs": np.zeros(4, np.float32), "agent_id": 2}
        assert algo.compute_single_action(obs, policy_id="shared") in (0, 1, 2)
