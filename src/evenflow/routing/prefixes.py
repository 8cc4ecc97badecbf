"""Which beginnings of prompts an engine has probably computed: hashes of a prompt's first 64, 128, ... tokens.

A guess, kept by whoever routes and never asked of the engine: the longest unused is forgotten first, as there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

BLOCK_TOKENS = 64
MOST_BLOCKS = 32
"""Of one prompt; what it has in common beyond 2,048 tokens changes no choice."""
MOST_REMEMBERED = 16_384


def prefix_blocks(token_ids: Sequence[int], adapter: str | None = None, salt: str = "") -> tuple[int, ...]:
    """Hashes of the first 64, 128, ... tokens under this adapter and salt, the shortest first. O(tokens hashed)."""
    before = zlib.crc32(f"{adapter or ''}\0{salt}".encode())
    blocks = []
    for start in range(0, min(len(token_ids), BLOCK_TOKENS * MOST_BLOCKS) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        before = hash((before, *token_ids[start : start + BLOCK_TOKENS]))
        blocks.append(before)
    return tuple(blocks)


class PrefixBook:
    """The beginnings that were sent to one engine lately; at most ``limit`` of them."""

    def __init__(self, limit: int = MOST_REMEMBERED) -> None:
        self._limit = limit
        self._blocks: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def num_shared_tokens(self, blocks: Sequence[int]) -> int:
        """Tokens at the beginning of such a prompt that were sent before."""
        for count, block in enumerate(blocks):
            if block not in self._blocks:
                return count * BLOCK_TOKENS
        return len(blocks) * BLOCK_TOKENS

    def add(self, blocks: Sequence[int]) -> None:
        """A prompt with these beginnings was sent there."""
        for block in blocks:
            self._blocks.pop(block, None)
            self._blocks[block] = None
        while len(self._blocks) > self._limit:
            del self._blocks[next(iter(self._blocks))]
