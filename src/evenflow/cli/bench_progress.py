"""The line that `evenflow bench serve` shows while a load goes on; nothing on what is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from evenflow.bench.load.open_loop import LoadRun


@contextlib.contextmanager
def load_progress(is_quiet: bool) -> Iterator[Callable[[LoadRun], None]]:
    """What to call with a run as it goes."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=is_quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def tell(run: LoadRun) -> None:
            failed = sum(request.ended_s is not None and request.outcome != "ok" for request in run.requests)
            words = f"{run.num_in_flight} under way" + (f", {failed} failed" if failed else "")
            progress.update(task, description=words, completed=run.num_ended, total=run.num_planned)

        yield tell
