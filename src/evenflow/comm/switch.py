"""Whether the exchanges of a model compress now or send dense tensors: one switch for all of them."""

from __future__ import annotations


class Switch:
    """Whether everything that holds this object compresses now.

    Whoever trains or evaluates the model owns it and sets ``is_on`` (during a warm-up, or an evaluation without
    compression, it is False); exchanges, pipeline stages and boundaries only read it, at every message. All ranks must set it
    alike, because a dense message and a compressed one differ in size.
    """

    def __init__(self) -> None:
        self.is_on = True
