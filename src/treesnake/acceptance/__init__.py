"""Acceptance rules: arithmetic on probabilities that keeps the target's distribution exactly."""
