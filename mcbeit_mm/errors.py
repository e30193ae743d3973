"""An error that tools report in one line even if MMEngine's runner raises it."""


class SetupError(ValueError):
    """User error that is detected only when the run starts."""
