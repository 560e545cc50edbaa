"""Optimizers by name, and update rules that optax has otherwise than the papers use them."""
