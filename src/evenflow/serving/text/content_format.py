"""Does a chat template read a message's content as a text, or as a list of parts? Told from its syntax tree.

Most templates print ``message['content']``. Some loop over it (``for part in message['content']``), as those of
Llama Guard 3 and of models for images do: given a text, such a loop goes through its characters, finds no part
among them, and the message is gone without an error. The rules are those of vLLM's detection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import jinja2.nodes as nodes

ContentFormat = Literal["string", "openai"]
CONTENT_FORMATS = ("auto", "string", "openai")
"""What an operator may say: one of the two, or auto."""


def content_format_of(tree: nodes.Template) -> ContentFormat:
    """Return "openai" if the template loops over the content of a message anywhere, else "string"."""
    messages = _aliases(tree, "messages")
    message_names = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_reads(loop.iter, name) for name in messages)
    }
    message_names |= _taken_out(tree, messages)
    contents = {"content"}
    for name in message_names:
        contents |= _names_of_content(tree, name)
    for macro, loop in _loops(tree):
        known = contents
        if macro is not None:
            parameters = {argument.name for argument in macro.args}
            known = (contents - parameters) | _parameters_with_content(tree, macro, message_names)
        if any(_reads(loop.iter, name, "content") for name in message_names):
            return "openai"
        if isinstance(loop.iter, nodes.Name) and loop.iter.name in known:
            return "openai"
    return "string"


def _aliases(tree: nodes.Template, name: str) -> set[str]:
    """``name`` and every name that is set to it, a slice of it or a filter of it."""
    known, waiting = {name}, [name]
    while waiting:
        source = waiting.pop()
        for assign in tree.find_all(nodes.Assign):
            target = assign.target
            if isinstance(target, nodes.Name) and target.name not in known and _reads(assign.node, source):
                known.add(target.name)
                waiting.append(target.name)
    return known


def _taken_out(tree: nodes.Template, messages: set[str]) -> set[str]:
    """Names that are set to one message: ``set first = messages[0]``."""
    found = set()
    for assign in tree.find_all(nodes.Assign):
        value = assign.node
        if (
            isinstance(assign.target, nodes.Name)
            and isinstance(value, nodes.Getitem)
            and not isinstance(value.arg, nodes.Slice)
            and any(_reads(value.node, name) for name in messages)
        ):
            found.add(assign.target.name)
    return found


def _names_of_content(tree: nodes.Template, message: str) -> set[str]:
    """Names that are set to the content of ``message``."""
    return {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _reads(assign.node, message, "content")
    }


def _loops(tree: nodes.Template) -> Iterator[tuple[nodes.Macro | None, nodes.For]]:
    """Every loop, with the macro that it stands in."""
    inside: set[int] = set()
    for macro in tree.find_all(nodes.Macro):
        for loop in macro.find_all(nodes.For):
            inside.add(id(loop))
            yield macro, loop
    for loop in tree.find_all(nodes.For):
        if id(loop) not in inside:
            yield None, loop


def _parameters_with_content(tree: nodes.Template, macro: nodes.Macro, messages: set[str]) -> set[str]:
    """Parameters of ``macro`` that some call gives the content of a message."""
    names = [argument.name for argument in macro.args]
    found = set()
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
            continue
        given = [*zip(names, call.args), *((word.key, word.value) for word in call.kwargs)]
        found |= {name for name, value in given if any(_reads(value, message, "content") for message in messages)}
    return found


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """True if ``node`` is ``name``, or with a ``key`` ``name.key`` or ``name['key']``, under filters, tests and slices."""
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is not None:
        is_attribute = isinstance(node, nodes.Getattr) and node.attr == key
        is_item = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == key
        if not (is_attribute or is_item):
            return False
        assert isinstance(node, nodes.Getattr | nodes.Getitem)
        node = node.node
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


__all__ = ["CONTENT_FORMATS", "ContentFormat", "content_format_of"]
