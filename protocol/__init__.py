"""What all rooms agree on: errors, files, labels, rules, tasks, settings, the run's folder; neither torch nor Hydra."""
