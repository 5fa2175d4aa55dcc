"""Versions of the weights that a server keeps: how good each was, rollback, and the guard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from steppe.policies.actors import Actors
from steppe.serving.messages import Refused

_RECENT = 100
"""Episodes that the guard looks at."""
_SOME = 10
"""Episodes that a version needs before its mean says something."""


@dataclass(slots=True)
class _Record:
    episodes: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.episodes if self.episodes else None


@final
class Versions:
    """Which version acts, and how the versions did.

    Args:
        actors: act with them.
        guard: mean reward; once it was reached, the best version that is kept acts when episodes fall below
            it. None: never.

    Attributes:
        newest: version that was published last, by policy.
        frozen: the version that acts until :meth:`release`, or None.
        say: told, loudly, what the guard did.
    """

    def __init__(self, actors: Actors, guard: float | None) -> None:
        self.newest: dict[str, int] = {}
        self.frozen: int | None = None
        self.say: Callable[[str], None] = lambda text: None
        self._actors, self._guard = actors, guard
        self._records: dict[int, _Record] = {}
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._was_good = False

    def published(self, policy: str, version: int) -> None:
        """Note that a version can act."""
        self.newest[policy] = version
        kept = self._kept()
        self._records = {number: self._records.get(number, _Record()) for number in kept}

    def acting(self, policy: str) -> int:
        """The version that acts for a policy."""
        return self._actors.acting[policy]

    def use(self, version: int) -> None:
        """Act with this version until :meth:`release`.

        Raises:
            Refused: it is not kept.
        """
        try:
            self._actors.use(version)
        except LookupError:
            known = ", ".join(map(str, self._kept()))
            raise Refused("unknown_version", f"version {version} is not kept; there are {known}") from None
        self.frozen = version

    def release(self) -> None:
        """Act with the newest version again."""
        self._actors.use(None)
        self.frozen = None
        self._recent.clear()
        self._was_good = False

    def ended(self, version: int, reward: float) -> None:
        """Note what an episode earned, and the version that acted last in it."""
        if (record := self._records.get(version)) is not None:
            record.episodes += 1
            record.total += reward
        self._recent.append(reward)
        if self._guard is not None and self.frozen is None and len(self._recent) == _RECENT:
            self._judge(self._guard, sum(self._recent) / _RECENT)

    def _judge(self, guard: float, mean: float) -> None:
        if mean >= guard:
            self._was_good = True
        elif self._was_good:
            tried = {v: one.mean for v, one in self._records.items() if one.mean is not None}
            sure = {v: mean for v, mean in tried.items() if self._records[v].episodes >= _SOME}
            if best := sure or tried:
                version = max(best, key=lambda v: best[v])
                self.use(version)
                self.say(
                    f"GUARD: the last {_RECENT} episodes earned {mean:.4g} on average, below {guard:.4g}. "
                    f"From now on version {version} acts, which earned {best[version]:.4g}, and nothing "
                    "newer, until `release` (POST /v1/release)"
                )

    def told(self) -> dict[str, Any]:
        """What ``versions`` answers."""
        rows = [
            {"version": version, "episodes": one.episodes, "reward_mean": one.mean}
            for version, one in sorted(self._records.items())
        ]
        acting = max(self._actors.acting.values(), default=0)
        return {"acting": acting, "frozen": self.frozen is not None, "versions": rows}

    def _kept(self) -> list[int]:
        return sorted({number for numbers in self._actors.versions.values() for number in numbers})
