"""Adapters that turn everything a user can bring into one :class:`steppe.types.AsyncEnv`."""
