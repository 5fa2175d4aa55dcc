"""Masks of actions and leaves for the critic alone, in the networks: who sees what, and what is never chosen.

``tests/test_masks.py`` and ``tests/test_critic_only.py`` train with them.
"""

from __future__ import annotations

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from steppe.errors import ConfigError
from steppe.learning.networks import ActorCriticNetworks
from steppe.models.actions import MASKED, Actions
from steppe.models.distributions import Distribution
from steppe.models.encoders import norm_merge, normalize
from steppe.models.numpy_forward import Network
from steppe.models.observations import normalized_leaves
from steppe.models.sight import check_mask, shown, sight_of
from steppe.policies.actor_critic import Layout
from steppe.seeding import SMALLEST_NOISE
from steppe.spaces import BadLeaf, collect, spec_of, summary
from steppe.types import SpacePair, Weights

LARGEST_NOISE = float(np.nextafter(np.float32(1), np.float32(0)))
BOX = spaces.Box(-9, 9, (2,), np.float32)
STATE = spaces.Box(-50, 50, (3,), np.float32)
FOUR = spaces.Discrete(4, start=-1)
UNEVEN = spaces.MultiDiscrete([2, 3, 1])


def pair(action, **parts):
    return SpacePair(spec_of(spaces.Dict(parts)), spec_of(action))


def bits(n):
    return spaces.MultiBinary(n)


def seen(pair, critic_only=(), share_layers=False):
    sight = sight_of(pair, critic_only, share_layers)
    return tuple(map(summary, sight[1:4])), sight.masked


def refusal(*args):
    with pytest.raises(ConfigError) as caught:
        sight_of(*args)
    return str(caught.value)


def networks(pair, seed=0, normalize=True, **model):
    distribution = Distribution(pair.action)
    rng = np.random.default_rng(seed)
    nets = ActorCriticNetworks(pair, distribution, rng, normalize=normalize, hiddens=[5], **model)
    shaken = nets.params + 0.5 * rng.normal(size=nets.params.shape).astype(np.float32)
    return nets, shaken


def published(nets, params, stats):
    """What a learner hands to runners."""
    return params[: nets.actor_size], tuple(np.asarray(stats[i]) for i in nets.published)


def masks_and_rows(dtype, masks, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"observation": rng.normal(size=2).astype(np.float32), "action_mask": np.asarray(m, dtype)}
        for m in masks
    ]


# --- who sees what ----------------------------------------------------------------------------------------


def test_a_mask_is_for_acting_and_no_network_encodes_it():
    two = pair(FOUR, observation=BOX, action_mask=bits(4))
    inside, box = "Dict(action_mask: MultiBinary(4,), observation: Box(2,) float32)", "observation: Box(2,)"
    assert seen(two) == ((inside, f"Dict({box} float32)", f"Dict({box} float32)"), True)


def test_what_the_critic_alone_sees_acting_lacks():
    three = pair(FOUR, observation=BOX, action_mask=bits(4), state=STATE)
    acting, actor, critic = seen(three, ["state"])[0]
    assert "state" not in acting + actor
    assert critic == "Dict(observation: Box(2,) float32, state: Box(3,) float32)"
    assert seen(three, ["state"]) == seen(three, ["state", "state"])


@pytest.mark.parametrize(
    "mask",
    [
        spaces.Box(0, 1, (4,), np.int8),
        spaces.Box(0, 1, (4,), np.int64),
        spaces.Box(0, 1, (4,), np.float64),
        spaces.Box(-np.inf, np.inf, (4,), np.float32),
        spaces.Box(0, 1, (4,), np.bool_),
        bits(4),
    ],
    ids=str,
)
def test_masks_are_numbers_of_any_kind_and_have_no_statistics(mask):
    found = sight_of(pair(FOUR, observation=BOX, action_mask=mask), (), False)
    assert found.masked
    assert list(normalized_leaves(found.critic)) == ['obs["observation"]']


def test_a_mask_of_several_choices_is_flat():
    assert seen(pair(UNEVEN, observation=BOX, action_mask=bits(6)))[1]


@pytest.mark.parametrize("action", [BOX, bits(4), spaces.Tuple([FOUR])], ids=str)
def test_beside_other_actions_the_name_means_nothing(action):
    sees, masked = seen(pair(action, observation=BOX, action_mask=bits(4)))
    assert not masked
    assert len({*sees}) == 1


@pytest.mark.parametrize(
    ("action", "mask", "needed"),
    [
        (FOUR, bits(5), "Discrete(4, start=-1) that is a Box or MultiBinary of shape (4,)"),
        (FOUR, spaces.Box(0, 1, (1, 4)), "(4,), and the observation space says Box(1, 4) float32"),
        (FOUR, spaces.MultiDiscrete([2] * 4), "says MultiDiscrete([2, 2, 2, 2])"),
        (FOUR, spaces.Dict(a=bits(4)), "says Dict(a: MultiBinary(4,))"),
        (UNEVEN, bits((3, 3)), "shape (6,), and the observation space says MultiBinary(3, 3)"),
    ],
)
def test_a_mask_that_fits_no_action_is_refused_with_both_shapes(action, mask, needed):
    text = refusal(pair(action, observation=BOX, action_mask=mask), (), False)
    assert text.startswith('obs["action_mask"] is the mask of the actions')
    assert needed in text


def test_what_cannot_be_hidden_is_refused_with_what_can():
    two = pair(FOUR, observation=BOX, state=STATE)
    text = refusal(two, ["stat"], False)
    assert text == (
        "critic_only=['stat']: 'stat' is not there; the keys are observation, state; did you mean 'state'?"
    )
    assert "leaves nothing to act on; leave out one of observation, state" in refusal(
        two, ["state", "observation"], False
    )
    assert "observation space is Box(2,) float32" in refusal(
        SpacePair(spec_of(BOX), spec_of(FOUR)), ["state"], False
    )
    assert "set vf_share_layers=False" in refusal(two, ["state"], True)
    masked = pair(FOUR, observation=BOX, action_mask=bits(4))
    assert "'action_mask' is the mask, which acting needs; the keys are observation" in refusal(
        masked, ["action_mask"], False
    )
    assert "leaves nothing to act on" in refusal(masked, ["observation"], False)
    assert "a mask of actions and nothing else to act on" in refusal(
        pair(FOUR, action_mask=bits(4)), (), False
    )


def test_hidden_leaves_may_be_there_or_not_and_others_are_left_to_be_judged():
    given = [{"a": 1, "state": 2}, {"a": 1}, [3], {"a": 1, "b": 4}]
    assert shown(given, ["state"]) == [{"a": 1}, {"a": 1}, [3], {"a": 1, "b": 4}]
    assert given[0] == {"a": 1, "state": 2}


# --- the arithmetic of masks ------------------------------------------------------------------------------


def test_by_hand():
    """Logits 0, ln 3, 5, ln 2 of which the third is illegal: 1/6, 3/6, 0, 2/6."""
    d = Distribution(spec_of(spaces.Discrete(4)))
    legal = np.array([1, 1, 0, 1])
    p = jnp.where(legal != 0, jnp.asarray([0.0, math.log(3), 5.0, math.log(2)]), MASKED)
    q = jnp.where(legal != 0, jnp.zeros(4), MASKED)
    chances = [1 / 6, 1 / 2, 1 / 3]
    assert [float(d.logp(p, jnp.asarray(a))) for a in (0, 1, 3)] == pytest.approx(
        [math.log(c) for c in chances]
    )
    assert float(d.logp(p, jnp.asarray(2))) <= -1e8
    assert float(d.entropy(p)) == pytest.approx(-sum(c * math.log(c) for c in chances))
    assert float(d.entropy(q)) == pytest.approx(math.log(3))
    assert float(d.kl(p, q)) == pytest.approx(sum(c * math.log(3 * c) for c in chances))
    assert float(d.kl(q, p)) == pytest.approx(sum(math.log(1 / (3 * c)) / 3 for c in chances))
    assert int(d.mode(p)) == 1
    cuts = [(0.1, 0), (0.2, 1), (0.6, 1), (0.7, 3), (LARGEST_NOISE, 3), (float(SMALLEST_NOISE), 0)]
    for u, action in cuts:
        assert int(d.sample(p, jnp.asarray([u], jnp.float32))) == action


@pytest.mark.parametrize("legal", [[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
def test_gradients_are_finite_and_those_of_illegal_actions_nothing(legal):
    d = Distribution(spec_of(spaces.Discrete(4)))
    nets, flat = networks(pair(spaces.Discrete(4), observation=BOX, action_mask=bits(4)))
    obs = {"observation": np.array([1.0, -2.0], np.float32), "action_mask": np.array(legal)}

    def loss(model):
        params = model(obs)[0]
        return d.entropy(params) + d.kl(jax.lax.stop_gradient(params) + 1.0, params) + d.logp(params, 2)

    model = nets.layout.unravel(jnp.asarray(flat))
    gradient = jax.grad(loss)(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    last = np.asarray(gradient.actor.mlp.biases[-1])
    assert (last[np.array(legal) == 0] == 0).all()


@pytest.mark.parametrize("share_layers", [False, True])
def test_neither_network_sees_the_mask(share_layers):
    nets, flat = networks(pair(FOUR, observation=BOX, action_mask=bits(4)), share_layers=share_layers)
    model = nets.layout.unravel(jnp.asarray(flat))
    obs = [
        {"observation": np.array([1.0, -2.0], np.float32), "action_mask": np.array(m)}
        for m in ([1, 1, 1, 1], [0, 1, 1, 0])
    ]
    (free, value), (masked, same) = map(model, obs)
    assert value == same == model.value(obs[1])
    assert masked[1:3].tolist() == free[1:3].tolist()
    assert masked[jnp.array([0, 3])].tolist() == [np.float32(MASKED)] * 2


def test_statistics_and_scaling_pass_the_mask_by():
    nets, _ = networks(pair(FOUR, observation=BOX, action_mask=spaces.Box(-1e3, 1e3, (4,))))
    assert [a.shape for a in nets.normalizer] == [(), (2,), (2,)]
    column = {
        "observation": np.arange(6, dtype=np.float32).reshape(3, 2),
        "action_mask": np.array([[500.0, 0, 0, 0]] * 3, np.float32),
    }
    stats = norm_merge(nets.seen, nets.normalizer, column, np.ones(3, bool))
    scaled = normalize(nets.seen, stats, column)
    assert stats[1].tolist() == [2, 3]
    assert scaled["action_mask"] is column["action_mask"]
    assert abs(float(scaled["observation"].mean())) < 1e-6


# --- acting -----------------------------------------------------------------------------------------------


MASKABLE = {
    "one of four": (FOUR, [4], -1),
    "no choice": (spaces.Discrete(1, start=5), [1], 5),
    "several choices": (UNEVEN, [2, 3, 1], 0),
    "alike choices": (spaces.MultiDiscrete([3, 3], start=[2, 2]), [3, 3], 2),
}


@functools.cache
def maskable(name):
    """Spaces, networks that were drawn for them once, and how the choices are counted."""
    action, nvec, start = MASKABLE[name]
    both = pair(action, observation=BOX, action_mask=spaces.Box(0, 1, (sum(nvec),), np.int8))
    return both, *networks(both, normalize=False), nvec, start


@pytest.mark.parametrize("name", MASKABLE)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 9), scale=st.sampled_from([0.1, 30.0, 1e4]))
def test_the_illegal_is_never_chosen_and_numpy_agrees(name, data, seed, scale):
    """Whatever the networks say and the noise, at its very ends too: in JAX, and by the exported network."""
    both, nets, flat, nvec, start = maskable(name)
    part = st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n).filter(any) for n in nvec))
    legal = np.array([[*itertools.chain(*row)] for row in data.draw(st.lists(part, min_size=1, max_size=4))])
    column = collect(both.observation, masks_and_rows(np.int8, legal, seed))
    weights = Weights(1, flat[: nets.actor_size] * np.float32(scale))
    state = nets.policy.export(weights)
    network = Network(json.loads(json.dumps(state["network"])), state["arrays"])
    size = (len(legal), len(nvec))
    drawn = np.random.default_rng(seed).uniform(0.001, 0.999, size).astype(np.float32)
    for noise in (None, drawn, *(np.full(size, u, np.float32) for u in (SMALLEST_NOISE, 0.5, LARGEST_NOISE))):
        decision = nets.policy.act(nets.policy.load(weights), column, None, noise)
        assert (np.isfinite(decision.logp) & (decision.logp > -1e8)).all()
        for found in (nets.policy.to_env(decision.action), network.act(column, noise)[0]):
            choices = np.asarray(found).reshape(size).astype(int) - start + np.cumsum(nvec) - nvec
            assert np.take_along_axis(legal, choices, axis=1).all()
    params = network.params(column)
    assert (params[~legal] == np.float32(MASKED)).all()
    actor = Layout.of(nets._model.actor).unravel(jnp.asarray(weights.params))
    np.testing.assert_allclose(params, jax.vmap(actor)(column), rtol=1e-5, atol=1e-5 * scale)


def test_no_rounding_of_many_small_chances_picks_the_illegal():
    """A thousand legal choices and as many illegal ones behind them: sums of chances that end off 1."""
    n = 2000
    actions, d = Actions(spec_of(spaces.Discrete(n))), Distribution(spec_of(spaces.Discrete(n)))
    rng = np.random.default_rng(0)
    noise = np.concatenate([np.full((200, 1), LARGEST_NOISE), np.full((200, 1), SMALLEST_NOISE)])
    noise = noise.astype(np.float32)
    params = rng.normal(size=(400, n)).astype(np.float32)
    params[:200, 1000:] = MASKED
    params[200:, :1000] = MASKED
    for found in (np.asarray(d.sample(params, noise)), actions.choose(params, noise)):
        assert (found[:200] < 1000).all()
        assert (found[200:] >= 1000).all()


def test_sums_that_wobble_where_nothing_is_legal_pick_nothing_there():
    """Long sums are taken in blocks, so that they rise and fall by a rounding between two legal choices.

    Noise just beside the sums themselves meets that in some of these rows.
    """
    rows, n = np.arange(256), 999
    d, rng = Distribution(spec_of(spaces.Discrete(n))), np.random.default_rng(0)
    summed = jax.jit(lambda params: jnp.cumsum(jax.nn.softmax(params), -1))
    sample, wobbling = jax.jit(d.sample), 0
    for _ in range(10):
        legal = rng.random((len(rows), n)) < 0.3
        params = np.where(legal, 3 * rng.normal(size=legal.shape), MASKED).astype(np.float32)
        sums = np.asarray(summed(params))
        noise = np.nextafter(sums[rows, rng.integers(0, n, len(rows))] / sums[:, -1], np.float32(2))
        noise = noise.clip(SMALLEST_NOISE, LARGEST_NOISE)[:, None]
        assert legal[rows, np.asarray(sample(params, noise))].all()
        assert legal[rows, d.actions.choose(params, noise)].all()
        wobbling += int((np.diff(sums)[~legal[:, 1:]] != 0).sum())
    assert wobbling > 0, "nothing was tried"


@pytest.mark.parametrize(
    ("action", "masks", "said"),
    [
        (FOUR, [[1, 0, 0, 0], [0, 0, 0, 0]], "expected a legal action, marked by 1, got 4 zeros"),
        (UNEVEN, [[1, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1]], "a legal action for choice 1, marked by 1, got 3"),
    ],
)
def test_a_row_that_may_do_nothing_is_named(action, masks, said):
    masks = np.array(masks)
    for dtype in (bool, np.int8, np.float32):
        check_mask(masks[:1].astype(dtype), Actions(spec_of(action)))
        with pytest.raises(BadLeaf) as caught:
            check_mask(masks.astype(dtype), Actions(spec_of(action)))
        assert (caught.value.code, caught.value.row, caught.value.leaf) == ("E107", 1, 'obs["action_mask"]')
        assert said in str(caught.value)


def test_a_row_that_may_do_nothing_is_no_action_of_either_network():
    both = pair(FOUR, observation=BOX, action_mask=bits(4))
    nets, flat = networks(both)
    weights = Weights(1, flat[: nets.actor_size], nets.normalizer)
    column = collect(both.observation, masks_and_rows(np.int8, [[1, 1, 1, 1], [0, 0, 0, 0]]))
    state = nets.policy.export(weights)
    for act in (
        lambda: nets.policy.act(nets.policy.load(weights), column, None, None),
        lambda: Network(state["network"], state["arrays"]).act(column, None),
    ):
        with pytest.raises(BadLeaf, match=r"E107.*row 1"):
            act()


# --- what the critic alone sees ---------------------------------------------------------------------------


THREE = pair(FOUR, observation=BOX, action_mask=spaces.Box(0, 1, (4,), np.int64), state=STATE)


def three(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(n, 2)).astype(np.float32),
        "action_mask": np.tile([1, 0, 1, 1], (n, 1)),
        "state": (10 * rng.normal(size=(n, 3))).astype(np.float32),
    }


def test_acting_does_not_depend_on_it_and_the_value_does():
    nets, flat = networks(THREE, critic_only=["state"])
    column = three()
    stats = norm_merge(nets.seen, nets.normalizer, column, np.ones(4, bool))
    actor, own = published(nets, flat, stats)
    weights = nets.policy.load(Weights(1, actor, own))
    other = {**column, "state": column["state"] + 7}
    hidden = {key: column[key] for key in ("observation", "action_mask")}
    noise = np.full((4, 1), 0.4, np.float32)
    decisions = [nets.policy.act(weights, obs, None, noise) for obs in (column, other, hidden)]
    assert all(np.array_equal(decisions[0].logp, d.logp) for d in decisions)
    model = nets.layout.unravel(jnp.asarray(flat))
    values = [jax.vmap(model.value)(normalize(nets.seen, stats, obs)) for obs in (column, other)]
    assert np.abs(values[0] - values[1]).min() > 1e-4
    logits = jax.vmap(model.actor)(normalize(nets.seen, stats, column))
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(4), decisions[0].action]
    np.testing.assert_allclose(decisions[0].logp, expected, rtol=1e-5, atol=1e-5)


def test_the_actor_is_published_with_its_own_statistics_alone():
    nets, flat = networks(THREE, critic_only=["state"])
    stats = norm_merge(nets.seen, nets.normalizer, three(), np.ones(4, bool))
    assert [a.shape for a in nets.normalizer] == [(), (2,), (2,), (), (3,), (3,)]
    actor, own = published(nets, flat, stats)
    assert [a.shape for a in own] == [(), (2,), (2,)]
    assert all(np.array_equal(a, b) for a, b in zip(own, stats[:3], strict=True))
    assert np.array_equal(actor, flat[: nets.actor_size])
    plain, params = networks(pair(FOUR, observation=BOX, action_mask=bits(4)))
    assert plain.actor_size == nets.actor_size, "nothing of the state is in the actor"
    assert len(published(plain, params, plain.normalizer)[1]) == len(plain.normalizer) == 3


def test_the_first_key_may_be_hidden_too():
    """Statistics stand in the order of the keys, so that the actor's need not be the first ones."""
    nets, flat = networks(pair(FOUR, a=STATE, b=BOX), critic_only=["a"])
    stats = [np.full_like(a, i) for i, a in enumerate(nets.normalizer)]
    assert [float(np.ravel(a)[0]) for a in published(nets, flat, stats)[1]] == [3, 4, 5]
    assert networks(pair(FOUR, a=STATE, b=BOX), critic_only=["a"], normalize=False)[0].normalizer == ()


def test_the_export_knows_nothing_of_it_and_takes_observations_that_have_it():
    nets, flat = networks(THREE, critic_only=["state"])
    column = three()
    stats = norm_merge(nets.seen, nets.normalizer, column, np.ones(4, bool))
    weights = Weights(1, *published(nets, flat, stats))
    state = nets.policy.export(weights)
    assert "state" not in json.dumps(state["network"]["observation"])
    assert not any("state" in name for name in state["arrays"])
    network = Network(json.loads(json.dumps(state["network"])), state["arrays"])
    rows = [{key: part[i] for key, part in column.items()} for i in range(4)]
    with_it, without_it = network.column(rows), network.column(shown(rows, ["state"]))
    assert with_it.keys() == without_it.keys() == {"observation", "action_mask"}
    noise = np.full((4, 1), 0.4, np.float32)
    decision = nets.policy.act(nets.policy.load(weights), column, None, noise)
    assert network.act(with_it, noise)[0].tolist() == nets.policy.to_env(decision.action).tolist()
    with pytest.raises(BadLeaf, match=r"E105.*unknown 'else'"):
        network.column([{**rows[0], "else": 1}])


def test_a_network_of_before_there_were_masks_acts():
    nets, flat = networks(SpacePair(spec_of(BOX), spec_of(FOUR)))
    state = nets.policy.export(Weights(1, flat[: nets.actor_size], nets.normalizer))
    old = {key: value for key, value in state["network"].items() if key not in ("masked", "critic_only")}
    column = np.ones((2, 2), np.float32)
    found = [Network(d, state["arrays"]).params(column) for d in (old, state["network"])]
    assert np.array_equal(*found)
