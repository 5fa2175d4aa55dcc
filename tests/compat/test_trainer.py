"""``PPOTrainer``: RLlib's settings, results, checkpoints and ways to act, over a steppe.Algorithm."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import steppe
import steppe.config
from steppe.algorithms import ALGORITHMS
from steppe.compat import DefaultCallbacks, agents, gym, ray
from steppe.compat.agents import ppo
from steppe.compat.defaults import changed, default_config, known_algorithms, merged
from steppe.compat.meanings import class_of, meant, unsaid
from steppe.compat.trainer import Trainer, _config, trainer_class
from steppe.config import field_specs


class Signs(gym.Env):
    """Pays 1 for naming the sign that is shown, else 0; 8 steps."""

    def __init__(self, config):
        self.action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Discrete(2)
        self.seed(config.get("seed", 0))

    def reset(self):
        self.count, self.shown = 0, self.np_random.choice(2)
        return self.shown

    def step(self, action):
        reward = float(action == self.shown)
        self.count, self.shown = self.count + 1, self.np_random.choice(2)
        return self.shown, reward, self.count == 8, {}


@pytest.fixture
def trainer(quick):
    made = ppo.PPOTrainer(env=Signs)
    yield made
    made.stop()


# --- settings -------------------------------------------------------------------------------------------


def test_each_module_has_the_same_trainer_under_all_its_names():
    import steppe.compat.ray.rllib.agents.ppo as mirrored
    from steppe.compat.ray.rllib.agents.ppo import PPOAgent, PPOTrainer

    assert PPOTrainer is PPOAgent is ppo.PPOTrainer is mirrored.PPOTrainer is trainer_class("PPO")
    assert mirrored.DEFAULT_CONFIG is ppo.DEFAULT_CONFIG is PPOTrainer.default_config
    assert issubclass(PPOTrainer, Trainer)
    assert PPOTrainer.__name__ == "PPOTrainer"
    assert agents.__doc__


SMALL = {
    "num_workers": 0,
    "rollout_fragment_length": 32,
    "train_batch_size": 32,
    "min_iter_time_s": 0,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("module", "name", "algo"),
    [
        ("pg", "PGAgent", "PG"),
        ("a3c", "A2CTrainer", "A2C"),
        ("impala", "ImpalaTrainer", "IMPALA"),
        ("ppo", "APPOTrainer", "APPO"),
    ],
)
def test_trainers_of_other_algorithms_train(module, name, algo):
    cls = getattr(getattr(agents, module), name)
    assert cls is trainer_class(algo)
    trainer = cls(env=Signs, config={**SMALL, "model": {"fcnet_hiddens": [4]}})
    stats = trainer.train()["info"]["learner"]["default_policy"]
    assert np.isfinite(stats["policy_loss"])
    assert trainer.algorithm.config.reward_scale == "none"
    assert trainer.algorithm.config.use_critic is False if algo == "PG" else stats["entropy_coeff"] > 0.009
    trainer.stop()


@pytest.mark.parametrize("algo", known_algorithms())
def test_rllib_s_defaults_are_what_is_trained_with(algo):
    """Every default of RLlib's that is a field of ours arrives with RLlib's value, or as what it means."""
    settings = default_config(algo)
    config = _config(SimpleNamespace(algo=algo, config={**settings, "env": Signs}))
    theirs = type(config).resolved(
        meant(type(config), settings) | {"callbacks": None, "evaluation_config": {}}
    )
    ours = {"num_env_runners", "evaluation_config", "env", "seed", "evaluation_num_env_runners"}
    differ = {name for name, value in theirs.items() if getattr(config, name) != value}
    assert differ <= ours | set(unsaid(algo)) | {"training_intensity"}
    assert len(theirs) > 25


def test_the_defaults_of_ppo_are_those_of_rllib():
    config = ppo.DEFAULT_CONFIG
    expected = {"lambda": 1.0, "kl_coeff": 0.2, "sgd_minibatch_size": 128, "num_sgd_iter": 30, "lr": 5e-5}
    expected |= {"clip_param": 0.3, "vf_clip_param": 10.0, "train_batch_size": 4000, "num_workers": 2}
    assert {key: config[key] for key in expected} == expected
    assert config["model"]["fcnet_hiddens"] == [256, 256]
    assert {class_of(algo, {"mixer": "qmix"}).algo_name for algo in known_algorithms()} <= set(ALGORITHMS)


def test_a_copy_of_the_defaults_with_a_change_is_that_change():
    copied = default_config("PPO")
    assert changed(copied, default_config("PPO")) == {}
    copied["lr"] = 1e-3
    copied["model"]["fcnet_hiddens"] = [8]
    copied["multiagent"]["policies_to_train"] = ["a"]
    copied["horizon"] = np.int64(7)
    assert changed(copied, default_config("PPO")) == {
        "lr": 1e-3,
        "model": {"fcnet_hiddens": [8]},
        "multiagent": {"policies_to_train": ["a"]},
        "horizon": 7,
    }


def test_groups_are_merged_and_other_settings_replaced():
    config = {
        "model": {"dim": 84, "a": 1},
        "exploration_config": {"type": "A", "x": 1},
        "lr": 1,
        "input": {"b": 2},
    }
    given = {"model": {"a": 2}, "exploration_config": {"type": "B"}, "lr": 3, "input": {"c": 4}}
    assert merged(config, given) == {
        "model": {"dim": 84, "a": 2},
        "exploration_config": {"type": "B"},
        "lr": 3,
        "input": {"c": 4},
    }
    assert config["model"] == {"dim": 84, "a": 1}


def test_settings_reach_the_algorithm_under_any_name(quick):
    config = ppo.DEFAULT_CONFIG.copy()
    config.update(
        {"lambda": 0.9, "horizon": 5, "num_envs_per_worker": 2, "metrics_num_episodes_for_smoothing": 7}
    )
    config["model"] = {"fcnet_hiddens": [4, 4], "fcnet_activation": "relu"}
    trainer = ppo.PPOTrainer(config, env=Signs)
    ours = trainer.algorithm.config
    assert (ours.lambda_, ours.max_episode_steps, ours.metrics_num_episodes_for_smoothing) == (0.9, 5, 7)
    assert (ours.fcnet_hiddens, ours.fcnet_activation) == ([4, 4], "relu")
    assert (ours.num_envs_per_env_runner, ours.train_batch_size, ours.reward_scale) == (2, 64, "none")
    assert trainer.config["lambda"] == 0.9
    assert trainer.config["model"]["framestack"] is True
    trainer.stop()


def test_the_env_argument_wins_and_may_be_left_out(quick):
    steppe.register_env("signs", Signs)
    for made in (ppo.PPOTrainer({"env": "nowhere"}, "signs"), ppo.PPOTrainer({"env": Signs})):
        assert made.train()["episode_len_mean"] == 8
        made.stop()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_sgd_itr": 3}, "num_sgd_iter"),
        ({"model": {"fcnet_hidens": [3]}}, "fcnet_hiddens"),
        ({"lr": -1.0}, "lr"),
        ({"multiagent": {"polices": {}}}, "policies"),
    ],
)
def test_mistakes_are_said_before_an_env_is_built(quick, config, message):
    def never(config):
        raise AssertionError("built")

    with pytest.raises(steppe.ConfigError, match=message):
        ppo.PPOTrainer(env=never, config=config)


def test_workers_fall_back_to_this_process_and_say_so_once(quick, caplog, monkeypatch):
    monkeypatch.setattr(steppe.config.messages, "_said", set())
    for _ in range(2):
        trainer = ppo.PPOTrainer(env=Signs, config={"num_workers": 3})
        assert trainer.algorithm.config.num_env_runners == 0
        assert trainer.config["num_workers"] == 3
        assert trainer.train()["num_healthy_workers"] == 1
        trainer.stop()
    assert [r.message for r in caplog.records if "num_workers=3" in r.message] == [
        "num_workers=3: all envs of a Trainer run in this process; those of a config's build() may run on "
        "Ray, see num_env_runners"
    ]


def test_local_mode_asks_for_this_process_so_nothing_is_said(quick, caplog, monkeypatch):
    monkeypatch.setattr(steppe.config.messages, "_said", set())
    ray.init(local_mode=True, num_cpus=4, ignore_reinit_error=True)
    trainer = ppo.PPOTrainer(env=Signs, config={"num_workers": 3, "evaluation_num_workers": 1})
    assert trainer.algorithm.config.num_env_runners == 0
    trainer.stop()
    assert "num_workers" not in caplog.text


# --- training -------------------------------------------------------------------------------------------


def test_a_result_has_rllib_s_keys_and_is_the_program_s_own(trainer):
    results = [trainer.train(), trainer.train()]
    for n, result in enumerate(results, start=1):
        assert type(result) is dict
        assert (result["training_iteration"], result["timesteps_total"]) == (n, 64 * n)
        assert (result["episodes_this_iter"], result["episodes_total"]) == (8, 8 * n)
        assert result["info"]["num_steps_trained"] == 64 * n
        stats = result["info"]["learner"]["default_policy"]
        assert stats["learner_stats"] == result["info"]["default_policy"]
        assert stats["kl"] == stats["learner_stats"]["kl"]
        assert {"policy_loss", "vf_loss", "entropy", "cur_lr", "vf_explained_var"} <= stats[
            "learner_stats"
        ].keys()
        assert result["time_this_iter_s"] <= result["time_total_s"]
        assert result["config"] is trainer.config
        assert result["done"] is False
        assert len(result["hist_stats"]["episode_reward"]) == 8 * n
        assert result["hist_stats"]["episode_lengths"] == [8] * 8 * n
        assert np.mean(result["hist_stats"]["episode_reward"]) == result["episode_reward_mean"]
        assert result["info"]["num_steps_sampled"] == result["info"]["num_agent_steps_sampled"] == 64 * n
    assert results[1]["time_total_s"] == pytest.approx(sum(r["time_this_iter_s"] for r in results))
    assert trainer.iteration == 2
    results[1]["mine"] = 1


def test_the_same_seed_gives_the_same_run_and_learns(quick):
    config = {
        "seed": 3,
        "lr": 0.01,
        "num_sgd_iter": 8,
        "train_batch_size": 256,
        "rollout_fragment_length": 256,
    }
    means = []
    for _ in range(2):
        trainer = ppo.PPOTrainer(env=Signs, config=config)
        means.append([trainer.train()["episode_reward_mean"] for _ in range(8)])
        trainer.stop()
    assert means[0] == means[1]
    assert means[0][0] < 5 < 6.5 < means[0][7]  # 4 of 8 by chance


def test_evaluation_explores_as_training_unless_told_otherwise(quick):
    config = {"evaluation_interval": 1, "evaluation_num_episodes": 3}
    for explore, own in ((True, {}), (False, {"explore": False})):
        trainer = ppo.PPOTrainer(env=Signs, config={**config, "evaluation_config": own})
        assert trainer.algorithm.config.evaluation_config["explore"] is explore
        assert trainer.train()["evaluation"]["episodes_this_iter"] == 3
        assert trainer.evaluate()["evaluation"]["episode_len_mean"] == 8
        trainer.stop()


@pytest.mark.parametrize("own", [None, {}])
def test_an_empty_evaluation_config(quick, own):
    trainer = ppo.PPOTrainer(env=Signs, config={"evaluation_config": own})
    assert trainer.algorithm.config.evaluation_config == {"explore": True}
    trainer.stop()


def test_of_an_evaluation_config_what_the_run_has_anyway_is_left_out(quick):
    config = {
        **ppo.DEFAULT_CONFIG,
        "lr": 0.5,
        "horizon": 6,
        "callbacks": DefaultCallbacks,
        "env_config": {"seed": 1},
    }
    for own, left in (
        ({**config, "explore": False}, {"explore": False}),
        ({"num_workers": 0, "lr": 0.5, "model": dict(config["model"])}, {"explore": True}),
        ({"num_workers": 9, "evaluation_num_workers": 2}, {"explore": True}),
        ({"horizon": 6, "in_evaluation": True}, {"explore": True}),
        ({"horizon": None}, {"explore": True, "max_episode_steps": None}),
        ({"env_config": {"seed": 2}}, {"explore": True, "env_config": {"seed": 2}}),
    ):
        trainer = ppo.PPOTrainer(env=Signs, config={**config, "evaluation_config": own})
        assert trainer.algorithm.config.evaluation_config == left
        trainer.stop()
    for own, message in (
        ({"lr": 0.25}, "evaluation_config.lr=0.25 .*cannot differ"),
        ({"num_sgd_iter": 2}, "evaluation_config.num_sgd_iter=2"),
        ({"explor": False}, "evaluation_config.explore"),
        ([1], r"evaluation_config=\[1\]: give a dict"),
        ({"callbacks": {"on_episode_ende": print}}, "on_episode_end"),
    ):
        with pytest.raises(steppe.ConfigError, match=message):
            ppo.PPOTrainer(env=Signs, config={**config, "evaluation_config": own})


@pytest.mark.parametrize("config", ["CartPole-v1", [1], steppe.PPOConfig()])
def test_a_config_is_a_dict(config):
    with pytest.raises(steppe.ConfigError, match=r"env comes second: PPOTrainer\(config="):
        ppo.PPOTrainer(config)


def test_after_stop_there_is_no_more_training(quick):
    trainer = ppo.PPOTrainer(env=Signs)
    trainer.train()
    trainer.stop()
    trainer.stop()
    for call in (trainer.train, trainer.evaluate):
        with pytest.raises(steppe.ConfigError, match=r"after stop\(\).*make a new PPOTrainer"):
            call()
    assert trainer.compute_action(0, explore=False) in (0, 1)


# --- acting ---------------------------------------------------------------------------------------------


def test_actions_are_drawn_unless_told_otherwise(trainer):
    drawn = [trainer.compute_action(0) for _ in range(60)]
    assert set(drawn) == {0, 1}
    assert all(type(action) is int for action in drawn)
    assert len({trainer.compute_action(0, explore=False) for _ in range(20)}) == 1
    trainer.config["explore"] = False
    assert len({trainer.compute_single_action(0) for _ in range(20)}) == 1


def test_forms_of_an_action(trainer):
    best = trainer.compute_action(1, explore=False)
    assert trainer.compute_action(1, full_fetch=True, explore=False) == (best, [], {})
    assert trainer.compute_action(1, [np.zeros(2)], explore=False)[0] == best
    assert trainer.compute_action(1, [], 0, 0.5, {}, "default_policy", False, False) == best
    assert trainer.compute_actions({"a": 1, "b": 1}, explore=False) == {"a": best, "b": best}
    policy = trainer.get_policy()
    assert policy.compute_single_action(1, explore=False) == (best, [], {})
    assert policy.compute_single_action(1, [], explore=False)[0] == best
    with pytest.raises(steppe.ConfigError, match="default_policy"):
        trainer.get_policy("other")
    with pytest.raises(steppe.SpaceError):
        trainer.compute_action(7)


def test_weights_are_read_and_written(trainer):
    before = trainer.get_weights()
    assert list(before) == ["default_policy"]
    trainer.train()
    policy = trainer.get_policy()
    assert not np.array_equal(policy.get_weights(), before["default_policy"])
    trainer.set_weights(before)
    assert np.array_equal(policy.get_weights(), before["default_policy"])
    policy.set_weights(policy.get_weights() + 1)
    assert np.array_equal(
        trainer.get_weights(["default_policy"])["default_policy"], before["default_policy"] + 1
    )


# --- checkpoints ----------------------------------------------------------------------------------------


def test_a_checkpoint_lies_where_rllib_put_it_and_both_paths_restore_it(trainer):
    trainer.train()
    path = trainer.save("tmp/exa")
    assert path == "tmp/exa/checkpoint_1/checkpoint-1"
    assert Path(path).exists()
    expected = trainer.get_weights()["default_policy"]
    for form in (path, Path(path), "tmp/exa/checkpoint_1"):
        trainer.train()
        trainer.restore(form)
        assert trainer.iteration == 1
        assert np.array_equal(trainer.get_weights()["default_policy"], expected)
    assert trainer.save("tmp/exa") == path  # once more, in place
    trainer.train()
    assert trainer.save("tmp/exa") == "tmp/exa/checkpoint_2/checkpoint-2"
    assert sorted(entry.name for entry in Path("tmp/exa").iterdir()) == ["checkpoint_1", "checkpoint_2"]
    with pytest.raises(steppe.CheckpointError, match="no checkpoint"):
        trainer.restore("tmp/exa/checkpoint_9")


def test_restoring_goes_on_exactly(quick):
    first = ppo.PPOTrainer(env=Signs)
    first.train()
    path = first.save("here")
    expected = [first.train() for _ in range(2)]
    again = ppo.PPOTrainer(env=Signs)
    again.restore(path)
    for result in expected:
        other = again.train()
        for key in ("episode_reward_mean", "timesteps_total", "training_iteration"):
            assert other[key] == result[key]
        assert other["info"]["default_policy"] == result["info"]["default_policy"]
    assert np.array_equal(first.get_weights()["default_policy"], again.get_weights()["default_policy"])
    first.stop()
    again.stop()


def test_checkpoints_are_steppe_s_own(trainer):
    trainer.train()
    path = trainer.save("here")
    with steppe.load(path, env=Signs) as algorithm:
        assert algorithm.iteration == 1
    with pytest.raises(steppe.CheckpointError, match=r"here/checkpoint_1 is no checkpoint of steppe"):
        steppe.load("here/checkpoint_1", env=Signs)


def test_without_a_folder_it_goes_into_the_run_s(trainer, quick):
    trainer.train()
    path = Path(trainer.save())
    assert path == Path(trainer.logdir) / "checkpoints" / "checkpoint_1" / "checkpoint-1"
    trainer.restore(path)
    unwritten = ppo.PPOTrainer(env=Signs, config={"write_run": False})
    assert unwritten.logdir is None
    with pytest.raises(steppe.ConfigError, match="say where"):
        unwritten.save()
    assert Path(unwritten.save("there")).exists()
    unwritten.stop()


def test_another_run_s_checkpoint_is_replaced_and_nothing_else(quick):
    runs = [ppo.PPOTrainer(env=Signs, config={"seed": seed}) for seed in (1, 2)]
    for one in runs:
        one.train()
        (kept := Path("here/checkpoint_1/notes.txt")).parent.mkdir(parents=True, exist_ok=True)
        kept.write_text("mine")
        path = one.save("here")
    assert np.array_equal(*[one.get_weights()["default_policy"] for one in (runs[1], restored(path))])
    assert kept.read_text() == "mine"

    theirs = Path("there/checkpoint_1/checkpoint-1")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"\x80\x04 a pickle of RLlib's")
    with pytest.raises(steppe.CheckpointError, match="is a file"):
        runs[0].save("there")
    assert theirs.read_bytes().startswith(b"\x80\x04")

    foreign = Path("where/checkpoint_1/checkpoint-1")
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(steppe.CheckpointError, match=r"thesis\.txt"):
        runs[0].save("where")
    (Path(path) / "thesis.txt").write_text("years of work")
    with pytest.raises(steppe.CheckpointError, match=r"thesis\.txt"):
        runs[0].save("here")
    for one in runs:
        one.stop()


def restored(path):
    made = ppo.PPOTrainer(env=Signs)
    made.restore(path)
    made.stop()
    return made


def test_rllib_s_own_checkpoint_is_named_as_such_and_not_opened(trainer):
    folder = Path("old/checkpoint_5")
    folder.mkdir(parents=True)
    (folder / "checkpoint-5").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    for path in (folder / "checkpoint-5", folder):
        with pytest.raises(steppe.CheckpointError, match="RLlib checkpoint"):
            trainer.restore(path)
    assert not Path("opened").exists()


PROGRAM = """
import sys
from steppe.compat import gym
from steppe.compat.agents import ppo

class Flip(gym.Env):
    def __init__(self, config):
        self.action_space = self.observation_space = gym.spaces.Discrete(2)
    def reset(self):
        return 0
    def step(self, action):
        return 0, 1.0, True, {}

small = {"train_batch_size": 32, "rollout_fragment_length": 32, "sgd_minibatch_size": 32, "num_sgd_iter": 1}
agent = ppo.PPOTrainer({**small, "num_workers": 0, "model": {"fcnet_hiddens": [4]}}, env=Flip)
agent.train()
print(agent.save("tmp/exa"), agent.logdir)
if len(sys.argv) > 1:
    raise RuntimeError("as the program ends")
"""


def record_of(logdir):
    return json.loads((Path(logdir) / "run.json").read_text())


def test_a_program_run_twice_saves_into_the_same_folder_and_each_run_is_recorded(monkeypatch):
    """Neither calls stop(); the second one, in a process of its own, ends with an error."""
    monkeypatch.delattr(sys, "last_value", raising=False)
    monkeypatch.setattr(sys, "argv", ["program.py"])
    names = {}
    exec(PROGRAM, names)
    first = names["agent"].logdir
    assert record_of(first)["status"] == "running"
    names.clear()
    gc.collect()
    assert record_of(first)["status"] == "finished"

    Path("program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py", "fail"], capture_output=True, text=True, check=False)
    path, second = done.stdout.split()
    assert path == "tmp/exa/checkpoint_1/checkpoint-1"
    assert second != first
    record = record_of(second)
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: as the program ends")


# --- ray ------------------------------------------------------------------------------------------------


def test_ray_is_initialised_in_words_only():
    known = "ray" in sys.modules  # others may have needed it
    assert not ray.is_initialized()
    ray.init(address="auto", num_cpus=2, object_store_memory=1 << 30)
    ray.init(ignore_reinit_error=True)
    assert ray.is_initialized()
    ray.shutdown()
    ray.shutdown()
    assert not ray.is_initialized()
    assert known or "ray" not in sys.modules
    assert ray.tune.register_env is steppe.register_env
    assert ray.rllib.__name__ == "steppe.compat.ray.rllib"
    with pytest.raises(AttributeError, match=r"no 'remote'.*install Ray"):
        _ = ray.remote


def test_envs_of_rllib_come_as_steppe_has_them():
    from steppe.compat.ray.rllib.env import EnvContext
    from steppe.compat.ray.rllib.env.env_context import EnvContext as ByModule

    assert EnvContext is ByModule is steppe.EnvContext
    with pytest.raises(ImportError):
        from steppe.compat.ray.rllib.env import NoSuchEnv  # noqa: F401


def test_a_vector_env_with_the_old_spelling_is_trained_in(quick):
    from steppe.compat.ray.rllib.env import VectorEnv
    from steppe.compat.ray.rllib.env.vector_env import VectorEnv as ByModule

    class Two(VectorEnv):
        def __init__(self):
            space = gym.spaces.Discrete(2)
            super().__init__(observation_space=space, action_space=space, num_envs=2)

        def vector_reset(self):
            self.counts = [0, 0]
            return [0, 0]

        def reset_at(self, index):
            self.counts[index] = 0
            return 0

        def vector_step(self, actions):
            self.counts = [count + 1 for count in self.counts]
            dones = [count == 2 + index for index, count in enumerate(self.counts)]
            return [1, 1], [1.0, 1.0], dones, [{}, {}]

        def get_sub_environments(self):
            return []

    trainer = ppo.PPOTrainer(env=lambda config: Two(), config={"num_envs_per_worker": 2})
    result = trainer.train()
    assert ByModule is VectorEnv is steppe.VectorEnv
    assert result["episode_reward_min"] == 2.0
    assert result["episode_reward_max"] == 3.0
    trainer.stop()


def test_fields_that_the_fallback_sets_exist():
    assert {"num_env_runners", "evaluation_num_env_runners"} <= field_specs(steppe.PPOConfig).keys()
