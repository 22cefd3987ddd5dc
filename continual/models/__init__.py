"""Trained networks outside of training: checkpoints, saved models, predictions, export."""
