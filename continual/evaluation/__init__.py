"""Metrics, means, results and their pictures."""
