"""``mixed_precision``: 16 bits in products of networks on images, 32 in what is learned and kept."""

import logging

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import steppe
from steppe.algorithms import ALGORITHMS, config_class
from steppe.models import encoders
from steppe.models.cnn import CNN
from steppe.models.encoders import make_encoder
from steppe.models.observations import MixedFilters, has_image
from steppe.spaces import spec_of
from steppe.types import SpacePair

FILTERS = [[4, 4, 4]]
EYE = spaces.Box(0, 255, (16, 16, 1), np.uint8)
SMALL = {
    "conv_filters": FILTERS,
    "fcnet_hiddens": [8],
    "num_envs_per_env_runner": 2,
    "train_batch_size": 32,
    "minibatch_size": 16,
    "num_epochs": 2,
    "seed": 0,
    "write_run": False,
}


class Pictures(gymnasium.Env):
    """Eight pictures by chance; the action that the first pixel's half says pays 1."""

    observation_space, action_space = EYE, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._seen(), {}

    def _seen(self):
        self.picture = self.np_random.integers(0, 256, (16, 16, 1)).astype(np.uint8)
        return self.picture

    def step(self, action):
        self.t += 1
        paid = float(action == (self.picture[0, 0, 0] > 127))
        return self._seen(), paid, self.t == 8, False, {}


def pair(filters=FILTERS, shape=(16, 16, 1)):
    """The same parameters, in both precisions."""
    made = [CNN(shape, np.random.default_rng(0), kind(filters)) for kind in (tuple, MixedFilters)]
    assert [cnn.mixed for cnn in made] == [False, True]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.tree.leaves, made))
    return made


def products(function, *arguments):
    """The types of what is multiplied, over all matrix products of a function and of its parts."""
    found = set()

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.update(str(variable.aval.dtype) for variable in equation.invars)
            for part in jax.tree.leaves(
                equation.params,
                is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr),
            ):
                if isinstance(part, jax.extend.core.ClosedJaxpr):
                    look(part.jaxpr)
                elif isinstance(part, jax.extend.core.Jaxpr):
                    look(part)

    look(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


# --- the network ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_all_products_are_of_16_bits_forward_and_back_and_all_else_of_32(kind):
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 1)).astype(kind)
    for cnn, name in zip(pair(), ("float32", "bfloat16"), strict=True):

        def loss(cnn):
            return jnp.square(jax.vmap(lambda image: cnn(image, 1 / 255))(images)).sum()

        assert products(jax.value_and_grad(loss), cnn) == {name}
        value, gradient = jax.jit(jax.value_and_grad(loss))(cnn)
        assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient, cnn(images[0])))} == {
            np.dtype("float32")
        }


def test_features_and_gradients_are_those_of_32_bits_to_within_rounding():
    """Eight bits of a mantissa: sums of products are off by a thousandth or two, of numbers of size one."""
    images = np.random.default_rng(1).integers(0, 256, (16, 16, 16, 1)).astype(np.uint8)

    def loss(cnn):
        features = jax.vmap(lambda image: cnn(image, 1 / 255))(images)
        return jnp.square(features - 0.1).mean(), features

    whole, mixed = (jax.jit(jax.value_and_grad(loss, has_aux=True))(cnn) for cnn in pair())
    scale = np.abs(whole[0][1]).max()
    off = np.abs(whole[0][1] - mixed[0][1]).max() / scale
    assert 1e-5 < off < 0.02
    for one, other in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(mixed[1]), strict=True):
        a, b = np.ravel(one), np.ravel(other)
        assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.999


def test_the_bytes_of_pixels_lose_nothing():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jnp.asarray(pixels).astype(jnp.bfloat16).astype(jnp.uint8), pixels)


def test_images_of_any_size_find_their_filters():
    cnn = make_encoder(spec_of(EYE), np.random.default_rng(0), conv_filters=MixedFilters()).cnn
    assert cnn.mixed
    assert [kernel.shape[-1] for kernel in cnn.kernels] == [32, 64]  # as for None


def test_where_images_are():
    assert has_image(spec_of(spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([EYE]))))
    assert has_image(spec_of(spaces.OneOf([spaces.Discrete(2), EYE])))
    assert not has_image(
        spec_of(spaces.Dict(a=spaces.Box(0, 1, (16,)), b=spaces.Box(0, 255, (8, 8, 1), np.uint8)))
    )


# --- a run ------------------------------------------------------------------------------------------------


def test_an_update_is_that_of_32_bits_to_within_rounding_and_its_parameters_have_32(tmp_path):
    runs = {}
    for mixed in (False, True):
        with steppe.PPOConfig(env=Pictures, **SMALL, mixed_precision=mixed).build() as run:
            before = run.get_weights()["default_policy"]
            run.train()
            runs[mixed] = run.get_weights()["default_policy"]
            if mixed:
                path = run.save(tmp_path / "c")
                pictures = np.random.default_rng(2).integers(0, 256, (16, 16, 16, 1)).astype(np.uint8)
                chosen = [run.compute_single_action(picture) for picture in pictures]
        assert runs[mixed].dtype == np.float32
    learned, off = runs[False] - before, runs[True] - runs[False]
    assert 0 < np.linalg.norm(off) < 0.2 * np.linalg.norm(learned)
    assert not np.array_equal(runs[True], runs[True].astype(jnp.bfloat16).astype(np.float32))
    # What is exported acts with numpy, in 32 bits, and acts the same; so does a run that goes on in 32.
    policy = steppe.load_policy(path)
    assert {array.dtype for array in policy.arrays.values()} == {np.dtype(np.float32)}
    gaps = np.abs([np.subtract(*policy.outputs(picture)) for picture in pictures])
    sure = gaps > 0.1 * gaps.max()  # rounding may turn the others
    assert sum(sure) >= 8
    same = [policy.act(p, explore=False) == c for p, c in zip(pictures, chosen, strict=True)]
    assert all(same[i] for i in range(16) if sure[i])
    with steppe.load(path, Pictures, mixed_precision=False) as again:
        np.testing.assert_array_equal(again.get_weights()["default_policy"], runs[True])
        same = [again.compute_single_action(p) == c for p, c in zip(pictures, chosen, strict=True)]
        assert all(same[i] for i in range(16) if sure[i])


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_every_algorithm_hands_it_to_its_networks(algo):
    cls = config_class(algo)
    one = cls(conv_filters=FILTERS, mixed_precision=True)
    assert isinstance(one.image_filters, MixedFilters)
    assert [*map(list, one.image_filters)] == FILTERS
    assert isinstance(cls(mixed_precision=True).image_filters, MixedFilters)
    assert cls(conv_filters=FILTERS).image_filters == FILTERS
    assert cls().image_filters is None
    assert "mixed_precision" in cls.POLICY_SCOPE


@pytest.mark.parametrize("algo", ["PPO", "DQN", "SAC", "TD3", "QMIX", "VDN", "ES"])
def test_every_way_that_filters_go_ends_in_a_network(algo, monkeypatch):
    made, built_in = [], encoders._built_in

    def watched(spec, rng, filters, width):
        made.append(type(filters))
        return built_in(spec, rng, filters, width)

    monkeypatch.setattr(encoders, "_built_in", watched)
    action = {"TD3": spaces.Box(-1, 1, (1,))}.get(algo, spaces.Discrete(2))
    both = [spec_of(spaces.Tuple([one] * 2) if algo in ("QMIX", "VDN") else one) for one in (EYE, action)]
    config_class(algo)(conv_filters=FILTERS, mixed_precision=True).make_learner("p", SpacePair(*both), 0)
    assert set(made) == {MixedFilters}


def test_without_images_it_is_said_once_that_nothing_changes(caplog, monkeypatch):
    monkeypatch.setattr("steppe.config.messages._said", set())
    settings = {**SMALL, "conv_filters": None, "mixed_precision": True}
    with caplog.at_level(logging.WARNING, "steppe"):
        for _ in range(2):
            steppe.PPOConfig(env="CartPole-v1", **settings).build().close()
    (record,) = [record for record in caplog.records if "mixed_precision" in record.message]
    assert "changes nothing for policy 'default_policy': no observation looks like an image" in record.message


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_a_small_catch_is_learned_as_well(mixed):
    from steppe.jaxenvs.catch import Catch

    config = steppe.PPOConfig(
        env=Catch,
        env_config={"squares": 4, "pixels": 4},
        **{**SMALL, "conv_filters": [[8, 4, 4]], "num_envs_per_env_runner": 16, "num_epochs": 4},
        mixed_precision=mixed,
    )
    with config.copy(fcnet_hiddens=[16], train_batch_size=256, minibatch_size=64, lr=1e-3).build() as run:
        rewards = [run.train()["episode_reward_mean"] for _ in range(16)]
    assert rewards[0] < 0 < 0.8 < rewards[-1]
