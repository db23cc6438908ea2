"""Lossless speculative decoding with Mamba drafters and token trees."""
