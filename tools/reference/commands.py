"""The reference of the command line: every command, argument and flag, from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from evenflow.cli.main import build_parser
from reference.markdown import cell, code, page, prose, table

INTRO = """\
Every command of `evenflow`, with each argument and flag. `evenflow COMMAND --help` prints the same.
The exit status is 0 if all went well, 1 if the command failed, 2 if it was used wrongly and 130 if
it was interrupted."""


def command_line_page() -> str:
    """The page, one section for each command and for each command below it."""
    return page("Command line", INTRO, *(_section(name, parser) for name, parser in commands(build_parser())))


def commands(parser: argparse.ArgumentParser, name: str = "evenflow") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command below ``parser`` with its full name, in the order in which they are declared."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice, below in action.choices.items():
                yield from commands(below, f"{name} {choice}")


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, without its help flag, the commands below it, and flags that have a page of their own."""
    left_out = (argparse._SubParsersAction, argparse._HelpAction)
    shown = (action for action in parser._actions if action.help != argparse.SUPPRESS)
    return [action for action in shown if not isinstance(action, left_out)]


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    parts = [f"## {code(name)}"]
    if parser.description:
        parts.append(prose(cell(parser.description)))
    titles = {id(action): group.title for group in parser._action_groups for action in group._group_actions}
    by_group: dict[str, list[argparse.Action]] = {}
    for action in arguments(parser):
        by_group.setdefault(titles.get(id(action)) or "options", []).append(action)
    for title, actions in by_group.items():
        if len(by_group) > 1:
            parts.append(f"**{title}**")
        parts.append(table(["argument", "what it does", "default"], [_row(parser, action) for action in actions]))
    return "\n\n".join(parts)


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    value = parser._get_formatter()._format_args(action, _metavar(action)) if action.nargs != 0 else ""
    names = ", ".join(code(name) for name in action.option_strings) or code(_metavar(action))
    if action.option_strings and value:
        names += f" {code(value)}"
    formatter = parser._get_formatter()
    text = formatter._expand_help(action) if action.help else ""
    return [names, cell(text), code(_default(action))]


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(str(choice) for choice in action.choices) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _default(action: argparse.Action) -> str:
    is_silent = action.default in (None, argparse.SUPPRESS, False) or action.nargs == 0
    return "" if is_silent else str(action.default)
