"""Compile the Triton kernels for a GPU that is not there, and print what came out as JSON, one line a kernel.

``python compile_kernels.py ARCH [NAME ...]`` with TRITON_INTERPRET unset or 0; ARCH is 80 or 90. The shapes are those of an
8B model in bf16: 32 query and 8 key/value heads of 128, hidden 4096, MLP 14336; those called "fp32" are the same in fp32,
"odd" has groups of 7 heads of 96.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evenflow.serving.backends.attention import triton_attention
from evenflow.serving.backends.devices.triton_device import TritonDevice
from evenflow.serving.backends.lora import triton_lora
from evenflow.serving.kernels.attention_triton import attend_tiles, merge_parts, rotate_and_write
from evenflow.serving.kernels.lora_triton import expand, shrink

H100 = TritonDevice(tl.bfloat16, 132, False)
HEADS, GROUP, DIM = 8, 4, 128
FEW, MANY = triton_attention.choose_blocks(H100, 2, GROUP)
DECODE, PROMPT = triton_lora.choose_blocks(H100, 2)
FEW_32, MANY_32 = triton_attention.choose_blocks(H100, 4, GROUP)
DECODE_32, PROMPT_32 = triton_lora.choose_blocks(H100, 4)
POINTERS = {
    "qkv": "*bf16", "arena": "*bf16", "out": "*bf16", "x": "*bf16", "y": "*bf16", "cos": "*fp32", "sin": "*fp32",
    "positions": "*i64", "write_rows": "*i64", "header": "*i64", "amounts": "*i64", "segments": "*i64", "rows": "*i64",
    "tiles": "*i32", "merges": "*i32", "pages": "*i32",
}  # fmt: skip
INTEGERS_OF_16 = ("page_stride", "k_offset", "v_offset", "k_row", "v_row", "qkv_stride", "out_stride", "x_stride", "y_stride")


def _attend(blocks, group=GROUP, dim=DIM, dot=tl.bfloat16, window=0, is_capped=False):
    sizes = {"HEADS": HEADS, "GROUP": group, "DIM": dim, "DIM_PAD": DIM, "PAGE_TOKENS": 16, "DOT": dot}
    sizes |= {"WINDOW": window, "CAPPED": is_capped}
    return attend_tiles, {**sizes, "ROWS": blocks.rows, "TOKENS": blocks.tokens}, blocks


def _shrink(blocks, width, dot=tl.bfloat16):
    unit = 16 if dot == tl.float32 else 32
    sizes = {"WIDTH": width, "UNIT": unit, "SPLIT": blocks.split, "SPLITS": -(-width // blocks.split), "DOT": dot}
    return shrink, {**sizes, "ROWS": blocks.rows, "RANKS": blocks.lora_ranks, "COLUMNS": blocks.shrink_columns}, blocks


def _expand(blocks, width, *widths, dot=tl.bfloat16):
    sizes = {"WIDTH_0": widths[0], "WIDTH_1": widths[1], "WIDTH_2": widths[2], "DOT": dot}
    sizes["UNIT"] = 16 if dot == tl.float32 else 32
    sizes |= {"SPLITS": -(-width // blocks.split), "ROWS": blocks.rows, "RANKS": blocks.lora_ranks}
    return expand, {**sizes, "COLUMNS": blocks.expand_columns}, blocks


_ROTATE = {"HEADS": HEADS, "GROUP": GROUP, "DIM": DIM, "GROUP_PAD": GROUP, "HALF_PAD": DIM // 2, "ROWS": 1}
_MERGE = {"HEADS": HEADS, "GROUP": GROUP, "DIM": DIM, "GROUP_PAD": GROUP, "DIM_PAD": DIM, "ROWS": FEW.rows}
KERNELS = {
    "rotate_and_write": (rotate_and_write, _ROTATE, None),
    "attend_tiles few": _attend(FEW),
    "attend_tiles many": _attend(MANY),
    "merge_parts": (merge_parts, _MERGE, None),
    "shrink decode": _shrink(DECODE, 4096),
    "shrink prompt": _shrink(PROMPT, 4096),
    "shrink decode down": _shrink(DECODE, 14336),
    "expand decode": _expand(DECODE, 4096, 4096, 1024, 1024),
    "expand prompt": _expand(PROMPT, 4096, 4096, 1024, 1024),
    "expand decode down": _expand(DECODE, 14336, 4096, 0, 0),
    "attend_tiles window few": _attend(FEW, window=4096, is_capped=True),
    "attend_tiles window many": _attend(MANY, window=4096, is_capped=True),
    "attend_tiles odd few": _attend(FEW, 7, 96),
    "attend_tiles odd many": _attend(MANY, 7, 96),
    "attend_tiles fp32 few": _attend(FEW_32, dot=tl.float32),
    "attend_tiles fp32 many": _attend(MANY_32, dot=tl.float32),
    "shrink fp32 decode": _shrink(DECODE_32, 4096, tl.float32),
    "shrink fp32 prompt": _shrink(PROMPT_32, 4096, tl.float32),
    "expand fp32 decode": _expand(DECODE_32, 4096, 4096, 1024, 1024, dot=tl.float32),
    "expand fp32 prompt": _expand(PROMPT_32, 4096, 4096, 1024, 1024, dot=tl.float32),
}


def compile_one(name: str, arch: int) -> dict[str, object]:
    kernel, constants, blocks = KERNELS[name]
    signature, attributes = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        signature[argument] = POINTERS.get(argument, "constexpr" if argument in constants else "i32")
        if constants.get("DOT") == tl.float32:
            signature[argument] = signature[argument].replace("bf16", "fp32")
        if argument == "scale":
            signature[argument] = "fp32"
        if argument in POINTERS or argument in INTEGERS_OF_16:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": 1 if kernel is rotate_and_write else 4}
    if blocks:
        options = {"num_warps": blocks.num_warps, "num_stages": 1 if kernel is expand else blocks.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    found: Counter[str] = Counter()
    for pattern in (r"ld\.global[\w.:]*", r"st\.global[\w.:]*", r"cp\.async\.c[ag][\w.]*", r"(?:wgmma\.mma_async|mma\.sync)"):
        found.update(re.findall(pattern, ptx))
    return {"name": name, "arch": arch, "shared": compiled.metadata.shared, "instructions": found, **_resources(ptx)}


def _resources(ptx: str) -> dict[str, int]:
    """Registers, stack and spills as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        target = re.search(r"\.target (\w+)", ptx)[1]
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        for ptxas in sorted(tools.glob("ptxas*")):  # the older one may not know this version of PTX
            command = [str(ptxas), "-v", f"--gpu-name={target}", str(path), "-o", str(Path(folder, "kernel.cubin"))]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                break
        assert result.returncode == 0, result.stderr
        report = result.stderr
    pattern = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    stack, stores, loads = map(int, re.search(pattern, report).groups())
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    return {"registers": registers, "stack": stack, "spill_stores": stores, "spill_loads": loads}


if __name__ == "__main__":
    for kernel_name in sys.argv[2:] or KERNELS:
        print(json.dumps(compile_one(kernel_name, int(sys.argv[1]))), flush=True)
