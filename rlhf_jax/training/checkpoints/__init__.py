"""What a run keeps: its workdir and the lock on it, checkpoints of whole states, object stores."""
