"""Mirrors ``ray.rllib.utils.annotations``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Method = TypeVar("Method", bound=Callable[..., object])


def override(cls: type) -> Callable[[Method], Method]:
    """Say that a method overrides one of ``cls``.

    Raises:
        NameError: ``cls`` has no such method.
    """

    def check(method: Method) -> Method:
        if method.__name__ not in dir(cls):
            raise NameError(f"{method.__name__} does not override any method of {cls.__name__}")
        return method

    return check
