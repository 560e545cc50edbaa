"""Named findings about runs, judges, labels and reward models, each with its usual cause and what decides it."""
