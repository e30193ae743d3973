"""The error that tools show as one line although it comes up inside MMEngine's runner."""


class SetupError(ValueError):
    """A mistake of the user's that shows only once the run is being started."""
