"""Everything between text and token ids: one import for the server, the engine and ``LLM``. No torch."""

from __future__ import annotations

from evenflow.serving.engine.chat_template import ChatTemplate
from evenflow.serving.engine.detokenizer import Detokenizer
from evenflow.serving.engine.stopping import OutputDelta, OutputText, StopChecker
from evenflow.serving.engine.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "OutputDelta", "OutputText", "StopChecker", "Tokenizer"]
