"""Losses: Step -> named loss terms, one method a file."""
