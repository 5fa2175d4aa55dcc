"""Actor-critics that remember: the networks of the catalog with a cell between hidden layers and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.before import Memory as Memory
from steppe.models.before import told, told_size
from steppe.models.catalog import Actor, make_actor
from steppe.models.distributions import Distribution
from steppe.models.encoders import Encoder, make_encoder
from steppe.models.mlp import ACTIVATIONS, MLP
from steppe.models.recurrent import Cell, make_cell
from steppe.spaces import BoxSpec, Spec
from steppe.types import Tree


@final
class Torso(eqx.Module):
    """From an observation and what came before it to features.

    Attributes:
        encoder: observation to vector.
        mlp: the hidden layers, or None where there are none.
        action: distribution of the actions, of which the cell is given the one before; None where not.
        reward: whether the cell is given the reward before.
        cell: what remembers.
    """

    encoder: Encoder
    mlp: MLP | None
    action: Distribution | None = eqx.field(static=True)
    reward: bool = eqx.field(static=True)
    cell: Cell

    def inputs(self, obs: Tree, before: Mapping[str, Any]) -> jax.Array:
        """Input ``(f,)`` of the cell: features of one observation, then the action and the reward before.

        Args:
            obs: one observation.
            before: ``action`` in policy units and ``reward``, where they are asked for.
        """
        x = self.encoder(obs)
        if self.mlp is not None:
            x = ACTIVATIONS[self.mlp.activation](self.mlp(x))
        actions = None if self.action is None else self.action.actions
        return jnp.concatenate([x, *told(jnp, actions, self.reward, before)])

    def sequences(self, rows: Mapping[str, Any], state0: Tree) -> tuple[jax.Array, Tree]:
        """Features ``(s, l, size)`` and the state that each row was met with, of ``s`` runs of ``l`` rows.

        Args:
            rows: obs, ``before`` as of :meth:`inputs`, and ``fresh``: first rows of trajectories.
            state0: ``(s, ...)``, that row 0 of each is met with.
        """
        return self.cell.unrolled(self.columns(rows), state0, rows["fresh"])

    def columns(self, rows: Mapping[str, Any]) -> jax.Array:
        """:meth:`inputs` of ``s`` runs of ``l`` rows, ``(s, l, f)``."""
        x: jax.Array = jax.vmap(jax.vmap(self.inputs))(rows["obs"], rows["before"])
        return x

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""
        return {
            "encoder": self.encoder.describe(),
            "mlp": None if self.mlp is None else self.mlp.describe(),
            "action": self.action is not None,
            "reward": self.reward,
            "cell": self.cell.describe(),
        }


@final
class MemoryActor(eqx.Module):
    """All that acting needs, with a memory.

    Attributes:
        torso: to features.
        out: its head makes distribution parameters of them.
    """

    torso: Torso
    out: Actor

    def __call__(self, obs: Tree, state: Mapping[str, Any]) -> tuple[jax.Array, Tree]:
        """Distribution parameters ``(P,)`` of one observation, and what is remembered from then on.

        Args:
            obs: one observation.
            state: ``memory``, and ``action`` and ``reward`` where they are asked for.
        """
        y, memory = self.torso.cell(self.torso.inputs(obs, state), state["memory"])
        return self.out.head(y, obs), memory

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""
        return {**self.out.describe(), "torso": self.torso.describe()}


@final
class MemoryCritic(eqx.Module):
    """Value of one observation, or of the actor's features where ``torso`` is None."""

    torso: Torso | None
    mlp: MLP

    def value(self, features: jax.Array) -> jax.Array:
        """``(...)`` values of features ``(..., size)``."""
        return self.mlp(features)[..., 0]


@final
class MemoryActorCritic(eqx.Module):
    """Policy and value of rows in their order; each remembers by itself, unless they share their layers."""

    actor: MemoryActor
    critic: MemoryCritic

    def initial(self) -> dict[str, Tree]:
        """What ``actor`` and ``critic`` (if it remembers by itself) are met with in a fresh trajectory."""
        own = self.critic.torso
        critic = {} if own is None else {"critic": own.cell.initial()}
        return {"actor": self.actor.torso.cell.initial(), **critic}

    def sequences(self, rows: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, dict[str, Tree]]:
        """Distribution parameters, values, and the state that each row was met with.

        Args:
            rows: obs, ``before`` and ``fresh`` of ``(s, l, ...)``: runs of consecutive rows; and ``memory``
                of ``(s, ...)``, that row 0 of each is met with.

        Returns:
            ``(s, l, P)``, ``(s, l)``, and trees of ``(s, l, ...)`` as :meth:`initial` has them.
        """
        memory, own = rows["memory"], self.critic.torso
        if own is None:
            y, before = self.actor.torso.sequences(rows, memory["actor"])
            met, features = {"actor": before}, y
        else:
            torsos, states = (self.actor.torso, own), (memory["actor"], memory["critic"])
            (y, features), before = _side_by_side(torsos, rows, states)
            met = dict(zip(("actor", "critic"), before, strict=True))
        params = jax.vmap(jax.vmap(self.actor.out.head))(y, rows["obs"])
        return params, self.critic.value(features), met

    def outputs(self, rows: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """``(params (n, P), values (n,))`` of rows that are sequences, one after the other.

        Args:
            rows: as of :meth:`sequences`, but the first two axes are one.
        """
        s = len(jax.tree.leaves(rows["memory"])[0])
        by_row = {name: rows[name] for name in ("obs", "before", "fresh")}
        split = jax.tree.map(lambda a: a.reshape(s, -1, *a.shape[1:]), by_row)
        params, value, _ = self.sequences({**split, "memory": rows["memory"]})
        return params.reshape(-1, params.shape[-1]), value.reshape(-1)


def _side_by_side(
    torsos: tuple[Torso, Torso], rows: Mapping[str, Any], states: tuple[Tree, Tree]
) -> tuple[tuple[jax.Array, jax.Array], tuple[Tree, Tree]]:
    """Features, and states that rows were met with, of two torsos: of one form, they walk in one scan."""
    columns, cells = [torso.columns(rows) for torso in torsos], [torso.cell for torso in torsos]
    given = list(zip(cells, columns, states, strict=True))
    forms = [jax.tree.map(jnp.shape, one) for one in given]
    if forms[0] != forms[1]:
        (y, met), (features, other) = (cell.unrolled(x, state, rows["fresh"]) for cell, x, state in given)
        return (y, features), (met, other)
    both = jax.tree.map(lambda *pair: jnp.stack(pair), *given)
    found = jax.vmap(lambda one: one[0].unrolled(one[1], one[2], rows["fresh"]))(both)
    (y, features), met = found[0], [jax.tree.map(itemgetter(k), found[1]) for k in range(2)]
    return (y, features), (met[0], met[1])


def make_memory_actor(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Memory,
    *,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "tanh",
    conv_filters: Sequence[Sequence[int]] | None = None,
    encoder: Callable[..., Any] | None = None,
    **head: Any,
) -> MemoryActor:
    """Draw the network that acts.

    Args:
        obs_spec: what it sees.
        distribution: of the actions.
        rng: source of the initial parameters.
        memory: what it remembers.
        hiddens: widths of the layers between encoder and cell.
        activation: after each of them.
        conv_filters: for images.
        encoder: makes one of the user's own.
        head: further arguments of :func:`~steppe.models.catalog.make_actor`.

    Raises:
        ConfigError: see :func:`~steppe.models.catalog.make_actor`.
    """
    torso = make_torso(obs_spec, distribution, rng, memory, hiddens, activation, conv_filters, encoder)
    limits = np.full(memory.size, np.inf)
    features = BoxSpec((memory.size,), np.dtype(np.float32), -limits, limits)
    return MemoryActor(torso, make_actor(features, distribution, rng, hiddens=(), **head))


def make_memory_actor_critic(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Memory,
    *,
    critic_spec: Spec | None = None,
    share_layers: bool = False,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "tanh",
    conv_filters: Sequence[Sequence[int]] | None = None,
    encoder: Callable[..., Any] | None = None,
    **head: Any,
) -> MemoryActorCritic:
    """Draw the networks of an actor-critic that remembers; arguments as of its two halves.

    Args:
        obs_spec: what the policy's network sees.
        distribution: of the actions.
        rng: source of the initial parameters.
        memory: what both remember.
        critic_spec: what the value's network sees; the same if None.
        share_layers: the critic is one layer on the actor's features, memory included.
        hiddens: see :func:`make_memory_actor`.
        activation: likewise.
        conv_filters: likewise.
        encoder: likewise.
        head: likewise.
    """
    layers: dict[str, Any] = {"hiddens": hiddens, "activation": activation, "conv_filters": conv_filters}
    layers["encoder"] = encoder
    actor = make_memory_actor(obs_spec, distribution, rng, memory, **layers, **head)
    own = None
    if not share_layers:
        seen = obs_spec if critic_spec is None else critic_spec
        own = make_torso(seen, distribution, rng, memory, hiddens, activation, conv_filters, encoder)
    return MemoryActorCritic(actor, MemoryCritic(own, MLP((memory.size, 1), activation, rng, 1.0)))


def make_torso(
    obs_spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Memory,
    hiddens: Sequence[int],
    activation: str,
    conv_filters: Sequence[Sequence[int]] | None,
    own: Callable[..., Any] | None,
) -> Torso:
    """Draw encoder, hidden layers and cell; arguments as of :func:`make_memory_actor`."""
    encoder = make_encoder(obs_spec, rng, conv_filters=conv_filters, own=own)
    sizes = (encoder.size, *hiddens)
    mlp = MLP(sizes, activation, rng) if hiddens else None
    action = distribution if memory.prev_action else None
    inputs = sizes[-1] + told_size(None if action is None else action.actions, memory.prev_reward)
    cell = make_cell(memory.kind, inputs, rng, size=memory.size, attention_memory=memory.attention_memory)
    return Torso(encoder, mlp, action, memory.prev_reward, cell)
