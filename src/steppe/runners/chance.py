"""The global generators of a program, lent to one runner at a time."""

from __future__ import annotations

import random
from typing import Any, final

import numpy as np

from steppe.types import State


@final
class GlobalChance:
    """The global generators of ``random`` and numpy, as one runner's mapping functions find them.

    Within it they are the runner's own, seeded from the run's tree; afterwards they are as they were before.

    Args:
        rng: seeds them.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        words = rng.integers(1 << 32, size=2).tolist()
        self._own: tuple[Any, Any] = (
            random.Random(words[0]).getstate(),
            np.random.RandomState(words[1]).get_state(),
        )

    def __enter__(self) -> None:
        self._before = self._swapped(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = self._swapped(self._before)

    @staticmethod
    def _swapped(new: tuple[Any, Any]) -> tuple[Any, Any]:
        """Install these states; returns those of before."""
        before = random.getstate(), np.random.get_state()
        random.setstate(new[0])
        np.random.set_state(new[1])
        return before

    def get_state(self) -> State:
        """Both generators."""
        (version, words, gauss), (name, keys, *rest) = self._own
        return {"random": [version, list(words), gauss], "numpy": [name, keys, *rest]}

    def set_state(self, state: State) -> None:
        """Go on from :meth:`get_state`."""
        version, words, gauss = state["random"]
        self._own = (version, tuple(words), gauss), tuple(state["numpy"])
