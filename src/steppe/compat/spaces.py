"""RLlib's own spaces, as spaces of Gymnasium's."""

from __future__ import annotations

from typing import Any, final

from gymnasium import spaces


@final
class Repeated(spaces.Sequence):
    """Up to ``max_len`` values of one space: a Sequence that says how long it gets.

    Args:
        child_space: of each value.
        max_len: most values.
    """

    def __init__(self, child_space: spaces.Space[Any], max_len: int) -> None:
        super().__init__(child_space)
        self.child_space, self.max_len, self.max_length = child_space, max_len, max_len

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """As a list, of which programs for RLlib know it to be, of any length up to the longest."""
        count = int(self.np_random.integers(1, self.max_len + 1))
        return [self.child_space.sample() for _ in range(count)]

    def contains(self, x: Any) -> bool:
        """A list or tuple that is not too long."""
        within = isinstance(x, list | tuple) and len(x) <= self.max_len
        return within and all(self.child_space.contains(item) for item in x)
