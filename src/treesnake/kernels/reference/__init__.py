"""The readable form of every kernel, in plain torch: the oracle for the others."""
