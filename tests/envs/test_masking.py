"""Masks that an env tells in its info: in the observation, whatever kind of env it is, or missed by name."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.envs.masking import Masks
from steppe.errors import ConfigError, EnvError
from steppe.spaces import BoxSpec, DictSpec, DiscreteSpec, MultiBinarySpec, spec_of

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "minibatch_size": 32,
    "num_epochs": 1,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
    "action_mask": "info",
}


class Doors(gymnasium.Env):
    """Of four doors two are open, which the info alone says; a closed one breaks the env.

    A dict of ``nested`` (the observation is a Dict), ``silent_at`` (a step whose info is empty), ``dtype`` of
    the mask and ``shape`` (of a wrong one).
    """

    def __init__(self, config):
        box = spaces.Box(-1, 1, (2,))
        self.nested, self.silent_at = config.get("nested", False), config.get("silent_at")
        self.dtype, self.size = config.get("dtype", np.int8), config.get("size", 4)
        self.observation_space = spaces.Dict(where=box) if self.nested else box
        self.action_space = spaces.Discrete(4, start=config.get("start", 0))

    def told(self):
        where = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.open = np.zeros(4, self.dtype)
        self.open[self.np_random.choice(4, 2, replace=False)] = 1
        told = np.resize(self.open, self.size)
        return {"where": where} if self.nested else where, {} if self.t == self.silent_at else {
            "action_mask": told
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.told()

    def step(self, action):
        assert self.open[action - self.action_space.start], "a closed door was chosen"
        self.t += 1
        obs, info = self.told()
        return obs, 1.0, self.t == 6, False, {} if self.t == 6 else info


def failure(config, match):
    """The error of an env that its first iteration meets."""
    with config.build() as algo, pytest.raises(EnvError, match=match) as caught:
        algo.train()
    return caught.value


def trained(env, algo=steppe.PPOConfig, **settings):
    """What one iteration measured, once all that was chosen was open."""
    with algo(env=env, **{**SMALL, **settings}).build() as algorithm:
        result = algorithm.train()
        algorithm.evaluate(num_episodes=2, explore=True)
    assert result["episode_reward_mean"] == 6
    return result["info"]["default_policy"]


@pytest.mark.parametrize(
    "config", [{}, {"nested": True}, {"dtype": np.float64}, {"start": 3, "dtype": np.bool_}]
)
def test_only_the_open_doors_are_chosen(config):
    stats = trained(Doors, env_config=config)
    assert stats["entropy"] == pytest.approx(np.log(2), abs=0.05), "two of four"


def test_values_of_actions_know_the_mask_too():
    replay = {"num_steps_sampled_before_learning_starts": 16, "min_sample_timesteps_per_iteration": 64}
    settings = {name: SMALL[name] for name in SMALL if name not in ("minibatch_size", "num_epochs")}
    settings |= {**replay, "train_batch_size": 16, "replay_buffer_capacity": 200}
    with steppe.DQNConfig(env=Doors, **settings).build() as algo:
        assert algo.train()["episode_reward_mean"] == 6
        algo.evaluate(num_episodes=3)


def test_whoever_acts_elsewhere_brings_both(tmp_path):
    with steppe.PPOConfig(env=Doors, **SMALL).build() as algo:
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()["default_policy"]
        env = Doors({})
        obs, info = env.reset(seed=1)
        seen = {"observation": obs, "action_mask": info["action_mask"]}
        action = algo.compute_single_action(seen)
    with steppe.load(path, env=Doors) as again:
        again.train()
        np.testing.assert_array_equal(again.get_weights()["default_policy"], expected)
    assert env.open[steppe.load_policy(path).act(seen)]
    assert env.open[action]


SILENT = "no 'action_mask' in the env's info, which reset and step"


def test_an_info_without_it_is_named_with_its_step():
    error = failure(steppe.PPOConfig(env=Doors, env_config={"silent_at": 3}, **SMALL), SILENT)
    assert (error.code, error.leaf, error.step, error.episode) == ("E102", 'obs["action_mask"]', 3, 0)
    assert error.env_class == "Doors"
    assert failure(steppe.PPOConfig(env="CartPole-v1", **SMALL), SILENT).step == 0


def test_a_mask_of_another_length_is_refused():
    config = steppe.PPOConfig(env=Doors, env_config={"size": 5}, **SMALL)
    failure(config, r"zeros and ones of shape \(4,\), got .*shape \(5,\)")


def test_what_has_no_use_for_it_is_refused():
    with pytest.raises(ConfigError, match=r"for Discrete and MultiDiscrete actions.*Box\(1,\)"):
        steppe.PPOConfig(env="Pendulum-v1", **SMALL).build()

    class Both(Doors):
        def __init__(self, config):
            super().__init__(config)
            self.observation_space = spaces.Dict(action_mask=spaces.MultiBinary(4))

    with pytest.raises(ConfigError, match="has a mask already"):
        steppe.PPOConfig(env=Both, **SMALL).build()

    class Base(steppe.BaseEnv):
        def poll(self):
            raise AssertionError

        def send_actions(self, action_dict):
            raise AssertionError

    with pytest.raises(ConfigError, match="is a BaseEnv or external; put the mask into the observation"):
        steppe.PPOConfig(env=lambda config: Base(), **SMALL).build()


def test_the_space_is_that_of_the_env_and_a_bit_a_choice():
    masks = Masks(None, None, None)
    box = spaces.Box(-1, 1, (2,))
    spec = masks.spec(box, spaces.MultiDiscrete([3, 2]))
    assert spec == DictSpec((("observation", spec_of(box)), ("action_mask", MultiBinarySpec((5,)))))
    assert masks.spec(box, box) is None
    assert dict(Masks(spaces.Discrete(3), None, None).spec(box, spaces.Discrete(2)).items)[
        "observation"
    ] == DiscreteSpec(3)
    assert isinstance(masks.returned(box), BoxSpec)


@pytest.mark.parametrize("mode", list(gymnasium.vector.AutoresetMode))
@pytest.mark.parametrize("nested", [False, True])
def test_vector_envs_of_gymnasium(mode, nested):
    def make(ctx):
        made = [lambda: Doors({"nested": nested})] * ctx.num_envs
        return gymnasium.vector.SyncVectorEnv(made, autoreset_mode=mode)

    trained(make)


class Hall(steppe.VectorEnv):
    """Doors side by side; observations in lists, or as arrays."""

    def __init__(self, ctx):
        self.doors = [Doors({"nested": ctx["nested"]}) for _ in range(ctx.num_envs)]
        self.stacked, self.silent = ctx["stacked"], ctx.get("silent", False)
        super().__init__(self.doors[0].observation_space, self.doors[0].action_space, ctx.num_envs)

    def packed(self, obs):
        if not self.stacked:
            return list(obs)
        return {"where": np.stack([one["where"] for one in obs])} if self.doors[0].nested else np.stack(obs)

    def vector_reset(self, *, seeds=None, options=None):
        pairs = zip(self.doors, seeds, strict=True)
        obs, infos = zip(*(door.reset(seed=seed) for door, seed in pairs), strict=True)
        return self.packed(obs), list(infos)

    def reset_at(self, index, *, seed=None, options=None):
        return self.doors[index].reset(seed=seed)

    def vector_step(self, actions):
        pairs = zip(self.doors, actions, strict=True)
        obs, *rest, infos = zip(*(door.step(action) for door, action in pairs), strict=True)
        infos = [{}, *infos[1:]] if self.silent else list(infos)
        return self.packed(obs), *map(list, rest), infos


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_vector_envs_of_ones_own(nested, stacked):
    trained(Hall, env_config={"nested": nested, "stacked": stacked})


def test_of_envs_that_step_as_one_the_silent_one_is_named():
    settings = {"nested": False, "stacked": True, "silent": True}
    error = failure(steppe.PPOConfig(env=Hall, env_config=settings, **SMALL), SILENT)
    assert (error.env, error.step) == (0, 1)


class Two(steppe.MultiAgentEnv):
    """Doors for ``a``, and ``b``, who just says a number, without any mask."""

    def __init__(self, config):
        super().__init__()
        self.possible_agents, self.doors = ["a", "b"], Doors({})
        self.silent = config.get("silent", False)
        box = self.doors.observation_space
        self.observation_spaces = {"a": box, "b": box}
        self.action_spaces = {"a": self.doors.action_space, "b": spaces.Box(-1, 1, (1,))}

    def reset(self, *, seed=None, options=None):
        obs, info = self.doors.reset(seed=seed)
        return {"a": obs, "b": obs}, {"a": info}

    def step(self, actions):
        obs, reward, over, _, info = self.doors.step(actions["a"])
        ends = {"a": over, "b": over, "__all__": over}
        infos = {"b": {}} if self.silent and self.doors.t == 2 else {"a": info}
        return {"a": obs, "b": obs}, {"a": reward, "b": 0.0}, ends, dict.fromkeys(ends, False), infos


def many(**settings):
    return steppe.PPOConfig(
        env=Two,
        policies={"doors", "words"},
        policy_mapping_fn=lambda agent: "doors" if agent == "a" else "words",
        **{**SMALL, **settings},
    )


def test_of_many_agents_those_with_choices_have_masks(tmp_path):
    with many().build() as algo:
        result = algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()
    assert result["episode_reward_mean"] == 6
    assert result["info"]["doors"]["entropy"] == pytest.approx(np.log(2), abs=0.05)
    with steppe.load(path, env=Two, policy_mapping_fn=lambda a: "doors" if a == "a" else "words") as again:
        again.train()
        for id, weights in expected.items():
            np.testing.assert_array_equal(again.get_weights()[id], weights)


def test_the_agent_whose_info_is_silent_is_named():
    error = failure(many(env_config={"silent": True}), SILENT)
    assert (error.agent, error.step) == ("a", 2)
