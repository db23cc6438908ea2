"""Kernels: tensors in, tensors out, in three forms with the same names."""
