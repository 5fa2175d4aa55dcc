"""Networks and distributions of one's own: in training, acting, files, and refused where they do not do."""

import functools
import math

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.errors import CheckpointError, ConfigError
from steppe.models.custom import gymnasium_space
from steppe.models.distributions import Distribution
from steppe.spaces import spec_of

SMALL = {
    "num_envs_per_env_runner": 2,
    "train_batch_size": 64,
    "fcnet_hiddens": [8],
    "write_run": False,
    "seed": 0,
}
PPO = {**SMALL, "minibatch_size": 32, "num_epochs": 2}
REPLAY = {**SMALL, "train_batch_size": 16, "num_steps_sampled_before_learning_starts": 32}
REPLAY |= {"min_sample_timesteps_per_iteration": 64, "replay_buffer_capacity": 256}


REMEMBERS = {"memory": "gru", "memory_size": 8, "max_seq_len": 8}


class Wide(eqx.Module):
    """An encoder: a layer of its own, and a setting of the class's own that is no array."""

    layer: eqx.nn.Linear
    activation: object

    def __init__(self, space, key):
        self.layer = eqx.nn.Linear(math.prod(space.shape), 12, key=key)
        self.activation = lambda x: jnp.tanh(x)

    def __call__(self, obs):
        return self.activation(self.layer(obs.reshape(-1).astype(jnp.float32)))


class Whole(eqx.Module):
    """Policy and value on one layer."""

    body: eqx.nn.Linear
    pi: eqx.nn.Linear
    vf: eqx.nn.Linear

    def __init__(self, space, num_outputs, key):
        body, pi, vf = jax.random.split(key, 3)
        self.body = eqx.nn.Linear(space.shape[0], 16, key=body)
        self.pi = eqx.nn.Linear(16, num_outputs, key=pi)
        self.vf = eqx.nn.Linear(16, "scalar", key=vf)

    def __call__(self, obs):
        x = jnp.tanh(self.body(obs))
        return self.pi(x), self.vf(x)


class Beta:
    """A Beta distribution for each element of a Box, whose bounds it never leaves."""

    def __init__(self, space):
        self.low, self.span = space.low, space.high - space.low
        self.noise_size, self.param_size = space.shape[0], 2 * space.shape[0]

    def shapes(self, params):
        return jnp.split(1.0 + jax.nn.softplus(params), 2)

    def sample(self, params, noise):
        a, b = self.shapes(params)

        def halve(_, bounds):
            middle = sum(bounds) / 2
            below = jax.scipy.special.betainc(a, b, middle) < noise
            return jnp.where(below, middle, bounds[0]), jnp.where(below, bounds[1], middle)

        low, high = jax.lax.fori_loop(0, 24, halve, (jnp.zeros_like(a), jnp.ones_like(a)))
        return (low + high) / 2

    def mode(self, params):
        a, b = self.shapes(params)
        return (a - 1.0) / (a + b - 2.0)

    def logp(self, params, action):
        a, b = self.shapes(params)
        x = jnp.clip(action, 1e-6, 1.0 - 1e-6)
        return ((a - 1.0) * jnp.log(x) + (b - 1.0) * jnp.log1p(-x) - jax.scipy.special.betaln(a, b)).sum()

    def entropy(self, params):
        a, b = self.shapes(params)
        psi = jax.scipy.special.digamma
        of_sum = (a + b - 2.0) * psi(a + b)
        return (jax.scipy.special.betaln(a, b) - (a - 1) * psi(a) - (b - 1) * psi(b) + of_sum).sum()

    def to_env(self, action):
        return (self.low + self.span * action).astype(np.float32)

    def from_env(self, action):
        return ((action - self.low) / self.span).astype(np.float32)


class Aim(gymnasium.Env):
    """One number, seen as it is, is to be hit; a number outside of the bounds breaks the env."""

    observation_space = spaces.Box(-2, 3, (1,))
    action_space = spaces.Box(-2, 3, (1,))

    def __init__(self, config=None):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def seen(self):
        self.target = self.np_random.uniform(-2, 3, 1).astype(np.float32)
        return self.target

    def step(self, action):
        assert self.action_space.contains(action)
        reward = -float(abs(action - self.target)[0])
        self.t += 1
        return self.seen(), reward, False, self.t == 8, {}


CASES = {
    "ppo, encoder": (steppe.PPOConfig, "CartPole-v1", {"encoder": Wide}, PPO),
    "ppo, whole": (steppe.PPOConfig, "CartPole-v1", {"actor_critic": Whole}, PPO),
    "ppo, whole, numbers": (steppe.PPOConfig, Aim, {"actor_critic": Whole}, PPO),
    "a2c, distribution": (steppe.A2CConfig, Aim, {"distribution": Beta}, SMALL),
    "dqn": (steppe.DQNConfig, "CartPole-v1", {"encoder": Wide}, REPLAY),
    "sac": (steppe.SACConfig, Aim, {"encoder": Wide}, REPLAY),
    "td3": (steppe.TD3Config, Aim, {"encoder": functools.partial(Wide)}, REPLAY),
    "lstm": (
        steppe.PPOConfig,
        "CartPole-v1",
        {"encoder": Wide},
        {**PPO, "memory": "lstm", "memory_size": 8, "max_seq_len": 8},
    ),
    "gru, distribution": (
        steppe.PPOConfig,
        Aim,
        {"distribution": Beta},
        {**PPO, "memory": "gru", "memory_size": 8, "max_seq_len": 8, "prev_action": True},
    ),
    "dqn, memory": (steppe.DQNConfig, "CartPole-v1", {"encoder": Wide}, {**REPLAY, **REMEMBERS}),
    "dqn, frames": (steppe.DQNConfig, "CartPole-v1", {"encoder": Wide}, {**REPLAY, "framestack": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_is_saved_and_goes_on_exactly(case, tmp_path):
    cls, env, models, settings = CASES[case]
    with cls(env=env, models=models, **settings).build() as algo:
        before = algo.get_weights()["default_policy"]
        algo.train()
        after = algo.get_weights()["default_policy"]
        assert np.isfinite(after).all()
        moved = (before != after).mean()
        assert moved > 0.8, "also what is inside the user's module"
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()["default_policy"]
    with pytest.raises(CheckpointError, match=r"names no code to import; .*models=\.\.\."):
        steppe.load(path, env=env)
    with pytest.raises(ConfigError, match=r"code of your own.*steppe\.load\(path, models="):
        steppe.load_policy(path)
    with steppe.load(path, env=env, models=models) as again:
        again.train()
        np.testing.assert_array_equal(again.get_weights()["default_policy"], expected)


def test_a_beta_is_learned_and_never_leaves_its_bounds():
    """Chance earns about -1.67 a step."""
    learning = {"lr": 0.01, "gamma": 0.0, "train_batch_size": 512, "minibatch_size": 64, "num_epochs": 4}
    config = steppe.PPOConfig(env=Aim, models={"distribution": Beta}, **{**PPO, **learning})
    with config.build() as algo:
        first = algo.evaluate(num_episodes=40, explore=True)["episode_reward_mean"] / 8
        for _ in range(10):
            algo.train()
        assert first < -1.0
        assert algo.evaluate(num_episodes=40)["episode_reward_mean"] / 8 > -0.4
        assert algo.train()["info"]["default_policy"]["updates_skipped"] == 0
        chosen = algo.compute_single_action(np.array([1.0], np.float32))
        assert chosen == pytest.approx(1.0, abs=0.6)


def test_a_distribution_of_ones_own_has_the_same_maths_for_one_row_and_for_many():
    d = Distribution(spec_of(spaces.Box(-2, 3, (2,))), own=Beta)
    assert (d.param_size, d.noise_size, d.log_std_size) == (4, 2, 0)
    rng = np.random.default_rng(0)
    params = rng.standard_normal((3, 5, 4)).astype(np.float32)
    noise = rng.random((3, 5, 2), np.float32)
    action = d.sample(params, noise)
    assert action.shape == (3, 5, 2)
    logp = d.logp(params, action)
    one = d.logp(params[1, 2], action[1, 2])
    assert float(logp[1, 2]) == pytest.approx(float(one), abs=1e-5)
    assert d.entropy(params, action).shape == (3, 5)
    assert d == Distribution(spec_of(spaces.Box(-2, 3, (2,))), own=Beta)
    assert d != Distribution(spec_of(spaces.Box(-2, 3, (2,))))
    np.testing.assert_allclose(d.from_env(d.to_env(np.asarray(action))), action, atol=1e-5)


def test_a_beta_of_two_and_three_has_the_density_of_the_books():
    """Shapes are 1 + softplus: log(e - 1) gives 2, log(e^2 - 1) gives 3. The density is 12 x (1 - x)^2."""
    d = Distribution(spec_of(spaces.Box(0, 1, (1,))), own=Beta)
    params = np.log([np.e - 1.0, np.e**2 - 1.0]).astype(np.float32)
    for x in (0.1, 0.4, 0.9):
        density = float(jnp.exp(d.logp(params, np.array([x], np.float32))))
        assert density == pytest.approx(12 * x * (1 - x) ** 2, rel=1e-3)
    median = float(d.sample(params, np.array([0.5], np.float32))[0])
    below = 6 * median**2 - 8 * median**3 + 3 * median**4
    assert below == pytest.approx(0.5, abs=1e-3)


def test_masks_and_parts_hidden_from_acting_are_not_shown_to_it():
    seen = []

    class Looks(eqx.Module):
        layer: eqx.nn.Linear

        def __init__(self, space, key):
            seen.append(sorted(space.spaces))
            self.layer = eqx.nn.Linear(2, 4, key=key)

        def __call__(self, obs):
            seen.append(sorted(obs))
            return self.layer(obs["observation"])

    class Doors(gymnasium.Env):
        observation_space = spaces.Dict(
            observation=spaces.Box(-1, 1, (2,)), secret=spaces.Discrete(3), action_mask=spaces.MultiBinary(3)
        )
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.step(1)[0], {}

        def step(self, action):
            assert action == 1
            obs = {
                "observation": np.zeros(2, np.float32),
                "secret": 1,
                "action_mask": np.eye(3, dtype=np.int8)[1],
            }
            return obs, 0.0, False, self.np_random.random() < 0.2, {}

    config = steppe.PPOConfig(env=lambda _: Doors(), models={"encoder": Looks}, critic_only=["secret"], **PPO)
    with config.build() as algo:
        algo.train()
    assert {tuple(keys) for keys in seen} == {("observation",), ("observation", "secret")}


def built(models, env="CartPole-v1", cls=steppe.PPOConfig, **settings):
    return cls(env=env, models=models, **{**SMALL, **settings}).build()


def refusal(models, env="CartPole-v1", cls=steppe.PPOConfig, **settings):
    with pytest.raises(ConfigError) as caught:
        built(models, env, cls, **settings)
    return str(caught.value)


class Gives(eqx.Module):
    """An encoder that makes what it is told to; as a whole, it takes the number of outputs, too."""

    weight: jax.Array
    make: object = eqx.field(static=True)

    def __init__(self, make, *_):
        self.weight, self.make = jnp.ones(4), make

    def __call__(self, obs):
        return self.make(self.weight * obs)


def gives(make):
    return functools.partial(Gives, make)


class Counts(eqx.Module):
    index: jax.Array

    def __init__(self, space, key):
        self.index = jnp.arange(4)

    def __call__(self, obs):
        return obs[self.index]


class Broken(eqx.Module):
    def __init__(self, space, key):
        raise RuntimeError("of the user's own")


def test_an_encoder_that_does_not_do_is_refused_by_what_it_made():
    assert "makes an array of shape (4, 1) of one observation, not (size,)" in refusal(
        {"encoder": gives(lambda x: x[:, None])}
    )
    assert "makes a tuple of one observation" in refusal({"encoder": gives(lambda x: (x, x))})
    assert "makes float16, not float32" in refusal({"encoder": gives(lambda x: x.astype(jnp.float16))})
    assert "not finite, before any training" in refusal({"encoder": gives(lambda x: x / 0.0)})
    assert ".index is an array of int32, which cannot be learned" in refusal({"encoder": Counts})
    assert "which is no Equinox module" in refusal({"encoder": lambda space, key: len})
    with pytest.raises(RuntimeError, match="of the user's own") as caught:
        built({"encoder": Broken})
    assert "while making models['encoder']=Broken for Box(4,)" in caught.value.__notes__[0]


def test_a_whole_network_that_does_not_do_is_refused_by_what_it_made():
    assert "return (vector of 2 numbers, value)" in refusal({"actor_critic": gives(lambda x: x)})
    assert "of shape (4,) of one observation, not (2,)" in refusal(
        {"actor_critic": gives(lambda x: (x, x.sum()))}
    )
    assert "of shape (1,) as the value of one observation, not ()" in refusal(
        {"actor_critic": gives(lambda x: (x[:2], x[:1]))}
    )
    for setting in ({"vf_share_layers": True}, {"memory": "lstm"}):
        assert f"so that {next(iter(setting))} has nothing to act on" in refusal(
            {"actor_critic": Whole}, **setting
        )
    both = {"actor_critic": Whole, "encoder": Wide}
    assert 'so that models["encoder"] has nothing' in refusal(both)
    shared = refusal({"actor_critic": Whole}, share={"encoder": "trunk"})
    assert "those of your own, have no parts that can be shared" in shared


def test_a_distribution_that_does_not_do_is_refused_by_what_it_made():
    class NoMode(Beta):
        mode = None

    class Vector(Beta):
        def entropy(self, params):
            return params

    class Nowhere(Beta):
        def logp(self, params, action):
            return jnp.log(action.sum() - 10.0)

    class Long(Beta):
        def to_env(self, action):
            return np.repeat(action, 2, axis=1)

    assert "lacks mode; it needs param_size, noise_size, sample" in refusal({"distribution": NoMode}, Aim)
    assert "entropy gives an array of shape (2,), not one number" in refusal({"distribution": Vector}, Aim)
    assert "logp gives nan for parameters that are 0" in refusal({"distribution": Nowhere}, Aim)
    assert "to_env gives what is no column of actions" in refusal({"distribution": Long}, Aim)


def test_what_is_no_class_or_has_no_such_place_is_refused_where_it_is_written():
    with pytest.raises(ConfigError, match=r"models\['encodr'\].*did you mean 'encoder'"):
        steppe.PPOConfig(models={"encodr": Wide})
    with pytest.raises(ConfigError, match="give the class itself"):
        steppe.PPOConfig(models={"encoder": 3})
    for cls in (steppe.DQNConfig, steppe.SACConfig, steppe.TD3Config):
        env = "CartPole-v1" if cls is steppe.DQNConfig else Aim
        assert "use that, or leave it at" in refusal({"actor_critic": Whole}, env, cls)


def test_any_space_has_its_gymnasium_form():
    every = [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(0, 255, (4, 4, 1), np.uint8),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, 0]),
        spaces.MultiBinary([2, 2]),
        spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Box(0, 1, ()), spaces.Discrete(4)])),
        spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    ]
    for space in every:
        assert gymnasium_space(spec_of(space)) == space
    longest = spec_of(spaces.Sequence(spaces.Discrete(4)), max_sequence_length=3)
    assert gymnasium_space(longest) == spaces.Sequence(spaces.Discrete(4))


def test_policies_have_models_each_of_their_own(tmp_path):
    specs = {
        "a": steppe.PolicySpec(config={"models": {"encoder": Wide}}),
        "b": steppe.PolicySpec(config={"models": {"actor_critic": Whole}}),
        "c": steppe.PolicySpec(),
    }

    def mapping(agent):
        return "abc"[agent]

    env = steppe.make_multi_agent("CartPole-v1")
    both = {"env": env, "policies": specs, "policy_mapping_fn": mapping}
    with steppe.PPOConfig(env_config={"num_agents": 3}, **both, **PPO).build() as algo:
        first = algo.get_weights()
        algo.train()
        path = algo.save(tmp_path / "c")
        algo.train()
        expected = algo.get_weights()
    assert len({len(weights) for weights in expected.values()}) == 3
    assert all((first[id] != expected[id]).any() for id in "abc")
    with pytest.raises(CheckpointError, match=r"policies=\.\.\. .*'encoder': 'Wide'"):
        steppe.load(path, env=env, policy_mapping_fn=mapping)
    steppe.load_policy(path, "c").act(np.zeros(4, np.float32))
    with steppe.load(path, **both) as again:
        again.train()
        for id, weights in expected.items():
            np.testing.assert_array_equal(again.get_weights()[id], weights)


def test_settings_tell_that_there_is_code():
    config = steppe.PPOConfig(env=Aim, models={"encoder": Wide})
    assert config.code_fields() == ["env", "models"]
    assert config.to_dict()["models"] == {"encoder": "Wide"}
