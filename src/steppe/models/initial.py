"""Initial weights, drawn with numpy: op by op in JAX they would cost seconds of compilation."""

from __future__ import annotations

import numpy as np

from steppe.types import FloatArray

HIDDEN_GAIN = 2.0**0.5
"""Scale of orthogonal hidden layers: keeps the variance of rectified features."""


def orthogonal(rng: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> FloatArray:
    """A ``(rows, columns)`` matrix whose shorter side is orthonormal, times ``gain`` (Saxe et al., 2014)."""
    long, short = max(rows, columns), min(rows, columns)
    normal = rng.standard_normal((long, short))
    if long >= 2 * short:
        # Well conditioned, so Cholesky gives the same factor as QR, in far less time (large dense layers).
        q = normal @ np.linalg.inv(np.linalg.cholesky(normal.T @ normal)).T
    else:
        q, r = np.linalg.qr(normal)
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # without the signs QR does not draw uniformly
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), dtype=np.float32)
