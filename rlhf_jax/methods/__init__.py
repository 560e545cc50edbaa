"""The training methods, one file each: what its rows or rollouts are, its loss, its iteration, what it refuses."""
