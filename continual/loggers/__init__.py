"""CSV, TensorBoard and wandb with one step axis over all tasks."""
