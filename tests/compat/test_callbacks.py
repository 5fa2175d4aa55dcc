"""RLlib 1.x's callbacks: a class with its argument names, or a dict of functions that take one ``info``."""

import json
from pathlib import Path

import numpy as np
import pytest

import steppe
from steppe import compat
from steppe.compat import DefaultCallbacks, gym
from steppe.compat.agents import ppo
from steppe.compat.callbacks import adapted
from steppe.compat.ray.rllib.agents.callbacks import DefaultCallbacks as Mirrored


class Steps(gym.Env):
    """Four steps with reward 1; ``info`` counts them."""

    def __init__(self, config):
        self.action_space = self.observation_space = gym.spaces.Discrete(2)

    def reset(self):
        self.count = 0
        return 0

    def step(self, action):
        self.count += 1
        return 0, 1.0, self.count == 4, {"count": self.count}


class Watching(DefaultCallbacks):
    """Written with the argument names of RLlib 1.x."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_episode_start(self, *, worker, base_env, policies, episode, env_index, **kwargs):
        episode.user_data["counts"] = []

    def on_episode_step(self, *, worker, base_env, episode, env_index, **kwargs):
        episode.user_data["counts"].append(episode.last_info_for()["count"])

    def on_episode_end(self, *, worker, base_env, policies, episode, env_index, **kwargs):
        assert episode.user_data["counts"] == [1, 2, 3, 4]
        assert "default_policy" in policies
        episode.custom_metrics["squares"] = sum(n * n for n in episode.user_data["counts"])

    def on_sample_end(self, *, worker, samples, **kwargs):
        self.calls.append("sample")

    def on_postprocess_trajectory(
        self,
        *,
        worker,
        episode,
        agent_id,
        policy_id,
        policies,
        postprocessed_batch,
        original_batches,
        **kwargs,
    ):
        assert policy_id == "default_policy"
        assert agent_id in original_batches

    def on_learn_on_batch(self, *, policy, train_batch, result, **kwargs):
        result["largest_reward"] = float(np.max(train_batch["reward"]))

    def on_train_result(self, *, trainer, result, **kwargs):
        result["told"] = (trainer.iteration, trainer.config["env"], trainer.get_policy().policy_id)

    def get_state(self):
        return {"samples": len(self.calls)}

    def set_state(self, state):
        self.calls = ["before"] * state["samples"]


@pytest.mark.parametrize("given", [Watching, [Watching], Watching()])
def test_a_class_is_called_with_rllib_s_names_and_the_program_s_trainer(quick, given):
    trainer = ppo.PPOTrainer(env=Steps, config={"callbacks": given})
    result = trainer.train()
    assert result["custom_metrics"]["squares_mean"] == 30
    assert result["told"] == (1, Steps, "default_policy")
    assert result["info"]["learner"]["default_policy"]["largest_reward"] == 1.0
    assert trainer.config["callbacks"] is given
    trainer.stop()


def test_a_hook_gets_and_changes_what_train_returns(quick):
    seen = []

    class Changing(DefaultCallbacks):
        def on_train_result(self, *, trainer, result, **kwargs):
            seen.append((dict(result), trainer))
            result["mine"] = 2.5
            result["episode_reward_mean"] = -1.0
            result["info"]["learner"]["default_policy"]["mine"] = 7
            result["hist_stats"] = {}
            del result["time_total_s"]

    trainer = ppo.PPOTrainer(env=Steps, config={"callbacks": Changing, "evaluation_interval": 1})
    result = trainer.train()
    ((told, teller),) = seen
    assert teller is trainer
    assert told["config"] is trainer.config
    assert told["done"] is False
    assert told["hist_stats"]["episode_reward"] == [4.0] * 16
    assert told["info"]["learner"]["default_policy"]["learner_stats"]["cur_lr"] == pytest.approx(5e-5)
    assert {key: told["info"][key] for key in told["info"] if key.startswith("num_")} == {
        "num_steps_sampled": 64,
        "num_steps_trained": 64,
        "num_agent_steps_sampled": 64,
        "num_agent_steps_trained": 64,
    }
    assert told["time_this_iter_s"] <= told["time_total_s"]
    assert type(told["evaluation"]) is dict
    assert (result["mine"], result["episode_reward_mean"], result["hist_stats"]) == (2.5, -1.0, {})
    assert result["info"]["learner"]["default_policy"]["mine"] == 7
    assert result["time_total_s"] == told["time_total_s"]  # nothing can be taken away
    (row,) = map(json.loads, (Path(trainer.logdir) / "result.jsonl").read_text().splitlines())
    assert (row["mine"], row["episode_reward_mean"]) == (2.5, -1.0)
    assert not {"config", "learner"} & (row.keys() | row["info"].keys())  # steppe's own form
    trainer.stop()


def test_evaluation_has_rllib_s_form_and_callbacks_of_its_own(quick):
    ended, measured = [], []

    class Ends(DefaultCallbacks):
        def on_evaluate_end(self, *, trainer, evaluation_metrics, **kwargs):
            ended.append(evaluation_metrics["evaluation"]["episode_reward_mean"])
            evaluation_metrics["evaluation"]["added"] = 3
            evaluation_metrics["evaluation"] = {**evaluation_metrics["evaluation"], "more": 4}

    def end(info):
        measured.append(info["worker"].in_evaluation)
        info["episode"].custom_metrics["length"] = info["episode"].length

    config = {"callbacks": Ends, "evaluation_interval": 1, "evaluation_num_episodes": 2}
    config["evaluation_config"] = {"callbacks": {"on_episode_end": end}}
    trainer = ppo.PPOTrainer(env=Steps, config=config)
    result = trainer.train()
    evaluation = result["evaluation"]
    assert json.loads(json.dumps(evaluation)) == evaluation
    assert (evaluation["added"], evaluation["more"], evaluation["episode_reward_mean"]) == (3, 4, 4.0)
    assert evaluation["custom_metrics"]["length_mean"] == 4.0
    assert result["custom_metrics"] == {}
    assert trainer.evaluate()["evaluation"]["more"] == 4
    assert ended == [4.0, 4.0]
    assert measured == [True] * 4
    trainer.stop()


def test_the_first_hook_gets_a_trainer_with_its_algorithm(quick):
    seen = []

    class First(DefaultCallbacks):
        def on_algorithm_init(self, *, trainer):
            seen.append((trainer, trainer.iteration, list(trainer.get_weights())))

    trainer = ppo.PPOTrainer(env=Steps, config={"callbacks": First})
    assert seen == [(trainer, 0, ["default_policy"])]
    trainer.stop()


def test_functions_get_an_info(quick):
    got = {}

    def keep(name):
        def function(info):
            got.setdefault(name, info)
            if name == "on_train_result":
                info["result"]["added"] = info["trainer"].iteration
            if name == "on_episode_end":
                info["episode"].custom_metrics["length"] = info["episode"].length

        return function

    names = (
        *("on_episode_start", "on_episode_step", "on_episode_end", "on_sample_end"),
        *("on_postprocess_traj", "on_train_result"),
    )
    trainer = ppo.PPOTrainer(env=Steps, config={"callbacks": {name: keep(name) for name in names}})
    result = trainer.train()
    assert got.keys() == set(names)
    assert {"env", "policy", "episode"} <= got["on_episode_start"].keys()
    assert {"worker", "samples"} <= got["on_sample_end"].keys()
    assert got["on_train_result"]["trainer"] is trainer
    assert (result["added"], result["custom_metrics"]["length_mean"]) == (1, 4.0)
    post = got["on_postprocess_traj"]
    assert post["pre_batch"] is post["all_pre_batches"][post["agent_id"]]
    assert post["post_batch"] is post["postprocessed_batch"]
    trainer.stop()


def test_hooks_that_nobody_wrote_are_not_called():
    made = adapted({"on_train_result": lambda info: None}, trainer=None)
    assert set(vars(type(made))) & set(dir(steppe.Callbacks)) >= {"on_train_result", "get_state"}
    assert "on_episode_step" not in vars(type(made))


def test_the_state_of_callbacks_is_saved_and_restored(quick):
    watching = Watching()
    trainer = ppo.PPOTrainer(env=Steps, config={"callbacks": watching})
    trainer.train()
    path = trainer.save("here")
    assert watching.calls == ["sample"]
    trainer.train()
    assert len(watching.calls) == 2
    trainer.restore(path)
    assert watching.calls == ["before"]
    trainer.stop()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on_episode_ende": print}, "did you mean 'on_episode_end'"),
        ({"on_episode_end": "print"}, "functions by name"),
        (type("Wrong", (DefaultCallbacks,), {"on_episode_ends": lambda self, **kw: None}), "on_episode_end"),
        (print, "callbacks"),
    ],
)
def test_what_is_no_callback_is_said(quick, given, message):
    with pytest.raises(steppe.ConfigError, match=message):
        ppo.PPOTrainer(env=Steps, config={"callbacks": given})


def test_a_dict_is_not_given_to_the_class():
    assert Mirrored is DefaultCallbacks
    assert DefaultCallbacks().get_state() == DefaultCallbacks({}).get_state() == {}
    with pytest.raises(steppe.ConfigError, match='config\\["callbacks"\\]'):
        DefaultCallbacks({"on_episode_end": print})
    with pytest.raises(AttributeError, match="OtherCallbacks"):
        _ = compat.OtherCallbacks
