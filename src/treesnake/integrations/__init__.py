"""Treesnake inside other engines and clusters. Each module stands alone, for one of them."""
