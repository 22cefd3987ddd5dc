"""Images synthesised from a network."""
