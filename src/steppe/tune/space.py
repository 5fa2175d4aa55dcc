"""What a search may choose for one setting, in Python and as text: ``loguniform(1e-5, 1e-2)``."""

from __future__ import annotations

import ast
import difflib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from steppe.errors import ConfigError

if TYPE_CHECKING:
    import optuna


@final
@dataclass(frozen=True)
class Choice:
    """One of several plain values. Made by :func:`choice`."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """The value of a trial."""
        texts = [json.dumps(value) for value in self.values]  # Optuna keeps no lists
        return self.values[texts.index(trial.suggest_categorical(name, texts))]

    def draw(self, rng: random.Random) -> Any:
        """A value by chance."""
        return rng.choice(self.values)

    def nearest(self, value: Any) -> Any:
        """The value itself."""
        return value

    def ends(self) -> tuple[Any, ...]:
        """Values that must all be legal."""
        return self.values

    def __str__(self) -> str:
        return f"choice({', '.join(map(repr, self.values))})"


@final
@dataclass(frozen=True)
class Range:
    """Numbers between two others. Made by :func:`uniform` and its kin.

    Attributes:
        low: least number.
        high: of whole numbers the first that is too large, else the greatest.
        log: each order of magnitude is as likely as the others.
        whole: whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """The value of a trial."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high) - 1, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def draw(self, rng: random.Random) -> float:
        """A value by chance."""
        if self.log:
            return self.nearest(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return (
            rng.randrange(int(self.low), int(self.high)) if self.whole else rng.uniform(self.low, self.high)
        )

    def nearest(self, value: float) -> float:
        """The value that may be chosen and is next to ``value``; of whole numbers the one below."""
        low, high = self.ends()
        inside = min(max(value, low), high)
        return int(inside) if self.whole else inside

    def ends(self) -> tuple[Any, ...]:
        """Values that must all be legal."""
        return (self.low, self.high - 1) if self.whole else (self.low, self.high)

    def __str__(self) -> str:
        return f"{_NAMES[self.log, self.whole]}({self.low!r}, {self.high!r})"


Domain: TypeAlias = Choice | Range
"""What a search may choose for one setting."""

_NAMES = {
    (False, False): "uniform",
    (True, False): "loguniform",
    (False, True): "randint",
    (True, True): "lograndint",
}


def choice(*values: Any) -> Domain:
    """One of ``values``, which are plain: numbers, text, True, False, None, and lists or dicts of them.

    Raises:
        ConfigError: no value, one twice, or one that a file cannot hold.
    """
    if not values:
        raise ConfigError("choice() needs values to choose from: choice(0.95, 0.99)")
    try:
        texts = [json.dumps(value, allow_nan=False) for value in values]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"choice{values!r:.80}: {error}; give plain values here, or a function of the trial as params"
        ) from None
    for text in texts:
        if texts.count(text) > 1:
            raise ConfigError(f"choice{values!r:.80} has {text} twice; keep one")
    return Choice(values)


def uniform(low: float, high: float) -> Domain:
    """Numbers from ``low`` to ``high``, all equally likely."""
    return _range("uniform", low, high)


def loguniform(low: float, high: float) -> Domain:
    """Numbers from ``low``, above 0, to ``high``, each order of magnitude equally likely."""
    return _range("loguniform", low, high)


def randint(low: int, high: int) -> Domain:
    """Whole numbers from ``low`` to below ``high``, all equally likely."""
    return _range("randint", low, high)


def lograndint(low: int, high: int) -> Domain:
    """Whole numbers from ``low``, above 0, to below ``high``, each order of magnitude equally likely."""
    return _range("lograndint", low, high)


def _range(name: str, low: Any, high: Any) -> Range:
    log, whole = next(key for key, known in _NAMES.items() if known == name)
    said = f"{name}({low!r}, {high!r})"
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
            raise ConfigError(f"{said}: {end!r} must be a number")
        if whole and end != int(end):
            raise ConfigError(f"{said}: {end!r} must be a whole number")
    if not low < high:
        raise ConfigError(f"{said}: the first number must be below the second")
    if log and not low > 0:
        raise ConfigError(f"{said}: orders of magnitude begin above 0")
    return Range(int(low), int(high), log, True) if whole else Range(float(low), float(high), log)


_KINDS: dict[str, Callable[..., Domain]] = {
    kind.__name__: kind for kind in (choice, uniform, loguniform, randint, lograndint)
}


def parse(text: str) -> Domain:
    """A domain from its text, such as ``choice(tanh, relu)``; nothing in it is run.

    Values are written as in Python; a bare word is text.

    Raises:
        ConfigError: it is none, with the nearest kind and an example.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
            raise ValueError("a name with values in parentheses is expected")
        if call.func.id not in _KINDS:
            near = difflib.get_close_matches(call.func.id, _KINDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_KINDS)}"
            raise ValueError(f"nothing is called {call.func.id!r}; {hint}")
        values = [arg.id if isinstance(arg, ast.Name) else ast.literal_eval(arg) for arg in call.args]
        if call.func.id != "choice" and len(values) != 2:
            raise ValueError(f"{call.func.id} takes two numbers, not {len(values)}")
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        said = error.msg if isinstance(error, SyntaxError) else error
        raise ConfigError(
            f"{text!r:.80} says nothing to choose from: {said}. Write for example loguniform(1e-5, 1e-2), "
            "randint(1, 10) or choice(0.95, 0.99)"
        ) from None
    return _KINDS[call.func.id](*values)
