"""Mirrors ``gym.utils.seeding``: generators with the methods and the plain numbers of old ones."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from steppe.errors import ConfigError
from steppe.seeding import fresh_seed


@final
class OldRandom(np.random.RandomState):
    """numpy's ``RandomState``, whose ``choice`` gives a Python number where it draws one.

    All its other methods do already. Numpy's own numbers are printed as ``np.int64(3)`` since numpy 2, which
    old programs do not expect. ``integers`` is what gym 0.22 and later call ``randint``.
    """

    def choice(self, *args: Any, **kwargs: Any) -> Any:
        """One of a list or of ``range(n)``, or an array of them; arguments as numpy's."""
        drawn = super().choice(*args, **kwargs)
        return drawn.item() if isinstance(drawn, np.generic) else drawn

    integers = np.random.RandomState.randint

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies stay of this class; numpy's own way makes them plain."""
        return OldRandom, (), self.get_state(legacy=False)


def np_random(seed: int | None = None) -> tuple[OldRandom, int]:
    """A generator, and the seed that it got: a fresh one if ``seed`` is None.

    Raises:
        ConfigError: the seed is no whole number, or negative.
    """
    seed = fresh_seed() if seed is None else seed
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"np_random: the seed is a whole number, at least 0, or None; not {seed!r}")
    words = np.random.SeedSequence(int(seed)).generate_state(8)
    return OldRandom(words), int(seed)
