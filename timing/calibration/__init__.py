"""Measure what operations cost on a reference machine, and keep it in a profile."""
