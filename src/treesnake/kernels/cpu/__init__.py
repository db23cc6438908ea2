"""Kernels for CPUs, compiled by numba: explicit vectors, one order of summation for every shape."""
