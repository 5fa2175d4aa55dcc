"""Action values of those who remember: a cell between the hidden layers and what is made of them.

What is here is for learners that draw sequences (:class:`~steppe.buffers.sequences.Sequences`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.distributions import Distribution
from steppe.models.memory import Memory, Torso, make_torso
from steppe.models.mlp import MLP
from steppe.models.q_network import QNetwork, make_q_network
from steppe.spaces import BoxSpec, DiscreteSpec, Spec
from steppe.types import Tree


@final
class MemoryQ(eqx.Module):
    """Values of all actions, of one observation and what is remembered.

    Attributes:
        torso: to features.
        out: its streams make values of them.
    """

    torso: Torso
    out: QNetwork

    def __call__(
        self, obs: Tree, state: Mapping[str, Any], noise: jax.Array | None = None
    ) -> tuple[jax.Array, Tree]:
        """``(actions, atoms)`` as :class:`~steppe.models.q_network.QNetwork`, and what is then remembered.

        Args:
            obs: one observation.
            state: ``memory``, and ``action`` and ``reward`` where they are asked for.
            noise: of the noisy layers.
        """
        y, memory = self.torso.cell(self.torso.inputs(obs, state), state["memory"])
        return self.out.head(y, obs, noise), memory

    def sequences(self, rows: Mapping[str, Any], burn_in: int, noise: jax.Array | None = None) -> jax.Array:
        """``(s, l, actions, atoms)`` of ``s`` sequences; see :func:`features`."""
        y = features(self.torso, rows, rows["state"]["memory"], burn_in)
        head = jax.vmap(jax.vmap(self.out.head, (0, 0, None)), (0, 0, None))
        return head(y, rows["obs"], noise)

    def describe(self) -> dict[str, Any]:
        """All but its arrays as JSON values; :mod:`steppe.models.numpy_forward` reads it."""
        return {**self.out.describe(), "torso": self.torso.describe()}


@final
class MemoryValue(eqx.Module):
    """Values of the action that comes along or, where none does, of every choice.

    Attributes:
        torso: to features.
        mlp: to values, of features and the action behind them.
    """

    torso: Torso
    mlp: MLP


def make_memory_values(
    spec: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Memory,
    inputs: int,
    outputs: int,
    count: int,
    layers: tuple[Any, ...],
) -> MemoryValue:
    """Draw some networks of the same form, as :func:`~steppe.models.action_values.make_action_values` does.

    Args:
        spec: what they see of an observation.
        distribution: of the actions.
        rng: source of the initial parameters.
        memory: what is remembered.
        inputs: elements of an action that comes along.
        outputs: values that each gives: 1, or one a choice.
        count: how many networks.
        layers: the last arguments of :func:`~steppe.models.memory.make_torso`.
    """

    def one() -> MemoryValue:
        torso = make_torso(spec, distribution, rng, memory, *layers)
        return MemoryValue(torso, MLP((memory.size + inputs, outputs), "linear", rng, 1.0))

    networks = [one() for _ in range(count)]
    arrays = zip(*map(jax.tree.leaves, networks), strict=True)
    stacked: MemoryValue = jax.tree.unflatten(jax.tree.structure(networks[0]), map(np.stack, arrays))
    return stacked


def features(torso: Torso, rows: Mapping[str, Any], memory: Tree, burn_in: int) -> jax.Array:
    """What a torso makes of sequences.

    Args:
        torso: with a cell.
        rows: columns of ``(s, l, ...)``: obs, action, ``earned``, ``fresh``; and ``state`` of ``(s, ...)``.
        memory: of ``(s, ...)``, that the first rows are met with.
        burn_in: rows that bring it up to date; no gradient comes back through what is then remembered.

    Returns:
        ``(s, l, size)``.
    """
    steps = {"obs": rows["obs"], "fresh": rows["fresh"], "before": before(rows)}
    if not burn_in:
        return torso.sequences(steps, memory)[0]
    first, met = torso.sequences(jax.tree.map(lambda a: a[:, : burn_in + 1], steps), memory)
    memory = jax.lax.stop_gradient(jax.tree.map(lambda a: a[:, burn_in], met))
    rest, _ = torso.sequences(jax.tree.map(lambda a: a[:, burn_in:], steps), memory)
    return jnp.concatenate([first[:, :burn_in], rest], axis=1)


def before(rows: Mapping[str, Any]) -> dict[str, Tree]:
    """What the cell is told of the row before each, as far as acting was: ``action`` and ``reward``."""
    told, state = {"reward": rows["earned"]}, rows["state"]
    if "action" in state:
        told["action"] = jax.tree.map(
            lambda first, a: jnp.concatenate([first[:, None], a[:, :-1]], axis=1),
            state["action"],
            rows["action"],
        )
    return {name: told[name] for name in ("action", "reward") if name in state}


def make_memory_q(
    spec: Spec,
    actions: DiscreteSpec,
    rng: np.random.Generator,
    memory: Memory,
    *,
    hiddens: Sequence[int] = (64, 64),
    activation: str = "relu",
    conv_filters: Sequence[Sequence[int]] | None = None,
    encoder: Callable[..., Any] | None = None,
    **head: Any,
) -> MemoryQ:
    """Draw a network.

    Args:
        spec: what it sees of an observation.
        actions: the action space.
        rng: source of the initial parameters.
        memory: what is remembered.
        hiddens: widths of the layers between encoder and cell.
        activation: after each of them.
        conv_filters: ``[channels, kernel, stride]`` a layer, for images; chosen by size if None.
        encoder: makes one of the user's own.
        head: further arguments of :func:`~steppe.models.q_network.make_q_network`.
    """
    layers = hiddens, activation, conv_filters, encoder
    torso = make_torso(spec, Distribution(actions), rng, memory, *layers)
    limits = np.full(memory.size, np.inf)
    seen = BoxSpec((memory.size,), np.dtype(np.float32), -limits, limits)
    return MemoryQ(
        torso, make_q_network(seen, int(actions.n), rng, hiddens=(), activation=activation, **head)
    )
