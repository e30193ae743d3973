"""An error that tools report in one line even if MMEngine's runner raises it."""


class SetupError(ValueError):
    """A user's mistake found only when the run starts."""
