"""Policies: how a row becomes a decision."""
