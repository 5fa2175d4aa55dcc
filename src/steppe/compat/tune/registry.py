"""``register_env``, where Tune has it."""

from steppe.envs.registry import register_env

__all__ = ["register_env"]
