"""Error of the PET simulation."""


class PETError(ValueError):
    """Invalid arrays or settings for a simulation; the message states the received and the expected value."""
