"""Everything between text and token ids: one import for the server, the engine and ``LLM``. No torch."""

from __future__ import annotations

from evenflow.serving.text.chat_template import ChatTemplate, read_chat_template
from evenflow.serving.text.detokenizer import Detokenizer
from evenflow.serving.text.stopping import OutputDelta, OutputText, StopChecker
from evenflow.serving.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "OutputDelta", "OutputText", "StopChecker", "Tokenizer", "read_chat_template"]
