"""Targets: how models are found, loaded and run as the target role."""
