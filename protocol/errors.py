"""Errors that a user can fix; `main.py` shows their message without a traceback."""


class UserError(ValueError):
    """The configuration, the data or the run's folder cannot be used; the message names the fault and the remedy."""


class ConfigError(UserError):
    """A configuration key with a value that cannot work."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TaskError(UserError):
    """A task sequence that cannot be built; the message names the key and the remedy."""
