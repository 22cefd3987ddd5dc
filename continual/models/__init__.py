"""A trained network as a thing of its own: checkpoints, saved models, predictions, export."""
