"""The parts of a replay buffer: which images stay, where they are stored, how they are read, what batches get."""
