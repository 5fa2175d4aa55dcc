"""Every key of RLlib's configs has one fate, is taken in every spelling, and a wrong one is named in full."""

import dataclasses
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steppe.config
from steppe import PPOConfig
from steppe.algorithms import ALGORITHMS, config_class
from steppe.config import field_specs
from steppe.config.names import ALIASES, GROUPS, KEYS, NONE, UNSET, YIELDS
from steppe.config.reading import read
from steppe.errors import ConfigError
from tests import rllib_keys as rllib

FIELDS = field_specs(PPOConfig)


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(steppe.config.messages, "_said", set())


def refusal(call):
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


def paths(settings):
    """Every key of a dict of RLlib's, those of its groups with their group."""
    for key, value in settings.items():
        if key in GROUPS:
            yield from (f"{GROUPS[key]}.{inner}" for inner in value or {})
        else:
            yield key


def every_key():
    """Every key in the lists of RLlib's keys, dotted as in the table."""
    found = {key for release in rllib.RELEASES for key in paths(rllib.default_config(release))}
    found |= {key for parameters in rllib.SETTERS.values() for key in parameters if key not in GROUPS}
    return found | {f"model.{key}" for key in [*rllib.LATER_MODEL_DEFAULTS, *rllib.MODEL_CONFIG]}


def of_algorithms():
    """Keys of the settings of other algorithms than PPO."""
    every = {key for algo in rllib.ALGORITHMS for key in paths(rllib.algorithm_config(algo))}
    return every | set(rllib.ES_CONFIG)


def fates(key):
    """Which of the classes a key is in."""
    in_table = [KEYS[key].kind] if key in KEYS else []
    return in_table + (["field"] if key in FIELDS else [])


# --- the table --------------------------------------------------------------------------------------------


def test_the_lists_hold_what_programs_write():
    keys = every_key()
    assert {"num_workers", "multiagent.policies", "model.use_lstm", "no_done_at_end", "vf_clip_param"} <= keys
    assert {
        "num_learners",
        "env_to_module_connector",
        "evaluation_duration_unit",
        "sgd_minibatch_size",
    } <= keys
    assert len(keys) > 350


def test_every_key_of_rllib_has_exactly_one_fate():
    assert {key: fates(key) for key in every_key() if len(fates(key)) != 1} == {}


def test_the_table_names_no_key_that_rllib_never_had():
    assert set(KEYS) - every_key() - of_algorithms() == set()
    assert set(YIELDS) <= set(KEYS)
    assert set(UNSET) <= {*KEYS, *FIELDS}
    assert set(NONE) <= set(FIELDS)


def test_what_is_mapped_leads_to_a_field_of_an_algorithm():
    fields = set().union(*(field_specs(config_class(algo)) for algo in ALGORITHMS))
    assert {key.field for key in KEYS.values() if key.kind == "maps"} <= fields
    assert all(bool(key.why) == (key.kind != "maps") for key in KEYS.values())


def test_what_none_means_is_legal():
    for name, value in NONE.items():
        assert PPOConfig.checked(name, None) == PPOConfig.checked(name, value)


@pytest.mark.parametrize("release", rllib.RELEASES)
def test_a_whole_default_config_passes_without_a_word(release, caplog):
    config = PPOConfig.from_dict(rllib.default_config(release))
    assert caplog.messages == []
    assert (config.lr, config.lambda_, config.num_epochs, config.minibatch_size) == (5e-5, 1.0, 30, 128)
    assert (config.fcnet_hiddens, config.vf_share_layers, config.num_env_runners) == ([256, 256], False, 2)
    assert (config.train_batch_size, config.rollout_fragment_length, config.policies) == (4000, 200, None)


@pytest.mark.parametrize("algo", rllib.ALGORITHMS)
def test_a_whole_default_config_of_another_algorithm_passes_without_a_word(algo, caplog):
    given = rllib.algorithm_config(algo)
    config = config_class(algo).from_dict(given)
    assert caplog.messages == []
    assert (config.lr, config.train_batch_size) == (given["lr"], given["train_batch_size"])
    hiddens = [400, 300] if algo == "TD3" else [256, 256]
    assert (config.grad_clip, config.fcnet_hiddens) == (given.get("grad_clip", 0.5), hiddens)
    assert config.fcnet_activation == ("relu" if algo in ("SAC", "TD3") else "tanh")
    assert config.min_time_s_per_iteration == given["min_iter_time_s"]


@pytest.mark.parametrize("algo", rllib.ALGORITHMS)
def test_other_values_of_another_algorithm_are_said_or_refused(algo):
    cls = config_class(algo)
    own = {spec.alias or name for name, spec in field_specs(cls).items()}
    fields = set(field_specs(cls))
    for key in set(paths(rllib.ALGORITHMS[algo])) - own - {"evaluation_config"}:
        kind, given = KEYS[key].kind, nested({key: -7.5})
        if kind == "no effect":
            assert read(cls, given).notes == [f"{key} is accepted and has no effect: {KEYS[key].why}"]
        else:
            assert f"{key}=-7.5" in refusal(lambda given=given: cls.from_dict(given))
            assert kind == "refused" or KEYS[key].field in fields


def test_old_words_of_sac_set_its_fields():
    config = config_class("SAC").from_dict(
        {
            "Q_model": {"fcnet_hiddens": [64], "fcnet_activation": "tanh"},
            "policy_model": {"fcnet_hiddens": [64]},
            "model": {"fcnet_hiddens": [256, 256], "fcnet_activation": "tanh"},
            "optimization": {"actor_learning_rate": 1e-4, "entropy_learning_rate": 0.0},
            "grad_norm_clipping": 3.0,
            "exploration_config": {"type": "StochasticSampling"},
        }
    )
    assert (config.fcnet_hiddens, config.fcnet_activation, config.grad_clip) == ([64], "tanh", 3.0)
    assert (config.actor_lr, config.critic_lr, config.alpha_lr) == (1e-4, None, 0.0)
    assert config.exploration_noise == 0.0
    later = {"q_model_config": {"fcnet_hiddens": [8]}, "policy_model_config": {"fcnet_hiddens": [9]}}
    assert (
        "q_model_config.fcnet_hiddens=[8] and policy_model_config.fcnet_hiddens=[9] are two spellings"
        in refusal(lambda: config_class("SAC").from_dict(later))
    )
    assert "write actor_lr, critic_lr, alpha_lr, or give" in refusal(
        lambda: config_class("SAC")(optimization={})
    )


def gaussian(**changes):
    return {"exploration_config": {"type": "GaussianNoise", "random_timesteps": 10_000, **changes}}


def test_noise_of_td3_is_its_deviation():
    td3 = config_class("TD3")
    assert td3.from_dict(gaussian(stddev=0.3)).exploration_noise == 0.3
    assert td3.from_dict(gaussian(initial_scale=0.5, final_scale=0.5)).exploration_noise == 0.05
    assert td3.from_dict({"exploration_config": {}}).exploration_noise == 0.1
    for settings, reason in (
        (gaussian(final_scale=0.02), "the noise does not change with time"),
        (gaussian(random_timesteps=7), "until num_steps_sampled_before_learning_starts"),
        (gaussian(type="SoftQ"), "of type 'SoftQ': there is GaussianNoise"),
    ):
        assert reason in refusal(lambda settings=settings: td3.from_dict(settings))
    # By hand: x <- 0.85 x + 0.2 n has deviation 0.2 / sqrt(1 - 0.85 ** 2); the bounds are 2 apart.
    assert "write exploration_noise=0.0759 and exploration_noise_correlation=0.85" in refusal(
        lambda: td3.from_dict(gaussian(type="OrnsteinUhlenbeckNoise"))
    )


@pytest.mark.parametrize(
    ("algo", "settings", "reason"),
    [
        ("SAC", {"prioritized_replay": True}, "DQN alone draws rows by their error"),
        (
            "SAC",
            {"Q_model": {"custom_model": "mine"}},
            "Q_model.custom_model='mine': write models={'encoder': MyEncoder}",
        ),
        ("SAC", {"_use_beta_distribution": True}, "the policy is a squashed normal distribution"),
        (
            "TD3",
            {"smooth_target_policy": False},
            "write target_noise=0; with policy_delay=1 and twin_q=False",
        ),
        ("TD3", {"target_network_update_freq": 5}, "the targets follow at every policy_delay-th update"),
        (
            "TD3",
            {"actor_hiddens": [8], "critic_hiddens": [9]},
            "two spellings of one setting (fcnet_hiddens)",
        ),
        ("DQN", {"exploration_final_eps": 0.1}, "write the schedule itself: epsilon="),
        (
            "PPO",
            {"optimization": {"actor_learning_rate": 1.0}},
            "has no setting 'optimization.actor_learning",
        ),
    ],
)
def test_what_learns_from_a_replay_refuses_old_words_by_name(algo, settings, reason):
    assert reason in refusal(lambda: config_class(algo).from_dict(settings))


def test_what_only_other_algorithms_have_is_no_setting_of_ppo():
    assert "has no setting 'vtrace'" in refusal(lambda: PPOConfig.from_dict({"vtrace": True}))
    assert "has no setting 'clip_param'" in refusal(
        lambda: config_class("IMPALA").from_dict({"clip_param": 0.2})
    )


def test_every_setter_takes_what_it_takes_in_rllib(caplog):
    for setter, parameters in rllib.SETTERS.items():
        for name, defaults in parameters.items():
            for default in [*defaults, None]:
                if default is None and not optional(field_of(name)):
                    continue
                config = PPOConfig()
                assert getattr(config, setter)(**{name: default}) is config, (setter, name)
    assert caplog.messages == []


def optional(name):
    if name not in FIELDS or name in NONE or FIELDS[name].hint is Any:
        return True
    return type(None) in getattr(FIELDS[name].hint, "__args__", ())


@pytest.mark.parametrize(
    "model", [rllib.LATER_MODEL_DEFAULTS, rllib.MODEL_CONFIG], ids=["later", "dataclass"]
)
def test_defaults_of_models_pass(model, caplog):
    assert PPOConfig().rl_module(model_config=model) == PPOConfig().training(model=model)
    assert caplog.messages == []


def test_other_values_are_said_or_refused():
    """A number that nobody's default is: every key either takes it as its field does, says so, or refuses."""
    for key in every_key():
        nested: Any = {key: -7.5}
        for part in reversed(key.split(".")[:-1]):
            nested = {part: {key.rpartition(".")[2]: -7.5}}
        kind = KEYS[key].kind if key in KEYS else "maps"
        if kind == "no effect":
            values, notes, _ = read(PPOConfig, nested)
            assert values == {}
            assert notes == [f"{key} is accepted and has no effect: {KEYS[key].why}"]
        elif key != "env":
            assert f"{key.replace('callbacks_class', 'callbacks')}=-7.5" in refusal(
                lambda nested=nested: PPOConfig.from_dict(nested)
            ), key


# --- three spellings --------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    # RLlib's name: the setter that has it, values
    "num_workers": ("rollouts", st.integers(0, 4)),
    "num_rollout_workers": ("rollouts", st.integers(0, 4)),
    "num_envs_per_worker": ("rollouts", st.integers(1, 9)),
    "horizon": ("rollouts", st.none() | st.integers(1, 99)),
    "sample_batch_size": ("env_runners", st.integers(1, 500)),
    "batch_mode": ("rollouts", st.sampled_from(["truncate_episodes", "complete_episodes"])),
    "explore": ("exploration", st.booleans()),
    "observation_filter": ("env_runners", st.sampled_from(["NoFilter", "MeanStdFilter"])),
    "lambda": ("training", st.floats(0, 1)),
    "num_sgd_iter": ("training", st.integers(1, 30)),
    "sgd_minibatch_size": ("training", st.integers(1, 512)),
    "train_batch_size_per_learner": ("training", st.integers(1, 9000)),
    "vf_clip_param": ("training", st.none() | st.floats(0.1, 10)),
    "lr_schedule": ("training", st.just([[0, 1e-3], [1000, 1e-5]])),
    "grad_clip": ("training", st.none() | st.floats(0.1, 40)),
    "model.fcnet_hiddens": ("training", st.lists(st.integers(1, 99), max_size=3)),
    "model.fcnet_activation": ("rl_module", st.sampled_from(["tanh", "relu", None])),
    "model.free_log_std": ("training", st.booleans()),
    "multiagent.policies": ("multi_agent", st.sampled_from([{"default_policy"}, ["a", "b"], {"a": None}])),
    "multiagent.policies_to_train": ("multi_agent", st.none() | st.just(["a"])),
    "clip_actions": ("environment", st.booleans()),
    "env_config": ("environment", st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=2)),
    "evaluation_num_episodes": ("evaluation", st.integers(1, 50)),
    "evaluation_num_workers": ("evaluation", st.integers(0, 2)),
    "evaluation_config": ("evaluation", st.just({"horizon": 5, "explore": False})),
    "metrics_smoothing_episodes": ("reporting", st.integers(1, 200)),
    "min_iter_time_s": ("reporting", st.none() | st.floats(0, 9)),
    "timesteps_per_iteration": ("reporting", st.integers(0, 9000)),
    "seed": ("debugging", st.none() | st.integers(0, 1 << 40)),
    "log_level": ("debugging", st.sampled_from(["WARN", "INFO"])),
    "num_gpus": ("resources", st.just(0)),
    "framework": ("framework", st.just("torch")),
}


@st.composite
def settings_of_rllib(draw):
    keys = draw(st.lists(st.sampled_from(sorted(SETTINGS)), unique_by=field_of))
    return {key: draw(SETTINGS[key][1]) for key in keys}


def field_of(key):
    return KEYS[key].field or key if key in KEYS else key.rpartition(".")[2]


def nested(settings):
    result: dict[str, Any] = {}
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (result.setdefault(group, {}) if group else result)[name] = value
    return result


@given(settings_of_rllib())
def test_three_spellings_give_equal_configs(settings):
    by_dict = PPOConfig.from_dict(nested(settings))
    fluent = PPOConfig()
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        setter = getattr(fluent, SETTINGS[key][0])
        setter(**({"model": {name: value}} if group == "model" else {name: value}))
    today = {field_of(key): value for key, value in settings.items() if field_of(key) in FIELDS}
    keywords = PPOConfig(**{name: in_todays_words(name, value) for name, value in today.items()})
    assert by_dict == fluent == keywords
    assert PPOConfig().update_from_dict(nested(settings)) == by_dict == PPOConfig().copy(**nested(settings))
    assert PPOConfig.from_dict(by_dict.to_dict()) == by_dict


def in_todays_words(name, value):
    return {"max_episode_steps": 5, "explore": False} if name == "evaluation_config" else value


def test_most_old_names_are_tried_above():
    tried = {field_of(key) for key in SETTINGS}
    assert len({key.field for key in KEYS.values() if key.kind == "maps"} & tried) >= 18


# --- rules of single keys ---------------------------------------------------------------------------------


def test_a_default_of_the_model_gives_way_to_ppos_own():
    assert PPOConfig.from_dict({"model": {"vf_share_layers": True}}).vf_share_layers
    assert not PPOConfig.from_dict(
        {"model": {"vf_share_layers": True}, "vf_share_layers": False}
    ).vf_share_layers
    assert PPOConfig.from_dict({"model": {"vf_share_layers": True}, "vf_share_layers": -1}).vf_share_layers
    text = refusal(
        lambda: PPOConfig.from_dict({"vf_share_layers": True, "model": {"vf_share_layers": False}})
    )
    assert "vf_share_layers=True and model.vf_share_layers=False are two spellings of one setting" in text


def test_no_value_of_a_given_up_name_says_nothing_only_where_rllib_writes_it():
    assert (
        PPOConfig.from_dict({"evaluation_num_episodes": -1, "evaluation_duration": 3}).evaluation_duration
        == 3
    )
    assert "num_workers=-1 must be" in refusal(lambda: PPOConfig.from_dict({"num_workers": -1}))


def test_true_is_not_one_and_tuples_are_lists():
    assert read(PPOConfig, {"num_gpus": False}).notes
    assert not read(PPOConfig, {"output_compress_columns": ("obs", "new_obs")}).notes
    assert "num_learners=False" in refusal(lambda: PPOConfig.from_dict({"num_learners": False}))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"model": {"lstm_use_prev_action_reward": True}},
            "model.lstm_use_prev_action_reward=True: write lstm_use_prev_action for the action and lstm_use_",
        ),
        (
            {"model": {"custom_model": "mine"}},
            "model.custom_model='mine': write models={'encoder': MyEncoder}",
        ),
        ({"clip_rewards": True}, "clip_rewards=True: wrap the env: gymnasium.wrappers.TransformReward"),
        ({"use_gae": False}, "use_gae=False: write lambda_=1.0"),
        ({"exploration_config": {"type": "EpsilonGreedy"}}, "policies explore by drawing from their own"),
        ({"input": "/tmp/x.json"}, "learning from files is not available yet"),
        ({"output": "/tmp/x"}, "output='/tmp/x': learning from files, and writing them, is not"),
        ({"gym_env_vectorize_mode": "async"}, "write remote_worker_envs=True: each env in a process"),
        (
            {"multiagent": {"count_steps_by": "agent_steps"}},
            "multiagent.count_steps_by='agent_steps': batches",
        ),
        ({"optimizer": {"momentum": 1}}, "the optimizer is Adam; lr and grad_clip are its settings"),
        ({"soft_horizon": True}, "soft_horizon=True: every episode begins with a reset"),
    ],
)
def test_a_refusal_says_what_to_do(settings, reason):
    assert reason in refusal(lambda: PPOConfig.from_dict(settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_worker": 2}, "'num_worker'. Did you mean 'num_workers'?"),
        ({"num_gpu": 2}, "'num_gpu'. Did you mean 'num_gpus'?"),
        ({"multiagent": {"polices": {}}}, "'multiagent.polices'. Did you mean 'multiagent.policies'?"),
        ({"model": {"fcnet_hidens": [1]}}, "'model.fcnet_hidens'. Did you mean 'model.fcnet_hiddens'?"),
        (
            {"model_config": {"fcnet_hidens": [1]}},
            "'model_config.fcnet_hidens'. Did you mean 'model_config.fcnet_hiddens'?",
        ),
        (
            {"evaluation_config": {"env_confg": {}}},
            "'evaluation_config.env_confg'. Did you mean 'evaluation_config.env_config'?",
        ),
        (
            {"evaluation_config": {"model": {"use_lsm": 1}}},
            "'evaluation_config.model.use_lsm'. Did you mean 'evaluation_config.model.use_lstm'?",
        ),
        (
            {"multiagent": {"policies": {"a": (None, None, None, {"gama": 1})}}},
            "\"policies['a'].config.gama\". Did you mean \"policies['a'].config.gamma\"?",
        ),
        ({"use_lstm": True}, "'use_lstm'. Did you mean 'model.use_lstm'?"),
        ({"model": {"lr": 1}}, "'model.lr'. Did you mean 'lr'?"),
        ({"qqqq": {"lr": 1}}, "'qqqq'."),
    ],
)
def test_a_misspelt_key_is_named_with_its_whole_path(settings, said):
    assert refusal(lambda: PPOConfig.from_dict(settings)) == f"PPOConfig has no setting {said}"
    assert refusal(lambda: PPOConfig().update_from_dict(settings)) == f"PPOConfig has no setting {said}"


@given(st.sampled_from(sorted(ALIASES)), st.data())
def test_a_slip_of_the_keyboard_is_never_taken(key, data):
    place = data.draw(st.integers(0, len(key) - 1))
    wrong = key[:place] + key[place + 1 :]
    if wrong in KEYS or wrong in FIELDS:
        return
    assert re.match(
        f"PPOConfig has no setting '{wrong}'", refusal(lambda: PPOConfig.from_dict({wrong: object()}))
    )


def test_values_are_named_as_they_were_written():
    assert "num_workers='2' must be a whole number at least 0" in refusal(
        lambda: PPOConfig.from_dict({"num_workers": "2"})
    )
    assert "model.fcnet_hiddens=[0] must be" in refusal(
        lambda: PPOConfig.from_dict({"model": {"fcnet_hiddens": [0]}})
    )
    assert "evaluation_config.horizon=0 must be" in refusal(
        lambda: PPOConfig.from_dict({"evaluation_config": {"horizon": 0}})
    )
    assert "model=3 must be a dict of settings" in refusal(lambda: PPOConfig().training(model=3))
    assert PPOConfig.from_dict({"model": None, "multiagent": None}) == PPOConfig()


def test_messages_about_several_settings_use_the_names_that_were_written(caplog):
    workers = {"evaluation_num_workers": 2, "evaluation_envs": "shared"}
    old = {"env": "e", **workers, "sgd_minibatch_size": 64, "train_batch_size": 32}
    said = (
        "PPOConfig: evaluation_num_workers=2 (evaluation_num_env_runners): evaluation_envs='shared' "
        "evaluates in the training envs, which are not there; write evaluation_num_workers=0, or "
        "evaluation_envs='separate'"
    )
    by_dict = PPOConfig.from_dict(old)
    fluent = PPOConfig(env="e").evaluation(**workers)
    later = PPOConfig(env="e").update_from_dict(workers)
    for config in (by_dict, fluent, later, by_dict.copy(lr=1), PPOConfig(env="e").copy(**workers)):
        assert refusal(config.validate) == said
    by_dict.evaluation_num_env_runners = 3  # the program's last word
    assert refusal(by_dict.validate).startswith("PPOConfig: evaluation_num_env_runners=3: evaluation_envs=")
    by_dict.evaluation_envs, by_dict.evaluation_num_env_runners = "separate", 0
    by_dict.validate()
    assert "sgd_minibatch_size=64 (minibatch_size) is more than train_batch_size=32" in caplog.text
    assert by_dict == PPOConfig(env="e", minibatch_size=64, train_batch_size=32)  # names are no settings


def test_a_whole_default_config_is_built_with_its_workers():
    config = PPOConfig.from_dict({**rllib.default_config(rllib.RELEASES[-1]), "env": "e"})
    config.training(train_batch_size=400).validate()
    assert (config.num_env_runners, config.num_cpus_per_env_runner) == (2, 1.0)


def test_resources_of_workers_are_taken_by_both_of_their_sections():
    old = {"num_cpus_per_worker": 0.5, "num_gpus_per_worker": 0.25, "custom_resources_per_worker": {"a": 1}}
    resources = PPOConfig(env="e").resources(**old)
    assert resources == PPOConfig(env="e").env_runners(**old) == PPOConfig.from_dict({"env": "e", **old})
    assert resources.num_cpus_per_env_runner == 0.5
    assert resources.custom_resources_per_env_runner == {"a": 1.0}


def test_memory_under_its_old_names():
    """Of a whole default dict, nothing is said but for what it changes; both kinds at once disagree."""
    defaults = {
        "use_lstm": False,
        "use_attention": False,
        "lstm_cell_size": 256,
        "attention_dim": 64,
        "attention_memory_inference": 50,
        "attention_memory_training": 50,
        "max_seq_len": 20,
        "lstm_use_prev_action": False,
        "lstm_use_prev_action_reward": -1,
    }

    def read(**changes):
        return PPOConfig.from_dict({"model": {**defaults, **changes}})

    assert read().memory == "none"
    config = read(use_lstm=True, lstm_use_prev_action=True, lstm_use_prev_reward=True, max_seq_len=9)
    assert (config.memory, config.memory_size, config.max_seq_len) == ("lstm", 256, 9)
    assert config.prev_action is config.prev_reward is True
    window = {"attention_memory_inference": 7, "attention_memory_training": 7}
    config = read(use_attention=True, attention_dim=32, **window)
    assert (config.memory, config.memory_size, config.attention_memory) == ("attention", 32, 7)
    assert PPOConfig.from_dict({"model": {"use_lstm": True}}).memory_size == 64
    text = refusal(lambda: read(use_lstm=True, use_attention=True))
    assert "two spellings of one setting (memory) and disagree" in text


@dataclasses.dataclass
class ModelConfig:
    """As RLlib's DefaultModelConfig is."""

    fcnet_hiddens: list[int] = dataclasses.field(default_factory=lambda: [256, 256])
    use_lstm: bool = False
    head_fcnet_hiddens: list[int] = dataclasses.field(default_factory=list)
    fcnet_bias_initializer: str | None = None


def test_a_model_config_may_be_a_dataclass():
    config = PPOConfig().rl_module(model_config=ModelConfig(fcnet_hiddens=[8]))
    assert config.changes() == {"fcnet_hiddens": [8]}
    assert PPOConfig().rl_module(model_config=ModelConfig(use_lstm=True)).memory == "lstm"
    text = refusal(lambda: PPOConfig().rl_module(model_config=ModelConfig(head_fcnet_hiddens=[3])))
    assert text.startswith("PPOConfig: model_config.head_fcnet_hiddens=[3]: ")
    for other in (ModelConfig, type("Other", (), {"fcnet_hiddens": [3]})()):  # would say nothing
        text = refusal(lambda other=other: PPOConfig().rl_module(model_config=other))
        assert "must be a dict of settings, or a dataclass of them such as RLlib's Default" in text


def test_dicts_of_settings_are_no_keywords():
    text = refusal(lambda: PPOConfig(model={"fcnet_hiddens": [3]}))
    assert text == (
        "PPOConfig: model is a dict of RLlib's, whose settings stand for themselves here: write "
        "memory_size, attention_memory, conv_filters, fcnet_activation, fcnet_hiddens, free_log_std, "
        "prev_action, prev_reward, max_seq_len, framestack, memory, vf_share_layers, or give the dict to "
        "PPOConfig.from_dict({'model': {...}}) or PPOConfig().training(model={...})"
    )
    text = refusal(lambda: setattr(PPOConfig(), "multiagent", {}))
    assert "write observation_fn, policies, policies_to_train, policy_mapping_fn, or give the dict to" in text
    assert text.endswith("PPOConfig().multi_agent(multiagent={...})")
    assert PPOConfig().training(model={"fcnet_hiddens": [3]}).fcnet_hiddens == [3]  # what they say works
    assert PPOConfig().multi_agent(multiagent={"policies": ["a"]}).policies.keys() == {"a"}


@pytest.mark.parametrize(
    ("wrong", "today"),
    [
        ("num_worker", "num_env_runners"),
        ("lambd", "lambda_"),
        ("num_sgd_itr", "num_epochs"),
        ("gama", "gamma"),
    ],
)
def test_keywords_are_corrected_to_what_the_constructor_takes(wrong, today):
    text = f"PPOConfig has no setting {wrong!r}. Did you mean {today!r}?"
    assert refusal(lambda: PPOConfig(**{wrong: 1})) == refusal(lambda: setattr(PPOConfig(), wrong, 1)) == text


def test_two_schedules_that_disagree():
    schedule, other = [[0, 1e-3], [9, 1e-5]], [[0, 1e-3], [9, 0]]
    assert PPOConfig.from_dict({"lr": schedule, "lr_schedule": schedule}).lr == schedule
    text = refusal(lambda: PPOConfig.from_dict({"lr": schedule, "lr_schedule": other}))
    assert text.startswith(
        "lr=[[0.0, 0.001], [9.0, 1e-05]] and lr_schedule=[[0.0, 0.001], [9.0, 0.0]] are two"
    )


def test_nothing_is_set_when_one_setting_is_wrong():
    config = PPOConfig()
    refusal(lambda: config.update_from_dict({"lr": 0.5, "num_workers": 1, "gama": 1}))
    refusal(lambda: config.training(lr=0.5, clip_param=0))
    refusal(lambda: config.resources(num_gpus=1, lr=0.5))
    assert config == PPOConfig()


def test_an_algorithm_without_a_field_does_not_know_its_old_name():
    @dataclasses.dataclass(kw_only=True)
    class PlainConfig(steppe.config.AlgorithmConfig):
        algo_name = "Plain"

        def make_learner(self, id, pair, seed):
            raise NotImplementedError

    assert refusal(lambda: PlainConfig.from_dict({"num_sgd_iter": 3})).startswith(
        "PlainConfig has no setting 'num_sgd_iter'."
    )


# --- the level of messages --------------------------------------------------------------------------------


def test_messages_reach_the_screen_at_the_level_asked_for(monkeypatch, capsys):
    logger = logging.getLogger("steppe.test_config_names")
    monkeypatch.setattr(steppe.config.messages, "logger", logger)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logger, "propagate", False)
    for level in ("INFO", "INFO", "ERROR"):
        steppe.config.messages.show_messages(level)
        logger.info("told")
        logger.warning("warned")
    assert capsys.readouterr().err == "told\nwarned\n" * 2
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    logger.error("left to the program")
    assert capsys.readouterr().err == ""
