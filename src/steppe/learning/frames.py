"""Stacked observations of a batch of lanes: what networks saw of each row as they acted on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steppe.models.framestack import Frames
from steppe.types import Tree


def along_lanes(frames: Frames, batch: Mapping[str, Any]) -> Tree:
    """What networks see of the observations of a batch, ``(rows, lanes, ...)``.

    Each row's stack is gathered from the rows above it, down from the first one of its trajectory, and what
    lies above row 0 from the state that the lane was met with.

    Args:
        frames: how observations are stacked.
        batch: columns of ``(rows, lanes, ...)``: obs, terminated, truncated; and ``state0`` of
            ``(lanes, ...)``, with ``frames`` and ``seen`` of :class:`~steppe.policies.frames.FramesPolicy`.
    """
    past, state0 = frames.depth - 1, batch["state0"]
    final = batch["terminated"] | batch["truncated"]
    rows = np.arange(len(final))[:, None]
    begun = jnp.where(state0["seen"] > 0, -past, 0)[None]
    first = jnp.concatenate([begun, jnp.where(final[:-1], rows[1:], -past)])
    first = jax.lax.cummax(first, axis=0)
    index = jnp.maximum(rows[..., None] + np.arange(-past, 1), first[..., None]) + past
    stacks = []
    for before, now in zip(state0["frames"], frames.boxes(batch["obs"]), strict=True):
        whole = jnp.concatenate([jnp.moveaxis(jnp.asarray(before, now.dtype), 1, 0), now])
        # Lane by lane, so that lanes on different devices stay there.
        stacks.append(jax.vmap(lambda lane, at: lane[at], in_axes=1, out_axes=1)(whole, index))
    return frames.seen(batch["obs"], tuple(stacks))
