"""The one error that the command line reports without a traceback."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says what was found, what was expected, the remedy."""
