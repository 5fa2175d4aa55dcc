"""Cells in numpy alone; each class mirrors one in :mod:`steppe.models.recurrent` or ``attention``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

import numpy as np

from steppe.types import Array, FloatArray, Tree

_GATE_BIAS, _EPSILON = 2.0, 1e-5


class Cell(ABC):
    """What is remembered from row to row, of ``n`` trajectories at once."""

    @abstractmethod
    def initial(self) -> Tree:
        """Zeros for one fresh trajectory, without a leading axis."""

    @abstractmethod
    def step(self, x: FloatArray, state: Tree) -> tuple[FloatArray, Tree]:
        """Inputs ``(n, f)`` and states to outputs ``(n, size)`` and the next states."""


@final
class _LSTM(Cell):
    def __init__(self, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
        self._arrays, self._size = arrays, description["size"]

    def initial(self) -> Tree:
        return {"c": np.zeros(self._size, np.float32), "h": np.zeros(self._size, np.float32)}

    def step(self, x: FloatArray, state: Tree) -> tuple[FloatArray, Tree]:
        own = self._arrays
        gates = x @ own["inputs"] + own["bias"] + state["h"] @ own["weights"]
        take, keep, new, show = np.split(gates, 4, axis=1)
        c = _sigmoid(keep) * state["c"] + _sigmoid(take) * np.tanh(new)
        h = _sigmoid(show) * np.tanh(c)
        return h, {"c": c, "h": h}


@final
class _GRU(Cell):
    def __init__(self, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
        self._arrays, self._size = arrays, description["size"]

    def initial(self) -> Tree:
        return {"h": np.zeros(self._size, np.float32)}

    def step(self, x: FloatArray, state: Tree) -> tuple[FloatArray, Tree]:
        own = self._arrays
        reset_x, keep_x, new_x = np.split(x @ own["inputs"] + own["bias"], 3, axis=1)
        reset_h, keep_h, new_h = np.split(state["h"] @ own["weights"], 3, axis=1)
        keep = _sigmoid(keep_x + keep_h)
        new = np.tanh(new_x + _sigmoid(reset_x + reset_h) * (new_h + own["inner"]))
        h = (1.0 - keep) * new + keep * state["h"]
        return h, {"h": h}


@final
class _Attention(Cell):
    def __init__(self, arrays: Mapping[str, Array], description: Mapping[str, Any]) -> None:
        self._arrays, self._size, self._memory = arrays, description["size"], description["memory"]

    def initial(self) -> Tree:
        inputs = np.zeros((self._memory, self._size), np.float32)
        return {"inputs": inputs, "seen": np.zeros((), np.float32)}

    def step(self, x: FloatArray, state: Tree) -> tuple[FloatArray, Tree]:
        own, n, m = self._arrays, len(x), self._memory
        heads, _, width = own["age"].shape
        embedded = x @ own["embedding"]
        seen = _normed(embedded)
        inputs = np.concatenate([state["inputs"], seen[:, None]], axis=1)
        query = (seen @ own["query"]).reshape(n, heads, width) + own["start"]
        keys, values = ((inputs @ own[name]).reshape(n, m + 1, heads, width) for name in ("key", "value"))
        scores = np.einsum("nhw,nmhw->nhm", query, keys) + np.einsum("nhw,hmw->nhm", query, own["age"])
        there = np.arange(m + 1) >= m - state["seen"][:, None]
        scores = np.where(there[:, None], scores / np.float32(width**0.5), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found = np.einsum("nhm,nmhw->nhw", weights, values).reshape(n, -1)
        x = self._gated(0, embedded, np.maximum(found @ own["output"], 0.0))
        y = np.maximum(_normed(x) @ own["dense.0"], 0.0) @ own["dense.1"]
        after = {"inputs": inputs[:, 1:], "seen": np.minimum(state["seen"] + 1.0, m).astype(np.float32)}
        return self._gated(1, x, np.maximum(y, 0.0)), after

    def _gated(self, gate: int, x: FloatArray, y: FloatArray) -> FloatArray:
        new, old, candidate = (self._arrays[f"gates.{gate}.{name}"] for name in ("new", "old", "candidate"))
        reset_y, update_y, new_y = np.split(y @ new, 3, axis=1)
        reset_x, update_x = np.split(x @ old, 2, axis=1)
        update = _sigmoid(update_y + update_x - _GATE_BIAS)
        made: FloatArray = (1.0 - update) * x
        return made + update * np.tanh(new_y + (_sigmoid(reset_y + reset_x) * x) @ candidate)


def cell_of(description: Mapping[str, Any], name: str, arrays: Mapping[str, Array]) -> Cell:
    """The cell that is described, of the arrays whose names begin with ``name``.

    Raises:
        LookupError: there is no such kind.
    """
    own = {key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")}
    kinds: dict[str, type[_LSTM | _GRU | _Attention]] = {"lstm": _LSTM, "gru": _GRU, "attention": _Attention}
    return kinds[description["kind"]](own, description)


def _sigmoid(x: FloatArray) -> FloatArray:
    half: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * x)
    return half


def _normed(x: FloatArray) -> FloatArray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    normed: FloatArray = (x - mean) / np.sqrt(variance + np.float32(_EPSILON))
    return normed
