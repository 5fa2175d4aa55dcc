"""Trainers by algorithm, and the callbacks."""

from steppe.compat.absent import of_module
from steppe.compat.callbacks import DefaultCallbacks

__all__ = ["DefaultCallbacks"]
__getattr__ = of_module(__name__)
