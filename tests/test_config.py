"""Three spellings of a config give one object, and every mistake is named with its fix."""

import copy
import json
import logging
import pickle
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe.config
from steppe.config import (
    AlgorithmConfig,
    PolicySpec,
    Schedule,
    above,
    at_least,
    between,
    each,
    field_docs,
    field_specs,
    policy_field,
    run_field,
    scheduled,
)
from steppe.config.names import ALIASES
from steppe.config.values import MismatchError, coerced, words
from steppe.errors import ConfigError
from steppe.sampling.callbacks import Callbacks


@dataclass(kw_only=True)
class ToyConfig(AlgorithmConfig):
    """An algorithm with a few fields of its own."""

    algo_name: ClassVar[str] = "Toy"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"small": {"train_batch_size": 100, "lr": 0.01}}

    lambda_: float = policy_field(0.95, check=between(0, 1))
    """Trace decay."""
    num_epochs: int = policy_field(10, check=at_least(1))
    """Passes
    over the batch."""
    minibatch_size: int = policy_field(128, check=at_least(1))
    """Rows of a minibatch."""
    entropy_coeff: Schedule = policy_field(0.0, check=scheduled(at_least(0)))
    """Weight of the entropy."""
    weights: list[float] = run_field([1.0], section="reporting", check=each(above(0)), alias="old_weights")

    def make_learner(self, policies):
        return policies


class Corridor:
    pass


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(steppe.config.messages, "_said", set())


def refusal(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


# --- three spellings --------------------------------------------------------------------------------------


def test_three_spellings_give_equal_objects():
    by_name = ToyConfig(
        env="e", env_config={"n": 5}, num_envs_per_env_runner=4, lr=0.01, seed=3, num_epochs=2
    )
    fluent = (
        ToyConfig()
        .environment("e", env_config={"n": 5})
        .env_runners(num_envs_per_worker=4)
        .training(lr=0.01, num_sgd_iter=2)
        .debugging(seed=3)
    )
    old = ToyConfig.from_dict(
        {
            "env": "e",
            "env_config": {"n": 5},
            "num_envs_per_worker": 4,
            "lr": 0.01,
            "seed": 3,
            "num_sgd_iter": 2,
            "framework": "torch",
        }
    )
    assert by_name == fluent == old
    assert by_name != ToyConfig(env="e")


def test_fluent_methods_change_and_return_the_same_object():
    config = ToyConfig()
    sections = (
        config.environment(max_episode_steps=9),
        config.env_runners(explore=False),
        config.training(gamma=0.5),
        config.evaluation(evaluation_duration=3),
        config.checkpointing(checkpoint_freq=2),
        config.reporting(weights=[2]),
        config.debugging(log_level="INFO"),
        config.framework("torch"),
        config.resources(num_gpus=1),
        config.update_from_dict({"num_workers": 0, "model": {"free_log_std": True}}),
    )
    assert all(section is config for section in sections)
    assert config.changes() == {
        "max_episode_steps": 9,
        "explore": False,
        "gamma": 0.5,
        "evaluation_duration": 3,
        "checkpoint_freq": 2,
        "weights": [2.0],
        "log_level": "INFO",
    }


@pytest.mark.parametrize("old", sorted(old for old, new in ALIASES.items() if new in field_specs(ToyConfig)))
def test_every_old_name_leads_to_a_field(old):
    today = ALIASES[old]
    default = field_specs(ToyConfig)[today].default()
    value = default if default is not None else None if old in ("callbacks", "multiagent", "input_") else 7
    assert ToyConfig.from_dict({old: value}) == ToyConfig(**{today: value})
    assert f"{old} is the old name of {today}" in refusal(lambda: ToyConfig(**{old: value}))


def test_what_brings_experience_is_a_server_or_a_function_that_makes_one():
    def made(ioctx):
        raise AssertionError("when the run is built")

    assert ToyConfig().offline_data(input_=made).input is made
    assert ToyConfig.from_dict({"input": "sampler", "input_evaluation": []}) == ToyConfig()
    assert ToyConfig(input=made).code_fields() == ["input"]
    assert ToyConfig(input=made).to_dict()["input"] == "made"
    assert "a PolicyServer, or a function" in refusal(lambda: ToyConfig(input=3))


def test_nested_model_dict_and_own_alias():
    config = ToyConfig.from_dict(
        {"model": {"fcnet_hiddens": (32,), "vf_share_layers": True}, "old_weights": [3, 4], "lambda": 0.5}
    )
    assert config.changes() == {
        "fcnet_hiddens": [32],
        "vf_share_layers": True,
        "weights": [3.0, 4.0],
        "lambda_": 0.5,
    }
    assert "model=3 must be a dict" in refusal(lambda: ToyConfig.from_dict({"model": 3}))
    text = refusal(lambda: ToyConfig.from_dict({"model": {"grayscale": True}}))
    assert text.startswith("ToyConfig: model.grayscale=True: ")


def test_a_schedule_wins_over_the_constant_and_none_is_no_schedule():
    points = [[0, 1e-3], [1e6, 1e-5]]
    assert ToyConfig.from_dict({"lr_schedule": points, "lr": 5e-5}).lr == [[0.0, 1e-3], [1e6, 1e-5]]
    assert ToyConfig.from_dict({"lr": 5e-5, "lr_schedule": None}).lr == 5e-5


def test_two_spellings_that_disagree():
    assert ToyConfig.from_dict({"num_sgd_iter": 3.0, "num_epochs": 3}).num_epochs == 3
    text = refusal(lambda: ToyConfig.from_dict({"num_sgd_iter": 3, "num_epochs": 4}))
    assert "num_sgd_iter=3 and num_epochs=4 are two spellings" in text
    assert "disagree" in refusal(
        lambda: ToyConfig.from_dict({"fcnet_hiddens": [1], "model": {"fcnet_hiddens": [2]}})
    )


def test_keys_without_effect_are_said_once_unless_they_say_nothing(caplog):
    for _ in range(2):
        ToyConfig.from_dict({"num_gpus": 2, "num_cpus_per_worker": 1, "horizon": 3})
    said = "num_gpus is accepted and has no effect: JAX uses the accelerator that it finds"
    assert caplog.messages == [said]


# --- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda: ToyConfig(gama=0.9),
        lambda: ToyConfig().training(gama=0.9),
        lambda: ToyConfig.from_dict({"gama": 0.9}),
        lambda: ToyConfig().copy(gama=0.9),
        lambda: setattr(ToyConfig(), "gama", 0.9),
    ],
)
def test_unknown_names_get_a_suggestion(write):
    assert refusal(write) == "ToyConfig has no setting 'gama'. Did you mean 'gamma'?"


def test_a_suggestion_can_be_typed_as_an_argument():
    for wrong in ("lamda", "lambd"):  # closest to the old name "lambda", which is a word of Python
        assert refusal(lambda wrong=wrong: ToyConfig(**{wrong: 1})).endswith("Did you mean 'lambda_'?")


def test_unknown_names_far_from_everything_get_no_suggestion():
    assert refusal(lambda: ToyConfig(zzzz=1)) == "ToyConfig has no setting 'zzzz'."
    assert refusal(lambda: ToyConfig.from_dict({3: 1})) == "ToyConfig has no setting '3'."
    assert refusal(lambda: ToyConfig(num_gpus=1)).startswith(
        "ToyConfig: num_gpus has no effect here, leave it out"
    )
    assert refusal(lambda: ToyConfig(clip_rewards=True)).startswith(
        "ToyConfig: clip_rewards is no setting: wrap"
    )
    assert "takes settings by name: ToyConfig(env='CartPole-v1')" in refusal(lambda: ToyConfig("CartPole-v1"))
    assert "must be a dict" in refusal(lambda: ToyConfig.from_dict([1]))


def test_a_field_in_the_wrong_section_changes_nothing():
    config = ToyConfig()
    text = refusal(lambda: config.training(lr=1.0, num_workers=0))
    assert text == "ToyConfig: num_workers (num_env_runners) belongs to .env_runners(...), not .training(...)"
    text = refusal(lambda: config.environment(model={"fcnet_hiddens": [3]}))
    assert text == "ToyConfig: model.fcnet_hiddens belongs to .training(...), not .environment(...)"
    assert config == ToyConfig()


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("lr", "abc", "a number at least 0, or [[step, number], ...] with rising steps"),
        ("lr", True, "a number at least 0"),
        ("lr", float("inf"), "a number at least 0"),
        ("lr", [], "a number at least 0"),
        ("lr", [[0, 1], [0, 1]], "a number at least 0"),
        ("lr", [[-1, 1]], "a number at least 0"),
        ("lr", [[0, 1, 2]], "a number at least 0"),
        ("lr", [[0, -1]], "a number at least 0"),
        ("gamma", 1.01, "a number from 0 to 1"),
        ("gamma", float("nan"), "a number from 0 to 1"),
        ("seed", True, "a whole number at least 0 or None"),
        ("seed", -1, "a whole number at least 0 or None"),
        ("seed", "7", "a whole number at least 0 or None"),
        ("grad_clip", 0, "a number above 0 or None"),
        ("train_batch_size", 4000.5, "a whole number at least 1"),
        ("train_batch_size", float("inf"), "a whole number at least 1"),
        ("train_batch_size", None, "a whole number at least 1"),
        ("explore", 1, "True or False"),
        ("explore", "true", "True or False"),
        ("batch_mode", "episodes", "'truncate_episodes' or 'complete_episodes'"),
        ("rollout_fragment_length", 0, "a whole number at least 1, or 'auto'"),
        ("rollout_fragment_length", "long", "a whole number at least 1, or 'auto'"),
        ("fcnet_hiddens", [64, 0], "a list of whole numbers with items at least 1"),
        ("fcnet_hiddens", 64, "a list of whole numbers with items at least 1"),
        ("fcnet_hiddens", "64", "a list of whole numbers with items at least 1"),
        ("conv_filters", [[16, 8]], "[[channels, kernel, stride], ...] or None"),
        ("conv_filters", [[16, [8, 4], 2]], "[[channels, kernel, stride], ...] or None"),
        ("env_config", [1], "a dict"),
        ("run_dir", 3, "text or None"),
        ("weights", [0.0], "a list of numbers with items above 0"),
    ],
)
def test_illegal_values_name_key_value_and_what_is_legal(name, value, legal):
    text = refusal(lambda: ToyConfig(**{name: value}))
    assert text.startswith(f"ToyConfig: {name}={value!r} must be {legal}")
    assert text == refusal(lambda: setattr(ToyConfig(), name, value))


def test_long_values_are_shortened():
    assert len(refusal(lambda: ToyConfig(lr="x" * 1000))) < 250


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("train_batch_size", 4e3, 4000),
        ("train_batch_size", np.int32(7), 7),
        ("seed", 1 << 70, 1 << 70),
        ("lr", 1, 1.0),
        ("lr", np.array([[0, 1.0], [10, 0.5]]), [[0.0, 1.0], [10.0, 0.5]]),
        ("fcnet_hiddens", (3, 4.0), [3, 4]),
        ("fcnet_hiddens", np.array([3, 4]), [3, 4]),
        ("fcnet_hiddens", [], []),
        ("conv_filters", [[16, [8, 8], 4], (32, 4, 2)], [[16, 8, 4], [32, 4, 2]]),
        ("conv_filters", np.array([[16, 8, 4]]), [[16, 8, 4]]),
        ("explore", np.bool_(False), False),
        ("grad_clip", "none", None),
        ("grad_clip", float("inf"), float("inf")),
    ],
)
def test_values_that_fit_are_stored_in_one_form(name, value, stored):
    result = getattr(ToyConfig(**{name: value}), name)
    assert result == stored
    assert type(result) is type(stored)


def test_run_dir_takes_paths(tmp_path):
    assert ToyConfig(run_dir=tmp_path).run_dir == str(tmp_path)


@given(st.floats(allow_nan=True) | st.integers() | st.booleans() | st.text(max_size=3) | st.none())
def test_numbers_agree_with_a_plain_rule(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    for hint, fits in [
        (int, number and value == value and abs(value) != float("inf") and value == int(value)),
        (float, number and value == value),
    ]:
        if fits:
            result = coerced(hint, value)
            assert result == hint(value)
            assert type(result) is hint
        else:
            with pytest.raises(MismatchError):
                coerced(hint, value)


def test_words_of_types():
    assert words(dict[str, int]) == "a dict"
    assert words(Any) == "anything"
    assert words(int | list[float] | None) == "a whole number or a list of numbers"


class NoSpace:
    pass


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "must be a Gymnasium space or None"),
        (gymnasium.spaces.Discrete, "must be a Gymnasium space or None"),
        (NoSpace(), "space is NoSpace, which is not known: use one of Box, Discrete"),
        (lambda: 3, "space is function, which is not known"),
        ({"a": 1}, "={'a': 1}: no description of a space: expected a dict whose kind is one of Box"),
        (gymnasium.spaces.Text(3), "Text spaces are not supported"),
        (gymnasium.spaces.Dict(a=gymnasium.spaces.Text(3)), "['a']: Text spaces are not supported"),
    ],
)
def test_what_is_no_space_is_refused_when_it_is_set(name, value, said):
    text = refusal(lambda: ToyConfig(**{name: value}))
    assert text.startswith(f"ToyConfig: {name}=")
    assert said in text
    at = {"observation_space": 1, "action_space": 2}[name]
    spec = [None, None, None, None]
    spec[at] = value
    assert f"policies['a'].{name}=" in refusal(lambda: ToyConfig(policies={"a": tuple(spec)}))


def test_a_sequence_may_get_its_longest_length_later():
    endless = gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(3))
    config = ToyConfig(observation_space=endless)
    assert config.observation_space is endless
    config.max_sequence_length = 4
    assert ToyConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert config.to_dict()["observation_space"]["maximum"] == 4


class Mapping3:
    def __call__(self, agent_id, episode, worker):
        return "a"


@pytest.mark.parametrize(
    "mapping",
    [
        lambda agent_id: "a",
        lambda agent_id, episode: "a",
        lambda agent_id, episode, worker: "a",
        lambda agent_id, *args, **kwargs: "a",
        lambda agent_id, episode, **kwargs: "a",
        lambda agent_id, **kwargs: "a",
        lambda agent_id, *, worker: "a",
        lambda agent_id, episode, *, worker: "a",
        lambda agent_id, extra=3: "a",
        Mapping3(),
        {"agent": "a"}.get,
    ],
)
def test_a_policy_mapping_fn_takes_some_of_what_it_is_given(mapping):
    assert ToyConfig(policy_mapping_fn=mapping).policy_mapping_fn is mapping


@pytest.mark.parametrize(
    ("mapping", "takes"),
    [
        (lambda: "a", "()"),
        (lambda a, b, c, d: "a", "(a, b, c, d)"),
        (lambda agent_id, *, env: "a", "(agent_id, *, env)"),
        (lambda *, agent_id: "a", "(*, agent_id)"),
    ],
)
def test_a_policy_mapping_fn_that_cannot_be_called_is_refused(mapping, takes):
    for call in (
        lambda: ToyConfig(policy_mapping_fn=mapping),
        lambda: ToyConfig.from_dict({"multiagent": {"policy_mapping_fn": mapping}}),
    ):
        text = refusal(call)
        assert text.startswith(f"ToyConfig: policy_mapping_fn takes {takes}, and it is given")
        assert "write (agent_id), (agent_id, episode) or (agent_id, episode, worker)" in text
    assert "policy_mapping_fn=3 must be a function" in refusal(lambda: ToyConfig(policy_mapping_fn=3))


# --- build, copy, equality --------------------------------------------------------------------------------


def frozen(config):
    config._freeze()  # what build() does last
    return config


def test_a_built_config_does_not_change_and_a_copy_does():
    config = frozen(ToyConfig(env="e", fcnet_hiddens=[8]))
    text = refusal(lambda: config.training(lr=0.1))
    assert (
        text == "lr=0.1: this ToyConfig was built and no longer changes; change a copy: config.copy(lr=...)"
    )
    thawed = config.copy(num_sgd_iter=4)
    thawed.lr = 0.1
    assert (config.lr, config.num_epochs, thawed.lr, thawed.num_epochs) == (3e-4, 10, 0.1, 4)
    thawed.fcnet_hiddens.append(1)
    assert config.fcnet_hiddens == [8]


def test_what_is_in_a_built_config_does_not_change_either():
    config = frozen(ToyConfig(env="e", env_config={"n": [1]}, fcnet_hiddens=[8], lr=[[0, 1], [9, 0]]))
    for change in (
        lambda: config.env_config.update(n=2),
        lambda: config.env_config.__setitem__("n", 2),
        lambda: config.env_config.pop("n"),
        lambda: config.fcnet_hiddens.append(8),
        lambda: config.lr[0].__setitem__(1, 0.5),
        lambda: config.evaluation_config.clear(),
        lambda: config.update_from_dict({"num_sgd_iter": 2}),
        lambda: config.environment("f"),
    ):
        assert "was built and no longer changes; change a copy: config.copy(" in refusal(change)
    again = config.copy()
    assert again == config == pickle.loads(pickle.dumps(config)) == copy.deepcopy(config)
    assert json.loads(json.dumps(config.to_dict())) == again.to_dict()
    again.env_config["n"] = again.lr[0][1] = 2
    assert (config.env_config, config.lr) == ({"n": [1]}, [[0, 1], [9, 0]])
    assert type(copy.deepcopy(config.env_config)) is dict
    assert type(pickle.loads(pickle.dumps(config.lr))) is list


def test_nothing_in_a_built_config_changes_however_deep_it_lies():
    config = frozen(
        ToyConfig(
            env="e",
            env_config={"map": {"size": 3}, "list": [[1]], "pair": ({"x": 1},)},
            evaluation_config={"env_config": {"size": 4}},
            policies={"a": PolicySpec(config={"fcnet_hiddens": [8]})},
        )
    )
    for change in (
        lambda: config.env_config["map"].update(size=9),
        lambda: config.env_config["list"][0].append(9),
        lambda: config.env_config["pair"][0].clear(),
        lambda: config.evaluation_config["env_config"].update(size=9),
        lambda: config.policies.clear(),
        lambda: config.policies["a"].config.update(lr=1),
        lambda: config.policies["a"].config["fcnet_hiddens"].append(9),
    ):
        assert "was built and no longer changes; change a copy: config.copy(" in refusal(change)
    again = config.copy()
    again.env_config["map"]["size"] = again.env_config["pair"][0]["x"] = 9
    again.policies["a"].config["lr"] = 9
    assert config.env_config == {"map": {"size": 3}, "list": [[1]], "pair": ({"x": 1},)}
    assert config.policies == {"a": PolicySpec(config={"fcnet_hiddens": [8]})}
    assert json.loads(json.dumps(config.to_dict())) == config.copy().to_dict()


def test_settings_cannot_be_deleted():
    config = ToyConfig(lr=0.5)
    text = refusal(lambda: delattr(config, "lr"))
    assert text == "ToyConfig: lr cannot be deleted; set it to its default, config.lr = 0.0003"
    assert refusal(lambda: delattr(config, "gama")).endswith("Did you mean 'gamma'?")
    frozen(config)
    assert refusal(lambda: delattr(config, "lr")).endswith("set it to its default, config.copy(lr=...)")
    assert config.lr == 0.5


def test_a_copy_may_be_frozen():
    config = ToyConfig(env="e")
    assert "was built" in refusal(lambda: config.copy(copy_frozen=True, seed=1).training(lr=1))
    for thawed in (None, False):
        assert frozen(ToyConfig()).copy(copy_frozen=thawed).training(lr=1).lr == 1.0
    assert "copy takes settings by name: config.copy(lr=...), not {'lr': 1}" in refusal(
        lambda: config.copy({"lr": 1})
    )


def test_what_a_list_became_is_checked_before_a_run_is_built():
    config = ToyConfig(env="e", evaluation_config={"explore": True})
    config.fcnet_hiddens.append(-5)
    assert "fcnet_hiddens=[64, 64, -5] must be a list" in refusal(config.validate)
    config.fcnet_hiddens = [8]
    config.evaluation_config["explor"] = 1
    assert "Did you mean 'evaluation_config.explore'?" in refusal(config.validate)


def test_build_sets_the_env_validates_and_freezes(monkeypatch):
    class Algorithm:
        def __init__(self, config):
            self.config = config.copy(seed=5)

    monkeypatch.setitem(sys.modules, "steppe.algorithm", SimpleNamespace(Algorithm=Algorithm))
    monkeypatch.setattr(steppe.config.messages, "logger", logging.getLogger("steppe.test_config"))
    config = ToyConfig(log_level="INFO")
    assert "env is missing" in refusal(config.build)
    config.lr = 0.1  # a config that was not built still changes
    assert ToyConfig.build_algo is ToyConfig.build  # as RLlib says it today
    algorithm = config.build_algo(env="e")
    assert (algorithm.config.env, algorithm.config.seed, config.seed) == ("e", 5, None)
    assert logging.getLogger("steppe.test_config").level == logging.INFO
    for built in (config, algorithm.config):
        assert "was built" in refusal(lambda built=built: setattr(built, "lr", 0.2))


def test_given_containers_are_not_shared_however_deep_and_objects_are():
    grid, thing = np.eye(2), Corridor()
    given_env = {"map": {"size": 3}, "list": [[1]], "pair": ([1],), "grid": grid, "thing": thing}
    config = ToyConfig(env_config=given_env, evaluation_config={"env_config": given_env})
    for change in (config, config.copy()):
        given_env["map"]["size"] += 1
        given_env["list"][0].append(2)
        given_env["pair"][0].append(2)
        for kept in (change.env_config, change.evaluation_config["env_config"]):
            assert (kept["map"], kept["list"], kept["pair"]) == ({"size": 3}, [[1]], ([1],))
            assert (kept["grid"] is grid, kept["thing"] is thing) == (True, True)
    hiddens = ToyConfig(policies={"a": PolicySpec(config={"fcnet_hiddens": (given := [8])})})
    given.append(9)
    assert hiddens.policies["a"].config == {"fcnet_hiddens": [8]}
    given_env["itself"] = given_env
    assert "ToyConfig: env_config holds itself, {'map'" in refusal(lambda: ToyConfig(env_config=given_env))


def test_defaults_and_given_containers_are_not_shared():
    given_env = {"n": 1}
    a, b = ToyConfig(env_config=given_env), ToyConfig()
    b.env_config["m"] = 2
    given_env["n"] = 3
    assert a.env_config == {"n": 1}
    assert ToyConfig().env_config == {}


def test_equality_sees_arrays_code_and_class():
    array = {"map": np.arange(4)}
    assert ToyConfig(env_config=array) == ToyConfig(env_config={"map": np.arange(4)})
    assert ToyConfig(env_config=array) != ToyConfig(env_config={"map": np.zeros(4)})
    assert ToyConfig(env=lambda c: c) != ToyConfig(env=lambda c: c)
    assert ToyConfig() != 3
    with pytest.raises(TypeError):
        hash(ToyConfig())


def test_repr_shows_what_was_changed():
    config = ToyConfig(env=Corridor, lr=1e-3, explore=True)
    assert repr(config) == "ToyConfig(env='Corridor', lr=0.001)"


def test_a_config_survives_pickle():
    config = ToyConfig(env="e", lr=0.1)
    assert pickle.loads(pickle.dumps(config)) == config


def test_policy_scope_grows_with_the_subclass():
    assert {"gamma", "lr", "fcnet_hiddens"} <= AlgorithmConfig.POLICY_SCOPE
    assert {"lambda_", "num_epochs", "minibatch_size", "entropy_coeff"} == (
        ToyConfig.POLICY_SCOPE - AlgorithmConfig.POLICY_SCOPE
    )
    assert not {"env", "seed", "weights", "num_envs_per_env_runner"} & ToyConfig.POLICY_SCOPE


def test_presets():
    assert ToyConfig.preset("small", lr=0.1) == ToyConfig(train_batch_size=100, lr=0.1)
    assert refusal(lambda: ToyConfig.preset("big")) == "ToyConfig has no preset 'big'; it has ['small']"


def test_docs_stand_under_the_fields():
    docs = field_docs(ToyConfig)
    assert list(docs) == list(field_specs(ToyConfig))
    assert docs["lambda_"] == "Trace decay."
    assert docs["num_epochs"] == "Passes\nover the batch."
    assert docs["weights"] == ""
    assert [name for name, text in docs.items() if not text] == ["weights"]


# --- plain data -------------------------------------------------------------------------------------------


def test_to_dict_is_json_and_comes_back():
    config = ToyConfig(
        env="e",
        env_config={"size": np.float32(2), "grid": np.eye(2), "deep": {"x": (1, None)}},
        lr=[[0, 1e-3], [10, 0]],
        grad_clip=None,
        observation_space=gymnasium.spaces.Box(-1, 1, (3,)),
        action_space=gymnasium.spaces.Discrete(4),
    )
    plain = config.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["env_config"] == {"size": 2.0, "grid": [[1.0, 0.0], [0.0, 1.0]], "deep": {"x": [1, None]}}
    again = ToyConfig.from_dict(plain)
    assert again.to_dict() == plain
    assert again.lr == config.lr


def test_code_stands_as_its_name():
    def corridor(config):
        return config

    assert ToyConfig(env=Corridor).to_dict()["env"] == "Corridor"
    assert ToyConfig(env=corridor).to_dict()["env"] == "corridor"
    assert ToyConfig(env_config={"map": Corridor()}).to_dict()["env_config"] == {"map": "Corridor"}


def test_toml_lacks_none_and_comes_back():
    config = ToyConfig(env="e", grad_clip=None, env_config={"a": None, "b": [1, None]})
    plain = config.to_toml_dict()
    assert "None" not in repr(plain)
    assert "max_episode_steps" not in plain
    assert plain["grad_clip"] == "none"
    assert plain["env_config"] == {"b": [1, "none"]}
    assert ToyConfig.from_dict(plain).grad_clip is None
    assert tomllib.loads("grad_clip = 'none'") == {"grad_clip": plain["grad_clip"]}


# --- validate ---------------------------------------------------------------------------------------------


def test_validate_refuses_contradictions():
    assert 'env is missing: ToyConfig(env="CartPole-v1")' in refusal(ToyConfig().validate)
    space = gymnasium.spaces.Discrete(2)
    ToyConfig(observation_space=space, action_space=space).validate()
    ToyConfig(env="e", num_env_runners=2).validate()
    squash = ToyConfig(env="e", squash_actions=True, normalize_actions=False)
    assert "needs normalize_actions=True" in refusal(squash.validate)


def test_defaults_say_nothing(caplog):
    ToyConfig(env="e").validate()
    assert caplog.messages == []


def test_sizes_that_do_not_divide_are_said_once(caplog):
    config = ToyConfig(env="e", num_envs_per_env_runner=64, train_batch_size=4000)
    assert config.fragment_length == 63  # 4000 / 64 = 62.5
    config.validate()
    config.copy().validate()
    expected = (
        "train_batch_size=4000 is no multiple of 64 envs x 63 steps: each update learns from 4032 steps"
    )
    assert caplog.messages == [expected]
    fixed = ToyConfig(env="e", train_batch_size=100, rollout_fragment_length=30, minibatch_size=200)
    assert fixed.fragment_length == 30
    fixed.validate()
    assert caplog.messages[1:] == [
        "train_batch_size=100 is no multiple of 16 envs x 30 steps: each update learns from 480 steps",
        "minibatch_size=200 is more than train_batch_size=100: the batch is one minibatch",
    ]
    assert all(record.levelno == logging.WARNING and record.name == "steppe" for record in caplog.records)


def test_settings_of_a_memory_that_is_not_there_are_said(caplog):
    ToyConfig(env="e", prev_action=True).validate()
    ToyConfig(env="e", memory="lstm", attention_memory=3, prev_reward=True, max_seq_len=9).validate()
    ToyConfig(env="e", memory="attention", attention_memory=3).validate()
    ToyConfig.from_dict({"env": "e", "model": {"lstm_cell_size": 128, "max_seq_len": 9}}).validate()
    assert caplog.messages == [
        "prev_action=True has no effect with memory='none'; memory is one of lstm, gru and attention",
        "attention_memory=3 has no effect with memory='lstm'; memory is one of lstm, gru and attention",
    ]


def test_a_sequence_is_no_longer_than_a_batch():
    small = {"env": "e", "train_batch_size": 32, "num_envs_per_env_runner": 1, "max_seq_len": 33}
    ToyConfig(**small).validate()
    assert refusal(ToyConfig(**small, memory="gru").validate) == (
        "ToyConfig: max_seq_len=33, and an update learns from 32 env steps; write max_seq_len=32 or less, or "
        "a larger train_batch_size"
    )


def test_importing_the_config_loads_nothing_heavy():
    env = {"PYTHONPATH": str(Path(steppe.config.__file__).parents[2])}
    code = "import sys, steppe.config; sys.exit(any(m in sys.modules for m in ('jax', 'gymnasium', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


# --- evaluation, policies, callbacks ----------------------------------------------------------------------


def test_policies_are_ids_or_specs():
    box, two = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    both = {"a": PolicySpec(), "b": PolicySpec()}
    assert ToyConfig(policies={"b", "a"}).policies == both
    assert ToyConfig(policies=["a", "b"]).policies == both
    assert ToyConfig(policies={"a": None, "b": PolicySpec()}).policies == both
    spec = ToyConfig(policies={"a": (None, box, two, {"lambda": 0.5, "num_sgd_iter": 3})}).policies["a"]
    assert spec == PolicySpec(None, box, two, {"lambda_": 0.5, "num_epochs": 3})
    assert ToyConfig(policies={"a": PolicySpec(config={"model": {"fcnet_hiddens": (8,)}})}).policies == {
        "a": PolicySpec(config={"fcnet_hiddens": [8]})
    }
    own = ToyConfig(policies={"a": PolicySpec(config=ToyConfig(lr=0.5))})
    assert own.policies["a"].config == {"lr": 0.5}
    old = ToyConfig.from_dict({"multiagent": {"policies": {"a"}, "policies_to_train": ["a"]}})
    assert (old.policies, old.policies_to_train) == ({"a": PolicySpec()}, ["a"])
    plain = own.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert ToyConfig.from_dict(plain).policies == own.policies


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ("a", "policies='a' must be a set or list of ids, or a dict"),
        ([], "policies=[] must be a set or list of ids, or a dict"),
        ({3: None}, "policies={3: None} must be a set or list of ids, or a dict"),
        ({"a": 3}, "policies['a']=3 must be None, a PolicySpec or (policy_class, observation_space"),
        ({"a": (None, None)}, "must be None, a PolicySpec or"),
        ({"a": {"gama": 1}}, "must be None, a PolicySpec or"),
        ({"a": (None, None, None, {"gama": 1})}, "no setting \"policies['a'].config.gama\". Did you mean"),
        (
            {"a": (None, None, None, {"num_workers": 2})},
            "policies['a'].config.num_workers=2 (num_env_runners) holds for the whole run; a policy may set",
        ),
        ({"a": PolicySpec(config={"lr": "x"})}, "ToyConfig: policies['a'].config.lr='x' must be a number"),
    ],
)
def test_wrong_policies_are_named(policies, said):
    assert said in refusal(lambda: ToyConfig(policies=policies))


def test_some_policy_has_to_learn():
    ToyConfig(env="e", policies={"a", "b"}, policies_to_train=["b"]).validate()
    for train in ([], lambda id: False):
        text = refusal(ToyConfig(env="e", policies_to_train=train).validate)
        assert "no policy learns" in text


def test_evaluation_config_holds_todays_names():
    config = ToyConfig.from_dict(
        {"evaluation_config": {"in_evaluation": True, "explore": False, "horizon": 9, "env_config": {"n": 1}}}
    )
    assert config.evaluation_config == {"explore": False, "max_episode_steps": 9, "env_config": {"n": 1}}
    assert ToyConfig.from_dict(config.to_dict()) == config
    overrides = ToyConfig.overrides(horizon=9, explore=False)
    assert ToyConfig().evaluation(evaluation_config=overrides).evaluation_config == overrides
    for wrong, said in [
        ({"lr": 1}, "evaluation_config.lr=1.0 cannot differ while evaluating; it may set env, env_config"),
        ({"num_workers": 1}, "evaluation_config.num_workers=1 (num_env_runners) cannot differ while evalua"),
        ({"explor": 1}, "no setting 'evaluation_config.explor'. Did you mean 'evaluation_config.explore'?"),
        ({"explore": 3}, "ToyConfig: evaluation_config.explore=3 must be True or False"),
        (3, "evaluation_config=3 must be a dict"),
    ]:
        assert said in refusal(lambda wrong=wrong: ToyConfig(evaluation_config=wrong))


def test_shared_evaluation_envs_contradict_envs_of_ones_own():
    ToyConfig(env="e", evaluation_envs="shared", evaluation_config={"explore": True}).validate()
    for changes in ({"evaluation_num_envs": 2}, {"evaluation_config": {"env_config": {"n": 1}}}):
        text = refusal(ToyConfig(env="e", evaluation_envs="shared", **changes).validate)
        assert 'evaluation_envs="shared" evaluates in the training envs' in text
    ray = ToyConfig(env="e", evaluation_envs="shared", evaluation_num_env_runners=1)
    assert "evaluation_num_env_runners=0, or evaluation_envs='separate'" in refusal(ray.validate)


class Watching(Callbacks):
    def on_episode_end(self, *, episode, **kwargs):
        episode.custom_metrics["seen"] = 1.0


def test_callbacks_are_given_by_position_and_checked():
    assert ToyConfig().callbacks(Watching).callbacks_class is Watching
    assert ToyConfig.from_dict({"callbacks": Watching}) == ToyConfig(callbacks_class=Watching)
    both = [Watching, Watching()]
    assert ToyConfig(callbacks_class=both).callbacks_class == both
    assert "callbacks=3: give a subclass of steppe.Callbacks" in refusal(lambda: ToyConfig().callbacks(3))
    text = refusal(lambda: ToyConfig().callbacks(on_episode_end=len))
    assert text.startswith("ToyConfig: on_episode_end='len': a method of that name in a Callbacks subclass")


def test_code_is_told_from_data():
    assert (
        ToyConfig(env="e", env_config={"f": print}, evaluation_config={"explore": True}).code_fields() == []
    )
    box = gymnasium.spaces.Box(-1, 1, (3,))
    assert (
        ToyConfig(env="e", observation_space=box, policies={"a": (None, box, None, {})}).code_fields() == []
    )
    code = ToyConfig(
        env="file.py:Env",
        evaluation_config={"env": "other.py:Env"},
        callbacks_class=[Watching()],
        policies={"a": PolicySpec(Corridor)},
        policy_mapping_fn=lambda agent_id, **kwargs: "a",
    )
    fields = ["callbacks_class", "env", "evaluation_config", "policies", "policy_mapping_fn"]
    assert code.code_fields() == fields
    assert ToyConfig(env=Corridor, policies_to_train=["a"]).code_fields() == ["env"]


def test_keys_of_an_env_need_not_be_text(caplog):
    config = ToyConfig(env="e", env_config={1: {"a": 2}, (0, 1): 3})
    assert config.env_config == {1: {"a": 2}, (0, 1): 3}
    assert config.to_dict()["env_config"] == {"1": {"a": 2}, "(0, 1)": 3}
    config.validate()
    assert caplog.messages == [
        "env_config={1: {'a': 2}, (0, 1): 3} has keys that are no text: envs get them as they are, the files "
        "of a run hold them as text, and load(path, env_config=...) takes them anew"
    ]
    # Text is not what they were: whoever loads has to give them.
    assert config.code_fields() == ["env_config"]
    assert ToyConfig(env="e", env_config={"a": [{1: 2}]}).code_fields() == ["env_config"]
    assert ToyConfig(env="e", evaluation_config={"env_config": {1: 2}}).code_fields() == ["evaluation_config"]
