"""The networks of learners whose critics judge actions: an actor, and several critics side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steppe.errors import ConfigError
from steppe.learning.walks import judged
from steppe.models.action_values import action_inputs, make_action_values
from steppe.models.actions import Numbers
from steppe.models.before import Memory
from steppe.models.catalog import Actor, make_actor
from steppe.models.distributions import Distribution
from steppe.models.observations import Sight, norm_init
from steppe.models.sight import sight_of
from steppe.policies.actor_critic import ActorCriticPolicy, Layout
from steppe.spaces import DiscreteSpec, Spec, summary
from steppe.types import Array, FloatArray, SpacePair, Tree

UNUSED = (
    "critic_only",
    "share",
    "extra_loss",
    "vf_share_layers",
    "action_embeddings",
    "autoregressive_actions",
)
"""Settings that mean nothing here."""


class Structure(NamedTuple):
    """The form of actor and critics; hashable.

    Attributes:
        seen: what networks see of an observation: all but a mask of the actions.
        distribution: of the actions.
        actor: layout of the actor in a flat vector.
        critics: likewise, of all critics.
    """

    seen: Spec
    distribution: Distribution
    actor: Layout
    critics: Layout

    def values(self, critics: Any, obs: Tree, action: Tree) -> jax.Array:
        """What each critic makes of the actions that were taken: ``(critics, n)``.

        Observations may be a :class:`~steppe.learning.walks.Walk`.
        """
        values = judged(critics, obs, action_inputs(self.distribution.actions, action))
        if not isinstance(self.distribution.spec, DiscreteSpec):
            return values[..., 0]
        return jnp.where(action[:, None] == np.arange(values.shape[-1]), values, 0.0).sum(-1)


class Networks(NamedTuple):
    """Before training.

    Attributes:
        structure: their form.
        policy: acts with the actor.
        actor: its parameters, flat.
        critics: theirs.
        normalizer: observation statistics of no rows; empty when observations are left alone.
    """

    structure: Structure
    policy: Any
    actor: FloatArray
    critics: FloatArray
    normalizer: tuple[Array, ...]

    @property
    def trees(self) -> tuple[Any, Any]:
        """Actor and critics as modules."""
        return self.structure.actor.unravel(self.actor), self.structure.critics.unravel(self.critics)


def make_action_networks(
    pair: SpacePair,
    rng: np.random.Generator,
    *,
    algorithm: str,
    unused: Sequence[str],
    discrete: bool,
    count: int,
    normalize: bool,
    hiddens: Sequence[int],
    activation: str,
    conv_filters: Sequence[Sequence[int]] | None,
    encoder: Callable[..., Any] | None = None,
    log_std: float | None = None,
    memory: Sequence[Any] | None = None,
) -> Networks:
    """Draw an actor and critics of actions; Boxes are squashed to their bounds.

    Args:
        pair: observation and action spaces.
        rng: source of the parameters.
        algorithm: its name, for messages.
        unused: settings that it has no use for, as they were written.
        discrete: whether it can do with Discrete actions, too.
        count: how many critics.
        normalize: keep observation statistics.
        hiddens: widths of the hidden layers, of actor and critics alike.
        activation: after each hidden layer.
        conv_filters: of images; chosen by size if None.
        encoder: makes one of the user's own, for actor and critics each.
        log_std: of the actions, the same for all; the actor's own, for every observation, if None.
        memory: what :class:`~steppe.models.before.Memory` is made of; None for none.

    Raises:
        ConfigError: actions that the algorithm cannot learn, or an unused setting.
    """
    if unused:
        raise ConfigError(f"{unused[0]} has no meaning for {algorithm}; leave it out, or use PPOConfig")
    sight = sight_of(pair, (), False)
    distribution = Distribution(pair.action, squash=True)
    choices = isinstance(pair.action, DiscreteSpec)
    boxes = [leaf for leaf in distribution.actions.leaves if isinstance(leaf, Numbers)]
    bounded = all(leaf.squashed.all() for leaf in boxes)
    if not (choices and discrete) and not (bounded and len(boxes) == len(distribution.actions.leaves)):
        can = "Boxes with finite bounds" + (" or a Discrete" if discrete else "")
        other = "DQNConfig or PPOConfig" if choices else "PPOConfig"
        raise ConfigError(
            f"{algorithm} chooses in {can}, and the action space is {summary(pair.action)}; use {other}, "
            f"which can{'' if bounded else ', or give the space bounds'}"
        )
    layers: dict[str, Any] = {"hiddens": hiddens, "activation": activation, "conv_filters": conv_filters}
    layers["encoder"] = encoder
    free = log_std is not None
    head: dict[str, Any] = {"free_log_std": free, "bounded": not free, "initial_log_std": log_std or 0.0}
    head["masked"] = sight.masked
    inputs, outputs = (0, distribution.param_size) if choices else (distribution.noise_size, 1)
    actor: Any
    critics: Any
    if memory is None:
        actor = make_actor(sight.actor, distribution, rng, **head, **layers)
        critics = make_action_values(sight.critic, inputs, outputs, rng, count=count, **layers)
    else:
        actor, critics = _remembering(
            sight, distribution, rng, Memory(*memory), layers, head, (inputs, outputs, count)
        )
    statistics = norm_init(sight.critic) if normalize else ()
    structure = Structure(sight.critic, distribution, Layout.of(actor), Layout.of(critics))
    policy: Any = ActorCriticPolicy(sight, distribution, Layout.of((actor, statistics)))
    if memory is not None:
        from steppe.policies.recurrent import RecurrentPolicy

        policy = RecurrentPolicy(sight, distribution, Layout.of((actor, statistics)), actor)
    return Networks(
        structure, policy, structure.actor.ravel(actor), structure.critics.ravel(critics), statistics
    )


def _remembering(
    sight: Sight,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Memory,
    layers: dict[str, Any],
    head: dict[str, Any],
    sizes: tuple[int, int, int],
) -> tuple[Any, Any]:
    """Actor and critics with a memory each; ``sizes`` are inputs, outputs and count of the critics."""
    from steppe.models.memory import make_memory_actor  # most policies remember nothing
    from steppe.models.q_memory import make_memory_values

    actor = make_memory_actor(sight.actor, distribution, rng, memory, **layers, **head)
    critics = make_memory_values(sight.critic, distribution, rng, memory, *sizes, tuple(layers.values()))
    return actor, critics


def likeliest(structure: Structure, actor: Actor, obs: Tree) -> Tree:
    """The actor's likeliest actions, in policy units."""
    return structure.distribution.mode(jax.vmap(actor)(obs))
