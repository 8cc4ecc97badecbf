"""What can be wrong with a body before it is looked into: each has an HTTP status of its own."""

from __future__ import annotations

from evenflow.base.errors import InvalidRequest


class UnsupportedMedia(InvalidRequest):
    """The body is of another type, or packed in another way, than this route takes."""


class BodyTooLarge(InvalidRequest):
    """The body, or what it unpacks to, has more bytes or more values than are read."""
