"""LoRA of a step's token rows for CUDA (Triton): shrink (s = A x), then expand (y += s B).

Factor rows are read where they lie in the arena. The token rows of a step are grouped by adapter into segments of at most
ROWS token rows. A site's modules read the same x, so all their A rows are one run and shrink is one launch; expand is one
launch over the site's columns, module by module. LoRA ranks are each adapter's own: programs loop as far as a segment's
LoRA ranks go, and nothing is padded to a largest one.

Shrink cuts the input width into fixed ranges, so that a few segments fill the machine. Each range leaves a partial sum
in fp32 and expand adds them in order: no atomics, and a row's result depends on its x, its y and its adapter alone.
What is between shrink and expand stays fp32: where products are in bf16 it is cut into two bf16 terms, 16 bits.

A segment names its table of factor rows' lines by address, because each adapter has one of its own size. A line of -1
stands for a factor row that this layer does not have. Programs walk over the work with a stride, and its amount is read on
the device: a launch of fixed size serves any number of segments and LoRA ranks, which is what CUDA graphs need. ``DOT``:
see ``attention_triton``.
Legend: T token rows, I input width, O output width of the site, R LoRA ranks of the site's modules together.
"""

from __future__ import annotations

import triton
import triton.language as tl

SEGMENT_FIELDS = 8
"""int64 per segment: first place in ``rows``, number of token rows, address of the lines, address of s, then where the factor
rows of the site's first, second and third module begin, and R. A module that the adapter lacks begins where the next does.

The lines are int64 [layers, 2, R]: for each layer the A rows of all modules, then their B rows. s is fp32
[SPLITS, rows, R].
"""


@triton.jit(do_not_specialize=["layer"])
def shrink(
    x,
    arena,
    amounts,
    segments,
    rows,
    layer,
    x_stride,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
):
    """s of every segment, by ranges of the input width. Grid: any number of programs.

    Semantics: s[p, i, r] = sum_c A[r, c] x[rows[first + i], c],  p SPLIT <= c < min((p + 1) SPLIT, WIDTH).

    Table of arguments:
        x         [T, I]
        arena     flat                        all pages, in elements
        amounts   int64 [2]                   number of segments; blocks of RANKS factor rows in the widest segment
        segments  int64 [n, SEGMENT_FIELDS]
        rows      int64                       token rows of all segments, one segment after another
        layer     int                         the layer
        x_stride  int                         elements from one row of x to the next
        WIDTH     int                         I
        UNIT      int                         elements of a line of 64 bytes
        SPLIT     int                         columns of one range of the input width
        SPLITS    int                         ranges
        ROWS      int                         token rows of a segment, at most
        RANKS     int                         factor rows that one program takes
        COLUMNS   int                         columns that one round of the loop takes
        DOT       dtype                       that products are computed in
    """
    m = tl.arange(0, ROWS)
    r = tl.arange(0, RANKS)
    c = tl.arange(0, COLUMNS)
    blocks = tl.load(amounts + 1)
    for work in range(tl.program_id(0), (tl.load(amounts) * blocks * SPLITS).to(tl.int32), tl.num_programs(0)):
        segment = segments + work // (blocks * SPLITS) * 8
        first_rank = work // SPLITS % blocks * RANKS
        split = work % SPLITS
        ranks = tl.load(segment + 7)
        if first_rank < ranks:
            first = tl.load(segment)
            count = tl.load(segment + 1)
            lines = tl.load(segment + 2).to(tl.pointer_type(tl.int64))
            s = tl.load(segment + 3).to(tl.pointer_type(tl.float32))
            rank = first_rank + r
            line = tl.load(lines + layer * 2 * ranks + rank, mask=rank < ranks, other=-1)
            row = tl.load(rows + first + m, mask=m < count, other=0)
            at_x = x + row[:, None] * x_stride + c[None, :]
            at_a = arena + line[:, None] * UNIT + c[None, :]
            total = tl.zeros((ROWS, RANKS), tl.float32)
            for column in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, WIDTH), COLUMNS):
                inside = (column + c < WIDTH)[None, :]
                xs = tl.load(at_x + column, mask=(m < count)[:, None] & inside, other=0.0)
                a = tl.load(at_a + column, mask=(line >= 0)[:, None] & inside, other=0.0)
                total += tl.dot(xs.to(DOT), tl.trans(a.to(DOT)), input_precision="ieee")
            to = s + (split * count + m)[:, None] * ranks + rank[None, :]
            tl.store(to, total, mask=(m < count)[:, None] & (rank < ranks)[None, :])


@triton.jit(do_not_specialize=["layer"])
def expand(
    y,
    arena,
    amounts,
    segments,
    rows,
    layer,
    y_stride,
    WIDTH_0: tl.constexpr,
    WIDTH_1: tl.constexpr,
    WIDTH_2: tl.constexpr,
    UNIT: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Add every segment's delta to y. Grid: any number of programs.

    Semantics: y[rows[first + i], o_m + o] += sum_r B_m[r, o] sum_p s[p, i, r], for the ranks r of module m, o < WIDTH_m and
    o_m the widths of the modules before it.  Columns of modules that the adapter does not have are not touched.

    Table of arguments (what is not said here: see ``shrink``):
        arena, amounts, segments, rows, layer, UNIT, SPLITS, ROWS, DOT: as there
        y         [T, O]  changed in place
        y_stride  int     elements from one row of y to the next
        WIDTH_0   int     output width of the site's first module
        WIDTH_1   int     of its second module; 0: it has none
        WIDTH_2   int     of its third module; 0: it has none
        RANKS     int     factor rows that one round of the loop takes
        COLUMNS   int     output columns that one program computes
    """
    BLOCKS_0: tl.constexpr = (WIDTH_0 + COLUMNS - 1) // COLUMNS
    BLOCKS_1: tl.constexpr = (WIDTH_1 + COLUMNS - 1) // COLUMNS
    BLOCKS_2: tl.constexpr = (WIDTH_2 + COLUMNS - 1) // COLUMNS
    BLOCKS: tl.constexpr = BLOCKS_0 + BLOCKS_1 + BLOCKS_2
    m = tl.arange(0, ROWS)
    for work in range(tl.program_id(0), (tl.load(amounts) * BLOCKS).to(tl.int32), tl.num_programs(0)):
        segment = segments + work // BLOCKS * 8
        block = work % BLOCKS
        is_1 = block >= BLOCKS_0
        is_2 = block >= BLOCKS_0 + BLOCKS_1
        module = is_1.to(tl.int32) + is_2.to(tl.int32)
        n = (block - tl.where(is_2, BLOCKS_0 + BLOCKS_1, tl.where(is_1, BLOCKS_0, 0))) * COLUMNS + tl.arange(0, COLUMNS)
        width = tl.where(is_2, WIDTH_2, tl.where(is_1, WIDTH_1, WIDTH_0))
        first_rank = tl.load(segment + 4 + module)
        end_rank = tl.load(segment + 5 + module)
        if first_rank < end_rank:
            first = tl.load(segment)
            count = tl.load(segment + 1)
            ranks = tl.load(segment + 7)
            lines = tl.load(segment + 2).to(tl.pointer_type(tl.int64)) + (layer * 2 + 1) * ranks
            s = tl.load(segment + 3).to(tl.pointer_type(tl.float32))
            row = tl.load(rows + first + m, mask=m < count, other=0)
            total = tl.zeros((ROWS, COLUMNS), tl.float32)
            last_line = tl.full((), -1, tl.int64)
            for start in range(first_rank.to(tl.int32), end_rank.to(tl.int32), RANKS):
                rank = start + tl.arange(0, RANKS)
                line = tl.load(lines + rank, mask=rank < end_rank, other=-1)
                b = tl.load(
                    arena + line[:, None] * UNIT + n[None, :], mask=(line >= 0)[:, None] & (n < width)[None, :], other=0.0
                )
                mask = (m < count)[:, None] & (rank < end_rank)[None, :]
                sums = tl.zeros((ROWS, RANKS), tl.float32)
                for split in tl.static_range(SPLITS):
                    sums += tl.load(s + (split * count + m)[:, None] * ranks + rank[None, :], mask=mask, other=0.0)
                high = sums.to(DOT)
                total += tl.dot(high, b.to(DOT), input_precision="ieee")
                if tl.float32 != DOT:
                    low = (sums - high.to(tl.float32)).to(DOT)
                    total += tl.dot(low, b.to(DOT), input_precision="ieee")
                last_line = tl.maximum(last_line, tl.max(line, 0))
            # A module that other layers of the adapter have and this one has not keeps every bit of y.
            if last_line >= 0:
                mask = (m < count)[:, None] & (n < width)[None, :]
                column = tl.where(is_2, WIDTH_0 + WIDTH_1, tl.where(is_1, WIDTH_0, 0))
                to = y + row[:, None] * y_stride + (column + n)[None, :]
                old = tl.load(to, mask=mask, other=0.0).to(tl.float32)
                tl.store(to, (old + total).to(y.dtype.element_ty), mask=mask)
