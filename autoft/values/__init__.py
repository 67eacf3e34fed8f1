"""Frozen values that cross boundaries, by subject."""
