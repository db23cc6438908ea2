"""Tree searches: which shape to draft next."""
