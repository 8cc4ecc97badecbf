"""Which roles a chat template knows. Told from its syntax tree.

Most templates compare ``message['role']`` with the roles that they know. Some write whatever role a message has, as those
in the ChatML form do: ``'<|im_start|>' + message['role']``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jinja2.nodes as nodes


@dataclass(frozen=True, slots=True)
class TemplateRoles:
    """The roles of one template."""

    named: frozenset[str]
    """Every text that the template compares with anything."""
    writes_any: bool
    """True: a message's role is written out, whatever it is."""


def roles_of(tree: nodes.Template) -> TemplateRoles:
    """Return the roles that the template with this syntax tree knows."""
    named = {
        constant.value
        for comparison in tree.find_all(nodes.Compare)
        for constant in comparison.find_all(nodes.Const)
        if isinstance(constant.value, str)
    }
    written = any(_is_role(node) for output in tree.find_all(nodes.Output) for node in _written(output))
    copied = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and any(_is_role(node) for node in _written(assign.node))
    }
    written = written or any(
        isinstance(node, nodes.Name) and node.name in copied
        for output in tree.find_all(nodes.Output)
        for node in _written(output)
    )
    return TemplateRoles(frozenset(named), written)


def _written(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield what becomes text of ``node``: not what is only compared or tested."""
    if isinstance(node, nodes.Compare | nodes.Test):
        return
    yield node
    if isinstance(node, nodes.CondExpr):
        children: list[nodes.Node | None] = [node.expr1, node.expr2]
    else:
        children = list(node.iter_child_nodes())
    for child in children:
        if child is not None:
            yield from _written(child)


def _is_role(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "role"


__all__ = ["TemplateRoles", "roles_of"]
