"""The version of this distribution. Kept here, so that reading it imports no other room."""

from __future__ import annotations

__version__ = "0.2.0"
