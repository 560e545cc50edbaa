"""The device mesh, its sharding rules, host rows to global arrays and back, and the start-up of processes."""
