"""Callbacks as a user's program meets them: which are called, when, with what, and what a mistake says."""

from __future__ import annotations

import logging
from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe import checkpoint
from steppe.sampling.callbacks import HOOKS, Callbacks, hook_of, make_callbacks
from tests.states import diff

TINY = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 24,
    "minibatch_size": 8,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}


class Counting(gymnasium.Env):
    """Episodes of 5 steps; observation t, reward t, info says t."""

    def __init__(self, env_config=None):
        self.observation_space, self.action_space = spaces.Box(0, 9, (1,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"t": 0}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), float(self.t), self.t == 5, False, {"t": self.t}


def tiny(callbacks, env=Counting, **changes):
    return steppe.PPOConfig(env=env, callbacks_class=callbacks, **{**TINY, **changes})


class Diary(Callbacks):
    """Writes down every call of an episode hook."""

    def __init__(self):
        self.lines = []

    def on_episode_start(self, *, worker, base_env, policies, episode, env_index):
        assert base_env is worker.env
        assert set(policies) == {"default_policy"}
        assert (episode.length, episode.total_reward, episode.last_info_for()) == (0, 0.0, {"t": 0})
        episode.user_data["seen"] = []
        self.lines.append(("start", env_index, episode.id))

    def on_episode_step(self, *, episode, env_index, **kwargs):
        assert episode.last_info_for()["t"] == episode.length == episode.last_observation_for()[0]
        episode.user_data["seen"].append(episode.length)
        self.lines.append(("step", env_index, episode.id))

    def on_episode_end(self, *, episode, worker):
        assert episode.agent_rewards == {"agent0": 15.0} == {"agent0": episode.total_reward}
        assert episode.policy_for() == "default_policy"
        assert (episode.worker_index, episode.length) == (worker.worker_index, 5)
        episode.custom_metrics["steps"] = len(episode.user_data["seen"])
        episode.custom_metrics["env"] = episode.env_index
        self.lines.append(("end", episode.env_index, episode.id))


def test_episode_hooks_are_called_in_order_and_their_metrics_are_averaged():
    diary = Diary()
    with tiny(diary).build() as algo:
        result = algo.train()  # 12 steps of each of two envs: two episodes and two steps
    for env in (0, 1):
        own = [(what, id) for what, index, id in diary.lines if index == env]
        first, second, third = (f"0-{env}-{episode}" for episode in range(3))
        whole = lambda id: [("start", id), *[("step", id)] * 5, ("end", id)]  # noqa: E731
        assert own == [*whole(first), *whole(second), ("start", third), ("step", third), ("step", third)]
    assert result["custom_metrics"] == {
        **{"steps_mean": 5.0, "steps_min": 5.0, "steps_max": 5.0},
        **{"env_mean": 0.5, "env_min": 0.0, "env_max": 1.0},
    }


class Everything(Callbacks):
    """Counts every hook, and keeps what came with the rarer ones."""

    def __init__(self):
        self.calls, self.kept = Counter(), {}

    def get_state(self):
        return {"calls": dict(self.calls)}

    def set_state(self, state):
        self.calls = Counter(state["calls"])


def _counting(name):
    def hook(self, **kwargs):
        assert set(HOOKS[name]) <= set(kwargs)
        self.calls[name] += 1
        self.kept[name] = kwargs

    return hook


for _name in HOOKS:
    setattr(Everything, _name, _counting(_name))


def test_every_hook_is_called_with_every_argument_that_it_may_take(tmp_path):
    everything = Everything()
    with tiny(
        everything, evaluation_interval=1, evaluation_duration=2, evaluation_num_envs=1
    ).build() as algo:
        assert everything.calls == {"on_algorithm_init": 1, "on_sub_environment_created": 2}
        assert isinstance(everything.kept["on_sub_environment_created"]["sub_environment"], Counting)
        assert everything.kept["on_sub_environment_created"]["env_context"].vector_index == 1
        algo.train()
        path = algo.save(tmp_path / "c")
        assert everything.kept["on_algorithm_init"]["algorithm"] is algo
        assert everything.kept["on_checkpoint"]["path"] == path
    # 2 envs x 2 episodes and 2 begun, and the evaluation's 2 and 1 begun; 12 polls in training, 10 in it.
    assert everything.calls == {
        "on_algorithm_init": 1,
        "on_sub_environment_created": 3,
        "on_episode_start": 6 + 3,
        "on_episode_step": 24 + 10,
        "on_episode_end": 4 + 2,
        "on_sample_end": 2,
        "on_postprocess_trajectory": 6,
        "on_learn_on_batch": 1,
        "on_train_result": 1,
        "on_evaluate_start": 1,
        "on_evaluate_end": 1,
        "on_checkpoint": 1,
    }


class Poison(Callbacks):
    """Turns every reward around, in a trajectory and in the batch."""

    def on_postprocess_trajectory(self, *, postprocessed_batch, episode, agent_id, original_batches):
        rewards = postprocessed_batch["rewards"]
        t = postprocessed_batch["t"]
        np.testing.assert_array_equal(rewards, t + 1.0)
        np.testing.assert_array_equal(postprocessed_batch["obs"][:, 0], t)
        np.testing.assert_array_equal(postprocessed_batch["new_obs"][:, 0], t + 1.0)
        np.testing.assert_array_equal(postprocessed_batch["terminateds"], t == 4)
        np.testing.assert_array_equal(original_batches[agent_id][1]["rewards"], rewards)
        episode.custom_metrics["rows"] = episode.custom_metrics.get("rows", 0) + len(rewards)
        postprocessed_batch["rewards"] = -rewards

    def on_learn_on_batch(self, *, train_batch, result, policy):
        outcomes = train_batch["reward"][1:][train_batch["filled"][1:]]  # row 0 has no action before it
        result["lowest"], result["highest"] = float(outcomes.min()), float(outcomes.max())
        train_batch["reward"][...] = 0.0


@pytest.mark.parametrize("fragment", ["auto", 4])
def test_what_hooks_change_is_learned_from_and_what_they_measure_is_reported(fragment):
    with tiny(Poison, rollout_fragment_length=fragment).build() as algo:
        first = algo.train()
        second = algo.train()
    for result in (first, second):
        stats = result["info"]["default_policy"]
        assert (stats["lowest"], stats["highest"]) == (-5.0, 0.0)
    assert first["episode_reward_mean"] == 15.0  # what was measured before stays
    assert first["custom_metrics"]["rows_mean"] == 5.0


def test_a_trajectory_of_another_shape_is_refused():
    class Shorter(Callbacks):
        def on_postprocess_trajectory(self, *, postprocessed_batch):
            postprocessed_batch["rewards"] = postprocessed_batch["rewards"][1:]

    with tiny(Shorter).build() as algo, pytest.raises(steppe.ConfigError, match=r"'rewards'.*\(4,\).*\(5,\)"):
        algo.train()


def test_results_and_evaluations_can_be_added_to():
    class More(Callbacks):
        def on_train_result(self, *, trainer, result):
            result["phase"] = trainer.config.seed + result["training_iteration"]

        def on_evaluate_end(self, *, evaluation_metrics):
            evaluation_metrics["twice"] = 2 * evaluation_metrics["episode_reward_mean"]

    with tiny(More, evaluation_interval=1, evaluation_duration=1).build() as algo:
        result = algo.train()
    assert result["phase"] == 1
    assert result["evaluation"]["twice"] == 30.0


def test_several_callbacks_run_in_their_order():
    order = []

    def maker(name):
        return type(
            name,
            (Callbacks,),
            {"on_sample_end": lambda self, *, samples: order.append((name, samples.count))},
        )

    with tiny([maker("A"), maker("B")()]).build() as algo:
        algo.train()
    assert order == [("A", 24), ("B", 24)]


def test_resume_is_exact_with_open_episodes_and_their_data(tmp_path, caplog):
    class Long(Everything):
        def on_episode_start(self, *, episode):
            episode.user_data["trace"] = [np.float32(0.5)]
            episode.user_data["object"] = self

        def on_episode_step(self, *, episode):
            episode.user_data["trace"].append(episode.total_reward)

        def on_episode_end(self, *, episode):
            episode.custom_metrics["trace"] = len(episode.user_data["trace"])
            self.calls["ends"] += 1

    with tiny(Long()).build() as straight:
        for _ in range(4):
            last = straight.train()
        expected = straight.get_state()
    with tiny(Long()).build() as first:
        first.train()
        first.train()
        with caplog.at_level(logging.WARNING):
            path = first.save(tmp_path / "c")
    assert "user_data['object'] is nothing that a checkpoint can hold" in caplog.text
    with steppe.load(path, env=Counting, callbacks_class=Long()) as second:
        second.train()
        result = second.train()
        found = second.get_state()
    for owner in ("algorithm", "learner", "callbacks"):
        assert diff(expected[owner], found[owner]) == []
    assert result["custom_metrics"] == last["custom_metrics"]
    assert result["custom_metrics"]["trace_min"] == 6


def test_load_names_callbacks_that_are_missing(tmp_path):
    with tiny(Diary, env="CartPole-v1").build() as algo:
        path = algo.save(tmp_path / "c")
    with pytest.raises(
        steppe.CheckpointError, match=r"load\(path, callbacks_class=\.\.\. \(it was 'Diary'\)\)"
    ):
        steppe.load(path)


def mistaken(**methods):
    return type("Mine", (Callbacks,), methods)


async def sleeps(self, *, episode):
    pass


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            mistaken(on_episode_stat=lambda self, **kw: 0),
            r"Mine.on_episode_stat is no hook; did you mean on_epis",
        ),
        (mistaken(on_step=lambda self: 0), r"Mine.on_step is no hook; "),
        (
            mistaken(on_episode_end=lambda self, episod: 0),
            r"on_episode_end takes 'episod'.*did you mean 'episode'",
        ),
        (
            mistaken(on_train_result=lambda self, *, metrics_logger: 0),
            r"takes 'metrics_logger'.*algorithm, result",
        ),
        (mistaken(on_train_result=lambda self, result, tune=None: 0), None),
        (mistaken(on_episode_end=lambda self, *, episode, metrics_logger=None: 0), None),
        (mistaken(on_episode_end=lambda self, *, episod=None: 0), r"takes 'episod'.*did you mean 'episode'"),
        (mistaken(on_reward=lambda self, *, x: 0), r"A method of your own needs a name without on_"),
        (mistaken(on_episode_end=5), r"Mine.on_episode_end must be a function.*it is 5"),
        (mistaken(on_episode_end=sleeps), r"must be a function, and not an async one"),
        (mistaken(on_episode_end=lambda episode: 0), r"is a method: its first parameter is self"),
        (mistaken(on_episode_end=lambda self, episode, /: 0), r"takes 'episode' by position"),
        (mistaken(on_episode_end=staticmethod(lambda episod: 0)), r"takes 'episod'"),
        (mistaken(on_episode_end=staticmethod(lambda episode: 0)), None),
        (mistaken(on_episode_end=classmethod(lambda cls, episode: 0)), None),
        (
            mistaken(__init__=lambda self, size: None),
            r"callbacks Mine takes arguments: give an object, Mine\(",
        ),
        (Counting, r"a subclass of steppe.Callbacks"),
        ("Diary", r"callbacks='Diary'"),
    ],
)
def test_a_mistake_in_a_callback_is_said_before_any_env_is_built(given, text):
    built = []
    if text is None:
        assert make_callbacks(given)
        return
    with pytest.raises(steppe.ConfigError, match=text):
        tiny(given, env=lambda config: built.append(1)).build()
    assert built == []


def test_hooks_that_are_not_set_are_none_and_leave_the_sampler_alone():
    assert hook_of(make_callbacks(Callbacks), "on_episode_step") is None
    assert make_callbacks(None) == ()
    with tiny(None).build() as algo:
        assert algo.runner.sampler.hooks is None
    with tiny(mistaken(on_train_result=lambda self, result: None)).build() as algo:
        assert algo.runner.sampler.hooks is None


def test_an_exception_in_a_hook_comes_out_as_it_is():
    class Broken(Callbacks):
        def on_episode_end(self, *, episode):
            raise ZeroDivisionError("mine")

    with tiny(Broken).build() as algo, pytest.raises(ZeroDivisionError, match="mine"):
        algo.train()


def test_a_metric_that_is_no_number_is_named():
    class Text(Callbacks):
        def on_episode_end(self, *, episode):
            episode.custom_metrics["name"] = "x"

    with tiny(Text).build() as algo, pytest.raises(steppe.ConfigError, match=r"custom_metrics\['name'\]='x'"):
        algo.train()


def test_an_agent_that_is_not_there_is_named():
    class Wrong(Callbacks):
        def on_episode_end(self, *, episode):
            episode.last_info_for("agent_7")

    with tiny(Wrong).build() as algo, pytest.raises(KeyError, match=r"no agent 'agent_7'.*agent0"):
        algo.train()


def test_a_hook_that_an_object_got_for_itself_is_called():
    ends = []
    mine = Callbacks()
    mine.on_episode_end = lambda episode: ends.append(episode.total_reward)
    with tiny(mine).build() as algo:
        algo.train()
    assert ends == [15.0] * 4


def test_statistics_that_are_no_numbers_are_named():
    class Text(Callbacks):
        def on_learn_on_batch(self, *, result):
            result["name"] = "x"

    with tiny(Text).build() as algo, pytest.raises(steppe.ConfigError, match=r"result\['name'\] 'x'"):
        algo.train()


def test_keys_of_a_result_that_a_hook_removed_are_still_there():
    class Clear(Callbacks):
        def on_train_result(self, *, result):
            result.clear()
            result["mine"] = 1

    with tiny(Clear).build() as algo:
        result = algo.train()
    assert (result["mine"], result["timesteps_total"]) == (1, 24)


circle: list = []
circle.append(circle)


@pytest.mark.parametrize(
    "value", [np.ma.masked_array([1], [0]), np.str_("x"), circle, {1: 2}, np.array("x"), set()]
)
def test_data_that_no_checkpoint_can_hold_is_left_out_and_said(value, tmp_path, caplog):
    class Keeps(Callbacks):
        def on_episode_start(self, *, episode):
            episode.user_data["mine"] = value
            episode.user_data["fine"] = (np.float64(1.5), [None, {"a": np.arange(3)}])

    with tiny(Keeps).build() as algo, caplog.at_level(logging.WARNING):
        algo.train()
        path = algo.save(tmp_path / "c")
    assert "user_data['mine'] is nothing that a checkpoint can hold" in caplog.text
    owners, _ = checkpoint.load(path)
    assert set(owners["runner"]["hooks"][0]["user_data"]) == {"fine"}


def test_callbacks_that_come_to_a_running_episode_are_told_of_the_next_one(tmp_path):
    with tiny(None).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
    diary = Diary()
    with steppe.load(path, env=Counting, callbacks_class=diary) as algo:
        algo.train()
    assert [what for what, _, _ in diary.lines[:2]] == ["start", "start"]
    assert {id.rpartition("-")[2] for _, _, id in diary.lines} == {"3", "4"}
