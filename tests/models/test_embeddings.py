"""Choices judged by their descriptions: places mean nothing, numpy does the same, misfits are refused."""

import gymnasium as gym
import jax
import numpy as np
import pytest

from steppe.errors import ConfigError
from steppe.learning.networks import ActorCriticNetworks
from steppe.models.distributions import Distribution
from steppe.models.embeddings import KEY
from steppe.models.numpy_forward import Network
from steppe.models.q_network import make_q_network
from steppe.models.sight import sight_of
from steppe.policies.actor_critic import Layout
from steppe.policies.q import QPolicy
from steppe.spaces import spec_of, zeros
from steppe.types import SpacePair, Weights

spaces = gym.spaces
CHOICES = 5
OBS = {
    "cart": spaces.Box(-1, 1, (3,)),
    "moves": spaces.Box(-np.inf, np.inf, (CHOICES, 2)),
    "action_mask": spaces.MultiBinary(CHOICES),
}


def pair(action=None, **parts):
    action = spaces.Discrete(CHOICES, start=2) if action is None else action
    return SpacePair(spec_of(spaces.Dict(parts or OBS)), spec_of(action))


def seen(n, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((n, CHOICES)) < 0.6
    mask[:, 0] = True
    return {
        "cart": rng.standard_normal((n, 3)).astype(np.float32),
        "moves": rng.standard_normal((n, CHOICES, 2)).astype(np.float32),
        "action_mask": mask.astype(np.int8),
    }


def actor_critic():
    both, rng = pair(), np.random.default_rng(0)
    return ActorCriticNetworks(
        both, Distribution(both.action), rng, normalize=True, embeddings="moves", hiddens=(8,)
    )


def q_policy(atoms):
    both = pair()
    sight = sight_of(both, (), False, "moves")
    support = (-2.0, 3.0, atoms) if atoms > 1 else None
    network = make_q_network(
        sight.actor,
        CHOICES,
        np.random.default_rng(0),
        hiddens=(8,),
        support=support,
        masked=True,
        embeddings=sight.embeddings,
    )
    return QPolicy(sight, both.action, network, Layout.of((network, ()))), network


def test_a_choice_is_worth_the_same_wherever_it_stands():
    model, obs = actor_critic()._model, seen(1)
    one = jax.tree.map(lambda a: a[0], obs)
    order = np.array([3, 1, 4, 0, 2])
    other = {**one, "moves": one["moves"][order], "action_mask": one["action_mask"][order]}
    params, value = model(one)
    moved, same = model(other)
    np.testing.assert_allclose(moved, params[order], rtol=1e-5)
    assert value == same, "descriptions of actions are not what a state is worth"
    q, _ = q_policy(1)[1], None
    np.testing.assert_allclose(q(other)[:, 0], q(one)[order, 0], rtol=1e-4)


def test_descriptions_are_in_no_encoder_and_in_no_statistics():
    nets = actor_critic()
    assert nets._model.actor.encoder.size == nets._model.critic.encoder.size == 3
    assert [stat.shape for stat in nets.normalizer] == [(), (3,), (3,)]
    assert nets._model.actor.mlp.weights[-1].shape == (8, KEY + 1)


def exported(policy, params):
    export = policy.export(Weights(0, np.asarray(params), ()))
    return Network(export["network"], {name: np.asarray(a) for name, a in export["arrays"].items()})


def test_numpy_gives_the_same_scores():
    both = pair()
    nets = ActorCriticNetworks(
        both,
        Distribution(both.action),
        np.random.default_rng(0),
        normalize=False,
        embeddings="moves",
        hiddens=(8,),
    )
    obs = seen(6)
    network = exported(nets.policy, nets.params[: nets.actor_size])
    np.testing.assert_allclose(network.params(obs), jax.vmap(nets._model.actor)(obs), atol=1e-5)
    assert network.params(zeros(network.observation, 2)).shape == (2, CHOICES)


@pytest.mark.parametrize("atoms", [1, 7])
def test_numpy_gives_the_same_values(atoms):
    policy, q = q_policy(atoms)
    obs = seen(6)
    network = exported(policy, Layout.of(q).ravel(q))
    ours = jax.vmap(lambda one: q.legal(q.expected(q(one)), one))(obs)
    np.testing.assert_allclose(network.params(obs), ours, atol=1e-5)
    assert jax.vmap(q)(obs).shape == (6, CHOICES, atoms)


def refusal(both, embeddings="moves", critic_only=()):
    with pytest.raises(ConfigError) as caught:
        sight_of(both, critic_only, False, embeddings)
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_what_would():
    assert "did you mean 'moves'" in refusal(pair(), "move")
    assert "names a key of a Dict observation" in refusal(
        SpacePair(spec_of(OBS["cart"]), spec_of(spaces.Discrete(5)))
    )
    assert "Discrete action space, and this one is Box(2,)" in refusal(pair(spaces.Box(-1, 1, (2,))))
    assert "shape (4, numbers), a row a choice" in refusal(
        pair(spaces.Discrete(4), **dict([*OBS.items()][:2]))
    )
    assert "shape (5, numbers)" in refusal(pair(), "cart")
    assert "'moves' is a description of actions, which acting needs" in refusal(pair(), critic_only=["moves"])
    alone = {name: OBS[name] for name in ("moves", "action_mask")}
    assert "holds a mask of actions and a description of actions, 'moves', and nothing else" in refusal(
        pair(**alone)
    )
