"""Trainers of DQN, SAC, TD3, QMIX and ES: RLlib's defaults, and what its settings mean here."""

from types import SimpleNamespace

import numpy as np
import pytest

import steppe
from steppe.compat import agents, gym, tune
from steppe.compat.defaults import default_config, known_algorithms, merged
from steppe.compat.meanings import class_of, meant, unsaid
from steppe.compat.ray.rllib.env import MultiAgentEnv
from steppe.compat.trainer import _config, trainer_class

TINY = {"num_workers": 0, "min_iter_time_s": 0, "seed": 0, "write_run": False}
REPLAY = {**TINY, "learning_starts": 8, "train_batch_size": 8, "timesteps_per_iteration": 24}
MODEL = {"model": {"fcnet_hiddens": [4]}}


class Still(gym.Env):
    """8 steps; a Box of actions where the config says so."""

    def __init__(self, config):
        box = config.get("box", False)
        self.action_space = gym.spaces.Box(-1, 1, (1,)) if box else gym.spaces.Discrete(2)
        self.observation_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self):
        self.count = 0
        return np.zeros(2, np.float32)

    def step(self, action):
        self.count += 1
        return np.zeros(2, np.float32), 1.0, self.count == 8, {}


class Pair(MultiAgentEnv):
    """Two agents, two steps: paid for doing the same."""

    def reset(self):
        self.count = 0
        return {"a": 0, "b": 0}

    def step(self, actions):
        self.count += 1
        same, both = float(actions["a"] == actions["b"]), {"a": self.count, "b": self.count}
        return both, {"a": same, "b": 0.0}, {"__all__": self.count == 2}, {}


def grouped(config):
    observed, done = gym.spaces.Discrete(3), gym.spaces.Discrete(2)
    spaces = {"obs_space": gym.spaces.Tuple([observed] * 2), "act_space": gym.spaces.Tuple([done] * 2)}
    return Pair().with_agent_groups({"both": ["a", "b"]}, **spaces)


def config_of(algo, env=Still, **settings):
    """What a trainer's settings are here, without the run."""
    config = merged(default_config(algo), {**TINY, "env": env, **settings})
    return _config(SimpleNamespace(algo=algo, config=config))


# --- one iteration of each ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "config", "stat"),
    [
        ("dqn", "DQNTrainer", {**REPLAY, **MODEL, "hiddens": [4]}, "mean_q"),
        ("dqn", "SimpleQTrainer", {**REPLAY, **MODEL}, "mean_q"),
        (
            "sac",
            "SACTrainer",
            {**REPLAY, "Q_model": {"fcnet_hiddens": [4]}, "policy_model": {"fcnet_hiddens": [4]}},
            "alpha",
        ),
        ("ddpg", "TD3Trainer", {**REPLAY, "actor_hiddens": [4], "critic_hiddens": [4]}, "critic_loss"),
        ("es", "ESTrainer", {**TINY, **MODEL, "train_batch_size": 32, "episodes_per_batch": 4}, "episodes"),
    ],
)
def test_trainers_train(module, name, config, stat):
    cls = getattr(getattr(agents, module), name)
    box = {"env_config": {"box": module in ("sac", "ddpg")}}
    trainer = cls(env=Still, config={**config, **box})
    result = trainer.train()
    assert result["episode_reward_mean"] == 8
    assert np.isfinite(result["info"]["default_policy"][stat])
    trainer.stop()


@pytest.mark.parametrize(("mixer", "cls"), [("qmix", steppe.QMIXConfig), ("vdn", steppe.VDNConfig)])
def test_a_group_trains_with_either_mixer(mixer, cls):
    model = {"lstm_cell_size": 4, "max_seq_len": 4}
    config = {**REPLAY, "mixer": mixer, "model": model, "mixing_embed_dim": 4}
    trainer = agents.qmix.QMixTrainer(env=grouped, config=config)
    ours = trainer.algorithm.config
    assert type(ours) is cls
    assert (ours.memory, ours.memory_size, ours.max_seq_len) == ("gru", 4, 4)
    result = trainer.train()
    assert (result["episode_len_mean"], result["timesteps_total"]) == (2, 24)
    assert np.isfinite(result["info"]["default_policy"]["mean_td_error"])
    trainer.stop()


# --- RLlib's defaults, and what they mean here ----------------------------------------------------------

ARRIVES = {  # numbers as in the sources of RLlib 1.2
    "DQN": {
        "lr": 5e-4,
        "n_step": 1,
        "grad_clip": 40,
        "adam_epsilon": 1e-8,
        "target_network_update_freq": 500,
        "replay_buffer_capacity": 50_000,
        "prioritized_replay": True,
        "epsilon": [[0, 1.0], [10_000, 0.02]],
        "fcnet_hiddens": [256, 256, 256],
        "td_error_loss_fn": "huber",
        "training_intensity": 8.0,
    },
    "SIMPLEQ": {
        "double_q": False,
        "dueling": False,
        "prioritized_replay": False,
        "fcnet_hiddens": [256, 256],
        "n_step": 1,
        "training_intensity": 8.0,
    },
    "SAC": {
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "tau": 5e-3,
        "initial_alpha": 1.0,
        "target_entropy": "auto",
        "normalize_actions": True,
        "fcnet_hiddens": [256, 256],
        "fcnet_activation": "relu",
        "num_steps_sampled_before_learning_starts": 1500,
        "min_sample_timesteps_per_iteration": 100,
        "training_intensity": 256.0,
    },
    "TD3": {
        "actor_lr": 1e-3,
        "tau": 5e-3,
        "policy_delay": 2,
        "target_noise": 0.2,
        "exploration_noise": 0.1,
        "fcnet_hiddens": [400, 300],
        "train_batch_size": 100,
        "num_steps_sampled_before_learning_starts": 10_000,
        "replay_buffer_capacity": 1_000_000,
        "evaluation_config": {"explore": False},
    },
    "ES": {
        "lr": 0.01,
        "noise_stdev": 0.02,
        "l2_coeff": 0.005,
        "episodes_per_batch": 1000,
        "train_batch_size": 10_000,
        "observation_filter": "MeanStdFilter",
        "batch_mode": "complete_episodes",
        "rollout_fragment_length": 1,
        "evaluation_config": {"explore": True},
    },
}


@pytest.mark.parametrize("algo", ARRIVES)
def test_defaults_of_rllib_arrive(algo):
    config = config_of(algo)
    assert {name: getattr(config, name) for name in ARRIVES[algo]} == ARRIVES[algo]


def test_defaults_of_groups_arrive():
    config = config_of("QMIX", grouped)
    assert (config.lr, config.grad_clip, config.mixing_embed_dim) == (5e-4, 10, 32)
    assert (config.memory, config.memory_size, config.fcnet_hiddens) == ("gru", 64, [64])
    assert (config.batch_mode, config.target_network_update_freq) == ("complete_episodes", 500)
    # RLlib's 1000 are batches, and its sequences of 999999 rows whole episodes.
    assert (config.replay_buffer_capacity, config.max_seq_len) == (10_000, 20)
    said = config_of("QMIX", grouped, buffer_size=5000, model={"max_seq_len": 30})
    assert (said.replay_buffer_capacity, said.max_seq_len) == (5000, 30)


@pytest.mark.parametrize("algo", [*ARRIVES, "QMIX"])
def test_a_program_s_copy_of_the_defaults_changes_nothing(algo):
    env = grouped if algo == "QMIX" else Still
    copy = {**default_config(algo), **TINY, "env": env}
    one, other = config_of(algo, env), config_of(algo, **{**copy, "evaluation_config": copy})
    assert one.changes() | {"evaluation_config": {"explore": True}} == other.changes()


def test_layers_after_the_model_follow_in_the_network():
    """RLlib: the model's layers, then ``hiddens`` in each stream, which here part before the last layer."""
    assert config_of("DQN", hiddens=[32]).fcnet_hiddens == [256, 256, 32]
    assert config_of("DQN", hiddens=[]).fcnet_hiddens == [256, 256]
    config = config_of("DQN", model={"fcnet_hiddens": [64]}, hiddens=[32, 16])
    assert config.fcnet_hiddens == [64, 32, 16]
    with pytest.raises(steppe.ConfigError, match="hiddens"):
        config_of("DQN", hiddens="wide")


@pytest.mark.parametrize(
    ("settings", "intensity"),
    [
        ({"rollout_fragment_length": 16}, 2.0),  # 32 rows learned from for each 16 that were sampled
        ({"num_envs_per_worker": 4}, 2.0),
        ({"num_workers": 4, "train_batch_size": 64}, 4.0),
        ({"training_intensity": 5.0, "num_envs_per_worker": 4}, 5.0),
    ],
)
def test_one_update_follows_each_round_of_fragments(settings, intensity):
    assert config_of("DQN", **settings).training_intensity == intensity


def test_changes_inside_a_group_leave_the_rest_of_it():
    config = config_of("SAC", optimization={"critic_learning_rate": 1e-3})
    assert (config.actor_lr, config.critic_lr, config.alpha_lr) == (3e-4, 1e-3, 3e-4)
    config = config_of("DQN", exploration_config={"final_epsilon": 0.5})
    assert config.epsilon == [[0, 1.0], [10_000, 0.5]]
    assert config_of("ES", stepsize=0.5).lr == 0.5


def test_keys_of_r2d2_mean_what_steppe_does():
    settings = {"use_h_function": True, "zero_init_states": False, "burn_in": 3}
    config = config_of("DQN", **settings, model={"use_lstm": True, "lstm_cell_size": 4})
    assert (config.value_rescaling, config.burn_in, config.memory, config.memory_size) == (True, 3, "lstm", 4)
    with pytest.raises(steppe.ConfigError, match=r"h_function_epsilon=0.1: values are rescaled with 0.001"):
        config_of("DQN", h_function_epsilon=0.1)


@pytest.mark.parametrize("mixer", [None, "sum"])
def test_another_mixer_is_refused_with_what_there_is(mixer):
    with pytest.raises(steppe.ConfigError, match=rf'mixer={mixer!r}: "qmix" .* DQNTrainer'):
        agents.qmix.QMixTrainer(env=grouped, config={"mixer": mixer})


def test_only_the_algorithms_own_words_are_translated():
    given = {"hiddens": [1], "stepsize": 1.0, "mixer": "vdn", "model": {"fcnet_hiddens": [2]}}
    assert meant(steppe.PPOConfig, given) == given
    assert meant(steppe.ESConfig, {"stepsize": 1.0, "lr": 2.0}) == {"lr": 1.0}
    assert meant(steppe.VDNConfig, {"mixer": "vdn", "mixing_embed_dim": 3, "lr": 1.0}) == {"lr": 1.0}
    assert meant(steppe.QMIXConfig, {"mixer": "qmix", "mixing_embed_dim": 3}) == {"mixing_embed_dim": 3}
    for algo in known_algorithms():
        cls = class_of(algo, default_config(algo))
        assert set(unsaid(algo)) <= set(steppe.config.field_specs(cls))


def test_names_of_rllib_in_any_case_find_their_trainer():
    assert tune._trainer("SimpleQ") is trainer_class("SIMPLEQ") is agents.dqn.SimpleQTrainer
    assert tune._trainer("QMIX") is agents.qmix.QMixTrainer
    with pytest.raises(steppe.ConfigError, match=r"tune.run\('DDPG'\): .* 'TD3'"):
        tune._trainer("DDPG")


def test_an_algorithm_without_a_trainer_is_said():
    with pytest.raises(steppe.ConfigError, match=r"no trainer of 'VDN'; there are .*QMIX"):
        trainer_class("VDN")
