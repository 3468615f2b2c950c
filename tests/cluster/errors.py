"""What can go wrong in the tier's own machinery, apart from a failing test."""


class MachineLacks(Exception):
    """The machine cannot run the tier; the text names what is missing and the remedy."""


class NotInTime(AssertionError):
    """Something that a test waits for did not happen before the deadline."""
