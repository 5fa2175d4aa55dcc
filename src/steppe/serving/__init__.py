"""A policy that answers over a network, and learns from what came of its answers."""
