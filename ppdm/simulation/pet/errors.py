"""What is refused in the simulation of PET."""


class PETError(ValueError):
    """Arrays or settings from which no scan can be simulated; the message says what was got and expected."""
