"""The decoder and what hangs on it."""
