"""What makes learning continual: tasks, the learner, the loop over tasks, metrics and results."""
