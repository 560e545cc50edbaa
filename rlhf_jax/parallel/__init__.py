"""Mesh, sharding rules, process start-up, host rows to global arrays."""
