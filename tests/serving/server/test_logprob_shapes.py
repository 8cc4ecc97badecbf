"""Log-probabilities of tokens that are parts of characters: their bytes are told, and their places in the text."""

from __future__ import annotations

from evenflow.serving.client.messages import Logprobs
from evenflow.serving.core.plan import TokenLogprobs
from evenflow.serving.engine.reply import Reply
from evenflow.serving.server.api.logprobs import TextOffsets, chat_logprobs, completion_logprobs

PARTY = "🎉".encode()


def part(token_id: int, data: bytes) -> Logprobs:
    """One token of the answer, which is also the likeliest."""
    text = data.decode("utf-8", "replace")
    is_text = "�" not in text
    return Logprobs(token_id, -0.5, text, [(token_id, text, -0.5)], 1, {} if is_text else {token_id: data})


ENTRIES = [part(1, b"a"), *(part(2 + i, PARTY[i : i + 1]) for i in range(4)), part(6, "é!".encode()), part(7, b"b")]
"""a🎉é!b"""


def test_bytes_of_a_chat_are_those_of_the_tokens():
    content = chat_logprobs(ENTRIES).content
    assert bytes(byte for entry in content for byte in entry.bytes or ()).decode() == "a🎉é!b"
    assert [entry.bytes for entry in content[1:3]] == [[PARTY[0]], [PARTY[1]]]
    assert content[1].top_logprobs[0].bytes == [PARTY[0]]
    assert content[1].token == "�"


def test_places_are_those_of_the_characters():
    assert completion_logprobs(ENTRIES).text_offset == [0, 1, 1, 1, 1, 2, 4]
    offsets, places = TextOffsets(), []
    for entry in ENTRIES:
        places += completion_logprobs([entry], offsets=offsets).text_offset
    assert places == [0, 1, 1, 1, 1, 2, 4], "a stream says the same"
    assert completion_logprobs([None, *ENTRIES[:2]], (0, "<s>")).text_offset == [0, 3, 4]


def test_the_engine_tells_the_bytes_of_what_is_no_text():
    class Parts:
        def token_text(self, token_id: int) -> str:
            return self.token_bytes(token_id).decode("utf-8", "replace")

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([token_id])

    reply = Reply.__new__(Reply)
    reply._tokenizer = Parts()  # type: ignore[assignment]
    told = reply._told(TokenLogprobs(0xF0, -1.0, ((0xF0, -1.0), (0x41, -2.0), (0xFF, -3.0))))
    assert told.bytes_by_id == {0xF0: b"\xf0", 0xFF: b"\xff"}
    assert reply._told(TokenLogprobs(0x41, -1.0, ((0x41, -1.0),))).bytes_by_id == {}
