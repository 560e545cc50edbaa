"""State, optimizer, the one train step, the one loop, checkpoints, metrics."""
