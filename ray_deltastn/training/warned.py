"""The category of the package's warnings."""


class RunWarning(UserWarning):
    """A run is set up in a way that probably gives a poor result."""
