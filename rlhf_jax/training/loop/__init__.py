"""The one train step and the one loop, their state and their metrics. Knows no method."""
