"""Trainers by algorithm, and the callbacks."""
