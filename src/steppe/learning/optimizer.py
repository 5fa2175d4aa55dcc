"""Adam on one flat vector of parameters, behind a bound on the gradient's norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from steppe.types import FloatArray


def clipped_adam(grad_clip: float | None, epsilon: float = 1e-5) -> optax.GradientTransformation:
    """Gradients clipped by their global norm, then Adam (Kingma & Ba, 2015).

    The result is to be multiplied by the negative learning rate, which may change from step to step.
    """
    clip = optax.identity() if grad_clip is None else optax.clip_by_global_norm(grad_clip)
    return optax.chain(clip, optax.scale_by_adam(eps=epsilon))


def clipped_adam_init(params: FloatArray) -> Any:
    """Its state before the first step, in numpy: op by op in JAX this would compile."""
    zero = np.zeros_like(params)
    return (optax.EmptyState(), optax.ScaleByAdamState(count=np.zeros((), np.int32), mu=zero, nu=zero))
