"""What the Space says to a visitor whose request it cannot follow."""

from minitron.errors import MinitronError


class VisitorError(MinitronError):
    """A request that means nothing here; its text tells the visitor what to change."""


class BusyError(MinitronError):
    """More at once than this machine holds; the visitor may ask again."""
