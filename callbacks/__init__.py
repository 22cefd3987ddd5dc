"""State that lives across steps and tasks, and what a run shows of itself."""
