"""The errors that a user can mend; `main.py` shows their message without a traceback."""


class UserError(ValueError):
    """Something in the configuration, the data or the run folder; the message names it and the mend."""


class ConfigError(UserError):
    """A configuration key with a value that cannot work."""


class RunError(UserError):
    """A run folder or checkpoint that cannot be used."""


class TaskError(UserError):
    """A task sequence that cannot be built; the message names the key and the mend."""
