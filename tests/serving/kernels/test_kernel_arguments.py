"""Kernels with many arguments say of each what it is: name, dtype, shape and meaning stand in a table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import evenflow.serving.kernels as kernels

MANY = 8
KERNELS = [
    (path.stem, ast.get_docstring(tree) or "", node)
    for path in sorted(Path(kernels.__file__).parent.glob("*.py"))
    for tree in [ast.parse(path.read_text())]
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and len(node.args.args) > MANY
]


def test_every_argument_of_a_long_kernel_is_in_its_table():
    assert len(KERNELS) >= 12
    for module, of_module, node in KERNELS:
        own = ast.get_docstring(node) or ""
        table = own.partition("rguments")[2] or of_module.partition("rguments")[2]
        assert table, f"{module}.{node.name} has {len(node.args.args)} arguments and no table of them"
        missing = [a.arg for a in node.args.args if not re.search(rf"\b{a.arg}\b", table)]
        assert not missing, f"{module}.{node.name}: {missing}"
