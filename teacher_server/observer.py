"""What the way of a logit tells about its own speed; to nobody, unless a subclass listens."""


class Observer:
    """Hears of every step; called in the event loop, so it must be quick."""

    def queued(self, seconds: float) -> None:
        """Images of one question waited so long until a batch took them; told once per question and batch."""

    def loaded(self, seconds: float) -> None:
        """The pixels of a batch were read, decoded and rendered."""

    def forwarded(self, images: int, *, seconds: float) -> None:
        """The teacher looked at so many images, whether or not it answered."""

    def committed(self, seconds: float) -> None:
        """A batch's answers were made durable, the wait for the one thread that writes included."""


NOBODY = Observer()
"""Listens to nothing."""
