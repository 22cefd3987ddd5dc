"""What trains: the LightningModule, its optimisation and schedules."""
