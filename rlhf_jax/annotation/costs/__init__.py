"""What judgments cost: price tables, counters of a run, and estimates before one."""
