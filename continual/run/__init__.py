"""The loop over tasks and what it leaves on disk."""
