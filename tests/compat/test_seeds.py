"""The seeds' programs run with only their import lines changed, and print what their pages show."""

import doctest
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces

import steppe
from steppe.compat.agents import pg, ppo
from steppe.compat.ray.rllib.env import MultiAgentEnv
from steppe.compat.ray.tune.registry import register_env
from steppe.envs import registry
from tests.compat.seed_programs import (
    EDITS,
    PRINTED,
    SEEDS,
    WAITING,
    damaged,
    edited,
    program,
    repaired,
    translated,
    without_indentation,
)

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT.parent / "shared" / "seeds"
LIKE_CODE = re.compile(
    r"(import |from \w+[\w.]* import )|((class|def) \w+ ?\(.*:$)|(\w+ = \w+.*\()|(return \[?\w+$)|\w+\(.*\)$|"
    r"(for|while|if|elif) .*:$|>>>|# [A-Z]"
)


def test_every_program_is_repaired_by_its_list_of_edits_alone():
    names = {path.stem for path in (SEEDS / "damaged").iterdir()}
    assert names == {path.stem for path in (SEEDS / "repaired").iterdir()} == set(EDITS)
    for name in EDITS:
        assert edited(name) == without_indentation(repaired(name))
        assert all(edit.why and edit.damaged != edit.repaired for edit in EDITS[name])


def test_only_import_lines_are_translated():
    changed = []
    for name in EDITS:
        for before, after in zip(repaired(name).splitlines(), program(name).splitlines(), strict=True):
            if before != after:
                changed.append(before)
                assert "import" in before
                assert "steppe.compat" in after
    assert len(changed) == 17


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import gym", "from steppe.compat import gym"),
        ("import gym, ray", "from steppe.compat import gym, ray"),
        ("import ray.rllib.agents.ppo as ppo", "import steppe.compat.ray.rllib.agents.ppo as ppo"),
        ("from ray import tune", "from steppe.compat.ray import tune"),
        ("from gym.utils import seeding", "from steppe.compat.gym.utils import seeding"),
        ("import gym_example", "import gym_example"),
        ('print("import gym")', 'print("import gym")'),
    ],
)
def test_the_rule_for_import_lines(before, after):
    assert translated(before) == after


@pytest.mark.skipif(
    not PAGES.is_dir(), reason="the seeds' pages lie beside the checkout where it is developed"
)
def test_each_block_of_the_pages_runs_or_waits():
    text = "".join(without_indentation(page.read_text()) for page in sorted(PAGES.iterdir()))
    lines = text.splitlines()
    for name in EDITS:
        at = 0
        for line in damaged(name).splitlines():
            assert line in lines[at:], f"{name}: {line!r} stands nowhere on the pages"
            at = lines.index(line, at) + 1
    known = {line for name in EDITS for line in damaged(name).splitlines()}
    for block in WAITING.values():
        start = lines.index(block.first)
        known |= set(lines[start : lines.index(block.last, start) + 1])
    code = [line for line in lines if LIKE_CODE.match(line)]
    assert len(code) > 100
    assert [line for line in code if line not in known] == []


def run_script(folder, name, *, timeout=120):
    home = folder / "home"
    (home / "ray_results" / "old").mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )


def write_package(folder):
    """The layout of the tutorial: ``gym-example/gym_example/envs/example_env.py``."""
    package = folder / "gym-example" / "gym_example"
    (package / "envs").mkdir(parents=True)
    (folder / "gym-example" / "setup.py").write_text(program("setup"))
    (package / "__init__.py").write_text(program("register"))
    (package / "envs" / "__init__.py").write_text(program("envs_init"))
    (package / "envs" / "example_env.py").write_text(program("example_env"))
    return folder / "gym-example"


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """A folder in which the tutorial's scripts find its package, as after ``pip install -e gym-example``."""
    folder = tmp_path_factory.mktemp("tutorial")
    root = write_package(folder)
    (folder / "gym_example").symlink_to(root / "gym_example")
    return folder


def test_the_package_is_set_up_under_its_name(tutorial):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name", "--version"],
        cwd=tutorial / "gym-example",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["gym_example", "0.0.1"]


def baseline(folder, episodes):
    assert program("sample").count("range(10000)") == 1
    (folder / "sample.py").write_text(program("sample").replace("range(10000)", f"range({episodes})"))
    out = run_script(folder, "sample.py").stdout
    PRINTED["sample"] = out.strip().splitlines()
    assert re.fullmatch(r"\nbaseline cumulative reward: {1,4}-\d\.?\d?\n", out)
    return float(out.split()[-1])


def test_the_random_baseline(tutorial):
    assert baseline(tutorial, 400) == pytest.approx(-5.16, abs=2.5)  # the mean of 400 deviates by 0.4


@pytest.mark.slow
def test_the_random_baseline_over_ten_thousand_episodes(tutorial):
    assert baseline(tutorial, 10_000) == pytest.approx(-5.16, abs=0.45)  # two digits are printed


@pytest.fixture(scope="module")
def printed(tutorial):
    """What the training script prints, with its own five iterations."""
    (tutorial / "train.py").write_text(program("train"))
    done = run_script(tutorial, "train.py")
    PRINTED["train"] = done.stdout.splitlines()
    print(done.stderr)
    return done


def test_training_prints_the_tutorial_s_lines_and_improves(printed, tutorial):
    number = r"(?=.{6}[/ ])[ ]*-?\d+\.\d\d"
    lines = printed.stdout.splitlines()[:5]
    for n, line in enumerate(lines, start=1):
        saved = f"tmp/exa/checkpoint_{n}/checkpoint-{n}"
        pattern = rf"{n:2d} reward {number}/{number}/{number} len \d+\.\d\d saved {saved}"
        assert re.fullmatch(pattern, line), line
        assert (tutorial / saved).exists()
    means = [float(line.split("/")[1]) for line in lines]
    lengths = [float(line.split(" len ")[1].split()[0]) for line in lines]
    assert all(math.isfinite(mean) for mean in means)
    assert means[4] > means[0] + 3
    assert means[4] > 3
    assert lengths[4] < lengths[0]
    assert not (tutorial / "home" / "ray_results").exists()


def test_the_restored_policy_is_rendered_as_in_the_tutorial(printed):
    rest = printed.stdout.splitlines()[5:]
    rendered = [line for line in rest if line.startswith("position")]
    rewards = [line for line in rest if line.startswith("cumulative")]
    assert len(rendered) == 20
    assert sorted(rendered + rewards) == sorted(rest)
    assert all(
        re.fullmatch(r"position: [ 1]\d  reward: (10|-1|-2)  info: \{'dist': -?\d\}", line)
        for line in rendered
    )
    assert "position:  5  reward: 10  info: {'dist': 0}" in rendered
    assert rewards
    assert all(re.fullmatch(r"cumulative reward -?\d+", line) for line in rewards)
    # An episode's reward is 10 less one for each step towards the goal and two for each away.
    assert max(int(line.split()[-1]) for line in rewards) in range(7, 11)


def test_workers_that_there_are_not_are_said_once(printed):
    told = [line for line in printed.stderr.splitlines() if "num_workers=2" in line]
    assert len(told) == 1
    assert "all envs of a Trainer run in this process" in told[0]


class EnoughError(Exception):
    """Ends a program that trains for ever."""


def until(results, name):
    """A ``print`` that keeps what it is given, until there is enough."""
    kept = []
    PRINTED[name] = lines = []

    def keep(value):
        kept.append(value)
        shown = ("training_iteration", "episode_reward_mean", "timesteps_total")
        lines.append(str({key: value[key] for key in shown}))
        if len(kept) == results:
            raise EnoughError

    keep.kept = kept
    return keep


def execute(name, **names):
    exec(compile(program(name), f"{name}.py", "exec"), names)
    return names


def test_simple_corridor_trains_three_times(quick):
    show = until(99, "corridor")
    names = execute("corridor", print=show)
    assert [result["training_iteration"] for result in show.kept] == [1, 2, 3]
    assert show.kept[2]["timesteps_total"] == 192
    assert -6.4 < show.kept[2]["episode_reward_mean"] <= 0.6  # five steps to the right, the last one worth 1
    assert names["trainer"].config["env_config"] == {"corridor_length": 5}
    names["trainer"].stop()


@pytest.mark.slow
def test_simple_corridor_learns_with_rllib_s_own_settings(monkeypatch):
    monkeypatch.setitem(ppo.DEFAULT_CONFIG, "seed", 0)
    show = until(99, "corridor")
    execute("corridor", print=show)["trainer"].stop()
    assert show.kept[0]["timesteps_total"] == 4000
    assert show.kept[2]["episode_reward_mean"] > show.kept[0]["episode_reward_mean"] + 1


def test_an_env_class_and_then_its_creator(quick):
    show = until(2, "my_env")
    names = {"print": show}
    with pytest.raises(EnoughError):
        exec(compile(program("my_env"), "my_env.py", "exec"), names)
    assert show.kept[1]["timesteps_total"] == 128
    names["trainer"].stop()
    exec(compile(program("env_creator"), "env_creator.py", "exec"), names)
    assert registry.is_registered("my_env")
    assert names["trainer"].train()["timesteps_total"] == 64
    names["trainer"].stop()


def test_an_ensemble_of_envs_is_chosen_by_worker_and_vector_index(quick):
    """``num_envs_per_worker`` envs, each its own kind: CartPole's two limits tell them apart."""
    asked = []

    def choose_env_for(worker_index, vector_index):
        asked.append((worker_index, vector_index))
        return ("CartPole-v0", "CartPole-v1")[vector_index % 2]

    names = {"choose_env_for": choose_env_for}
    exec(translated("import gym\nfrom ray.tune.registry import register_env"), names)
    exec(compile(program("multi_env"), "multi_env.py", "exec"), names)
    trainer = ppo.PPOTrainer(env="multienv", config={"num_envs_per_worker": 4, "rollout_fragment_length": 16})
    assert asked == [(0, 0), (0, 1), (0, 2), (0, 3)]
    result = trainer.train()
    assert result["timesteps_total"] == 64
    assert result["episodes_total"] > 0
    trainer.stop()


def test_an_env_of_pettingzoo_reads_its_config(quick, monkeypatch):
    """PettingZoo has no prison any more: another game takes its place, of as many rounds as it had floors."""
    floors = []

    def env(num_floors):
        floors.append(num_floors)
        return pettingzoo.make("aec", "classic/rps-v2", max_cycles=num_floors)

    gamma = SimpleNamespace(prison_v0=SimpleNamespace(env=env))
    monkeypatch.setitem(sys.modules, "pettingzoo.gamma", gamma)
    config = {"rollout_fragment_length": 16}
    exec(compile(program("pettingzoo"), "pettingzoo.py", "exec"), {"config": config})
    trainer = ppo.PPOTrainer(env="prison", config=config)
    result = trainer.train()
    assert floors[0] == 5
    # Five rounds of two turns each.
    assert result["episode_len_mean"] == 10
    trainer.stop()


class MultiAgentTrafficEnv(MultiAgentEnv):
    """As RLlib 1.x's programs were written: four items a step. What it tells is what the page prints."""

    observation_space, action_space = spaces.Box(0, 9, (1, 2), np.float32), spaces.Discrete(2)

    def __init__(self, num_cars, num_traffic_lights):
        self.size = num_cars, num_traffic_lights

    def seen(self, *agents):
        return {agent: np.full((1, 2), self.t, np.float32) for agent in agents}

    def reset(self):
        self.t = 0
        return self.seen("car_1", "car_2", "traffic_light_1")

    def step(self, actions):
        self.t += 1
        assert actions.keys() == {"car_1", "traffic_light_1"} | ({"car_2"} if self.t == 1 else set())
        rewards = {"car_1": 3, "car_2": -1, "traffic_light_1": 0}
        if self.t > 1:
            del rewards["car_2"]
        dones = {**({"car_2": True} if self.t == 1 else {}), "__all__": self.t == 4}
        return self.seen("car_1", "traffic_light_1"), rewards, dones, {}


def session(text):
    """The lines behind each prompt, and what is printed there as a value; None where nothing is."""
    for part in re.split(r"^> ", text, flags=re.MULTILINE)[1:]:
        line, _, rest = part.partition("\n")
        shown = "\n".join(one for one in rest.splitlines() if not one.startswith("#"))
        yield line, eval(shown) if shown.strip() else None


def test_a_multi_agent_env_step_by_step():
    printed, shown = [], []
    names = {"MultiAgentTrafficEnv": MultiAgentTrafficEnv, "print": printed.append}
    for line, value in session(program("traffic")):
        exec(line, names)
        shown += [] if value is None else [value]
    assert names["env"].size == (20, 5)
    obs, *others = printed
    assert shown[0] == {agent: [[...]] for agent in obs}  # any two-dimensional observation
    assert {np.ndim(one) for one in obs.values()} == {2}
    assert others == shown[1:]
    assert names["new_obs"].keys() == {"car_1", "traffic_light_1"}


@pytest.fixture
def traffic(quick):
    """What the page's program finds: an env under its name, spaces, and PG."""
    register_env("my_multiagent_env", lambda config: MultiAgentTrafficEnv(2, 1))
    car, light = ((MultiAgentTrafficEnv.observation_space, MultiAgentTrafficEnv.action_space),) * 2
    names = {"car_obs_space": car[0], "car_act_space": car[1], "tl_obs_space": light[0]}
    return {**names, "tl_act_space": light[1], "pg": pg, "random": random}


@pytest.mark.parametrize("agent", [pg.PGAgent, ppo.PPOTrainer], ids=["PG", "PPO"])
def test_two_car_policies_and_a_traffic_light(traffic, agent):
    traffic |= {"print": (show := until(3, "two_cars")), "pg": SimpleNamespace(PGAgent=agent)}
    with pytest.raises(EnoughError):
        exec(compile(program("two_cars"), "two_cars.py", "exec"), traffic)
    result = show.kept[2]
    assert result["info"]["learner"].keys() == {"car1", "car2", "traffic_light"}
    assert result["policy_reward_mean"]["traffic_light"] == 0
    assert result["episode_reward_mean"] == 4 * 3 - 1
    algorithm = traffic["trainer"].algorithm
    assert type(algorithm.config).algo_name in agent.__name__
    assert [spec.config for spec in algorithm.config.policies.values()] == [
        {"gamma": 0.85},
        {"gamma": 0.99},
        {},
    ]
    traffic["trainer"].stop()


def test_the_same_dict_makes_a_config_of_today_s(traffic):
    given = {}
    traffic["pg"] = SimpleNamespace(PGAgent=lambda env, config: given.update(config, env=env))
    source = program("two_cars").partition("while True:")[0]
    exec(compile(source, "two_cars.py", "exec"), traffic)
    small = {
        "train_batch_size": 64,
        "minibatch_size": 32,
        "fcnet_hiddens": [8],
        "write_run": False,
        "seed": 0,
    }
    config = steppe.PPOConfig.from_dict({**given, **small})
    assert list(config.policies) == ["car1", "car2", "traffic_light"]
    with config.build() as algo:
        result = algo.train()
    assert result["episode_reward_mean"] == 4 * 3 - 1


def test_agents_in_groups():
    """The method's own text on an env; and the session in it, which hands the env over twice."""
    names = {"Dict": dict, "List": list, "AgentID": str}
    exec(translated("import gym"), names)
    exec(compile(program("groups"), "groups.py", "exec"), names)

    class YourMultiAgentEnv(MultiAgentEnv):
        possible_agents = tuple(f"agent{n}" for n in range(1, 6))
        observation_space, action_space = spaces.Discrete(9), spaces.Discrete(2)

        def __init__(self, _):
            pass

        def reset(self):
            return {agent: n for n, agent in enumerate(self.possible_agents)}

        def step(self, actions):
            return self.reset(), dict.fromkeys(actions, 1), {"__all__": False}, {}

    found = {}
    method = names["with_agent_groups"]
    globs = {"YourMultiAgentEnv": YourMultiAgentEnv}
    test = doctest.DocTestParser().get_doctest(method.__doc__, globs, "groups", None, 0)
    assert doctest.DocTestRunner().run(test, clear_globs=False) == (0, 2)
    found["session"] = test.globs["grouped_env"]
    groups = {"group1": ["agent1", "agent2", "agent3"], "group2": ["agent4", "agent5"]}
    found["method"] = method(YourMultiAgentEnv(...), groups)
    for env in found.values():
        assert env.groups == groups
        assert env.reset() == {"group1": (0, 1, 2), "group2": (3, 4)}
        _, rewards, *_, infos = env.step({"group1": (0, 1, 0), "group2": (1, 1)})
        assert rewards == {"group1": 3, "group2": 2}
        assert infos["group2"]["individual_rewards"] == [1, 1]


class ThreeLevels(MultiAgentEnv):
    """The page's timeline: ``top_level`` acts, then ``mid_level_n``, whose action begins ``low_level_n``."""

    observation_space, action_space = spaces.Discrete(99), spaces.Discrete(2)

    def __init__(self, env_config):
        self.possible_agents = ("top_level", "mid_level_0", "mid_level_1")
        self.possible_agents += tuple(f"low_level_{n}" for n in range(3))

    def reset(self):
        turns = "top_level mid_level_0 low_level_0 low_level_0 mid_level_0 low_level_1 low_level_1 top_level"
        self.turns = f"{turns} mid_level_1 low_level_2 low_level_2".split()
        return {self.turns[0]: 0}

    def step(self, actions):
        ((agent, action),) = actions.items()
        assert agent == self.turns.pop(0)
        dones = {"__all__": not self.turns}
        if agent not in self.turns and self.turns:
            dones[agent] = True
        obs = {self.turns[0]: 1} if self.turns else {}
        return obs, {agent: float(action)}, dones, {}


def test_a_hierarchy_of_policies(quick):
    config = eval("{" + program("hierarchy") + "}")
    trainer = ppo.PPOTrainer(env=ThreeLevels, config=config)
    before = trainer.get_weights()
    for _ in range(3):
        result = trainer.train()
    after = trainer.get_weights()
    assert result["info"]["learner"].keys() == {"top_level"}
    levels = {"top_level", "mid_level", "low_level"}
    assert {id for id in levels if np.array_equal(before[id], after[id])} == levels - {"top_level"}
    assert result["policy_reward_mean"].keys() == levels
    assert result["episode_len_mean"] == 11
    trainer.stop()


def test_a_centralized_critic_by_a_trajectory_preprocessor():
    """Its ``self`` has a session that runs networks; what it adds reaches the loss, row by row."""

    class Session:
        def run(self, network, feed_dict):
            return network(**feed_dict)

    def critic_network(obs):
        assert obs.shape[1:] == (3, 2)
        return obs.sum(axis=(1, 2))

    names = {"np": np, "self": SimpleNamespace(sess=Session(), critic_network=critic_network)}
    exec(program("centralized_critic"), names)

    class ThreeAgents(MultiAgentEnv):
        observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
        possible_agents = ("agent_1", "agent_2", "agent_3")

        def __init__(self, env_config):
            self.rng = np.random.default_rng(0)

        def _obs(self):
            return {agent: self.rng.uniform(-1, 1, 2).astype(np.float32) for agent in self.possible_agents}

        def reset(self):
            self.t = 0
            return self._obs()

        def step(self, actions):
            self.t += 1
            return self._obs(), dict.fromkeys(actions, 1.0), {"__all__": self.t == 5}, {}

    def with_central_vf(params, batch):
        own = (batch["global_obs"] == batch["obs"][:, None]).all(axis=2).any(axis=1).all()
        right = own & jnp.allclose(batch["central_vf"], batch["global_obs"].sum(axis=(1, 2)), atol=1e-5)
        return jnp.where(right, 1.0, jnp.nan)

    config = steppe.PPOConfig(
        env=ThreeAgents,
        postprocess_trajectory=names["postprocess_trajectory"],
        extra_loss=with_central_vf,
        observation_filter="NoFilter",
        train_batch_size=32,
        num_envs_per_env_runner=2,
        fcnet_hiddens=[4],
        write_run=False,
    )
    with config.build() as algo:
        stats = algo.train()["info"]["default_policy"]
    assert stats["rows"] == 3 * 32
    assert (stats["extra_loss"], stats["updates_skipped"]) == (1.0, 0.0)


def test_a_printed_result_has_the_lines_of_the_page_in_its_order():
    """Two policies in one run: see "Result for PPO_multi_cartpole_0" on the page."""
    learned = ["cur_lr", "entropy", "kl", "policy_loss", "total_loss", "vf_explained_var", "vf_loss"]
    wanted = ["episode_len_mean", "episode_reward_max", "episode_reward_mean", "info", "policy_0", *learned]
    wanted += ["policy_1", *learned, "policy_reward_mean", "policy_0", "policy_1"]
    env = steppe.make_multi_agent("CartPole-v1")
    config = steppe.PPOConfig(
        env=lambda config: env({"num_agents": 2}),
        policies={"policy_0", "policy_1"},
        policy_mapping_fn=lambda agent_id: f"policy_{agent_id}",
        **{"train_batch_size": 256, "minibatch_size": 128, "num_epochs": 1, "fcnet_hiddens": [8]},
        write_run=False,
        seed=0,
    )
    with config.build() as algo:
        algo.train()
        lines = str(algo.train()).splitlines()
    keys = iter([line.strip().partition(":")[0] for line in lines])
    assert [key for key in wanted if key not in keys] == []  # each is found after the one before it
