"""The networks of one learned actor-critic policy, and the way from parameters to what runners get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, final

import jax
import numpy as np

from steppe.errors import CheckpointError
from steppe.models.catalog import make_actor_critic
from steppe.models.distributions import Distribution
from steppe.models.observations import Sight, norm_init, normalized_leaves
from steppe.policies.actor_critic import ActorCriticPolicy, Layout
from steppe.spaces import DictSpec, Spec, map_leaves
from steppe.types import Array, FloatArray, SpacePair, Tree

if TYPE_CHECKING:
    from steppe.models.framestack import Frames


@final
class ActorCriticNetworks:
    """Draws the networks and knows their layouts; holds no state that learning changes.

    Attributes:
        policy: what runners act with.
        seen: what networks see of an observation, and statistics are of: all but a mask of the actions.
        layout: of all parameters in one flat vector, first the actor's, then the critic's.
        actor_size: how many of them are the actor's.
        params: the initial parameters.
        normalizer: observation statistics of no rows; empty when observations are left alone.
        published: which of these arrays acting needs.
        length: of the sequences that they learn from; 0 without a memory.
        frames: how observations are stacked; None where they are not.
        remembered: what a critic that remembers by itself knows of no lane: ``(0, ...)``.

    Args:
        pair: observation and action spaces.
        distribution: of the actions.
        rng: source of the initial parameters.
        normalize: keep observation statistics.
        critic_only: keys of a Dict observation that the critic sees and acting does not.
        embeddings: the one that describes the choices.
        memory: what :class:`~steppe.models.before.Memory` is made of; None for none.
        framestack: observations that networks see together.
        model: further arguments of :func:`~steppe.models.catalog.make_actor_critic`, and ``whole``: makes a
            network of the user's own instead.

    Raises:
        ConfigError: see :func:`~steppe.models.sight.sight_of`.
    """

    def __init__(
        self,
        pair: SpacePair,
        distribution: Distribution,
        rng: np.random.Generator,
        *,
        normalize: bool,
        critic_only: Sequence[str] = (),
        embeddings: str | None = None,
        memory: Sequence[Any] | None = None,
        framestack: int = 1,
        **model: Any,
    ) -> None:
        self.frames: Frames | None = None
        if framestack > 1:
            from steppe.models.framestack import framed  # most see one observation at a time

            self.frames, pair = framed(pair, framestack, *critic_only, *filter(None, [embeddings]))
        whole = pair.observation
        sight = Sight(whole, whole, whole, whole)
        if critic_only or embeddings or isinstance(whole, DictSpec):
            from steppe.models.sight import sight_of  # most runs see all of it

            sight = sight_of(pair, critic_only, model.get("share_layers", False), embeddings)
        seen: dict[str, Any] = {"critic_spec": sight.critic, "masked": sight.masked}
        if sight.embeddings is not None:
            seen["embeddings"] = sight.embeddings
        self._model, self.remembered = _drawn(sight.actor, distribution, rng, memory, {**seen, **model})
        self.seen: Spec = sight.critic
        self.normalizer: tuple[Array, ...] = norm_init(self.seen) if normalize else ()
        acting = normalized_leaves(sight.actor)
        places = [i for i, path in enumerate(normalized_leaves(self.seen)) if path in acting]
        self.published = [3 * i + j for i in places for j in range(3)] if normalize else []
        self.layout, self._actor = Layout.of(self._model), Layout.of(self._model.actor)
        self.params = self.layout.ravel(self._model)
        layout = Layout.of((self._model.actor, tuple(self.normalizer[i] for i in self.published)))
        self.length: int = 0 if memory is None else memory[-1]
        self.policy: Any = ActorCriticPolicy(sight, distribution, layout)
        if memory is not None:
            from steppe.policies.recurrent import RecurrentPolicy

            self.policy = RecurrentPolicy(sight, distribution, layout, self._model.actor)
        if self.frames is not None:
            from steppe.policies.frames import FramesPolicy

            self.policy = FramesPolicy(self.policy, self.frames, critic_only)
        self.actor_size = self._actor.size
        assert np.array_equal(self.params[: self.actor_size], self._actor.ravel(self._model.actor))

    def summary(self) -> str:
        """Parameter counts and layers."""
        return f"{self.layout.size} parameters, {self._actor.size} of them act\n{self._model}"


def _drawn(
    seen: Spec,
    distribution: Distribution,
    rng: np.random.Generator,
    memory: Sequence[Any] | None,
    model: dict[str, Any],
) -> tuple[Any, Tree]:
    """The networks, and what their critic knows of no lane."""
    if (whole := model.pop("whole", None)) is not None:
        from steppe.models.whole import make_whole

        return make_whole(whole, seen, distribution, rng, memory=memory, **model), ()
    if memory is None:
        return make_actor_critic(seen, distribution, rng, **model), ()
    from steppe.models.memory import Memory, make_memory_actor_critic  # most policies remember nothing

    drawn = make_memory_actor_critic(seen, distribution, rng, Memory(*memory), **model)
    nothing = drawn.initial().get("critic", ())
    return drawn, map_leaves(lambda a: np.zeros((0, *a.shape), a.dtype), nothing)


def arrays_of(tree: Any) -> list[FloatArray]:
    """The arrays of a learner's state, for a checkpoint."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


T = TypeVar("T")


def refilled(tree: T, arrays: Sequence[Array], *, ragged: int = 0) -> T:
    """``tree`` with other arrays in its places.

    Args:
        tree: a state of the same architecture.
        arrays: from :func:`arrays_of`.
        ragged: how many of the last arrays may have any shape.

    Raises:
        CheckpointError: the shapes differ.
    """
    own, treedef = jax.tree.flatten(tree)
    fixed = len(own) - ragged
    here, there = ([np.shape(a) for a in leaves[:fixed]] for leaves in (own, arrays))
    if len(own) != len(arrays) or here != there:
        raise CheckpointError(
            f"the checkpoint's arrays, of shapes {there}, do not fit this network's {here}; "
            "build with the settings that it was trained with"
        )
    filled: T = jax.tree.unflatten(treedef, arrays)
    return filled
