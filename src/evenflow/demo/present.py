"""The demo's results for people: one table for the terminal, and the report page. Reads results only."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evenflow.demo.clients import ClientPlan
from evenflow.demo.contest import ClientResult, Round
from evenflow.report.page import Page
from evenflow.report.plots import Series, colours, small_multiples
from evenflow.report.tables import Cell

BASE_VOICE = "base"
_PROMPTS_PER_TABLE = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What every voice answered to one prompt."""

    prompt: str
    answer_by_voice: Mapping[str, str]


def milliseconds(seconds: float) -> Cell:
    """Whole milliseconds, or None if there is no figure."""
    return None if math.isnan(seconds) else round(seconds * 1000)


def percent(share: float) -> str:
    """As in: 12.3%."""
    return "–" if math.isnan(share) else f"{share:.1%}"


def _cells(result: ClientResult) -> list[str]:
    def ms(seconds: float) -> str:
        value = milliseconds(seconds)
        return "–" if value is None else f"{value:,}"

    return [
        f"{result.num_requests:,}",
        f"{result.tokens:,}",
        percent(result.share),
        ms(result.ttft_p50_s),
        ms(result.ttft_p99_s),
    ]


def result_table(rounds: Sequence[Round]) -> Table:
    """One row per client, one group of columns per policy, narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("\nclient", no_wrap=True)
    for played in rounds:
        groups = (f"[bold]{played.policy}[/bold]", "", "", "TTFT", "(ms)")
        for group, name in zip(groups, ("reqs", "tokens", "share", "p50", "p99"), strict=True):
            table.add_column(f"{group}\n{name}", justify="right", no_wrap=True)
    for index, first in enumerate(rounds[0].clients):
        cells = [cell for played in rounds for cell in _cells(played.clients[index])]
        table.add_row(first.name, *cells, style="dim" if index == 0 else None)
    return table


def sample_lines(sample: Sample) -> Group:
    """One prompt and its answers, a line per voice."""
    grid = Table.grid(padding=(0, 1), pad_edge=True)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for voice, answer in sample.answer_by_voice.items():
        grid.add_row(f" {voice}", Text(answer))
    return Group(Text(sample.prompt, style="bold"), grid, Text())


def quiet_ttft(played: Round, share: str) -> float:
    """Return the median over the quiet clients of their TTFT quantile (``share``: "p50" or "p99"), in seconds."""
    values = sorted(c.ttft_p50_s if share == "p50" else c.ttft_p99_s for c in played.clients[1:])
    return values[len(values) // 2]


def headline(rounds: Sequence[Round]) -> str:
    """Say in one sentence what the two rounds show, with its numbers."""
    before, after = rounds[0], rounds[-1]
    slow, fast = quiet_ttft(before, "p50"), quiet_ttft(after, "p50")
    return (
        f"While one client keeps the server full, a quiet client waits {slow * 1000:,.0f} ms for its first token under "
        f"{before.policy} and {fast * 1000:,.0f} ms under {after.policy} (medians)."
    )


def report_page(rounds: Sequence[Round], plans: Sequence[ClientPlan], samples: Sequence[Sample], seconds: float) -> Page:
    """Lay out the whole report; ``seconds`` is what the demo took."""
    before, after = rounds[0], rounds[-1]
    page = Page(
        f"EvenFlow: one model, {after.num_adapters:,} adapters, one greedy client and three quiet ones",
        "The same flood twice, on the same machine, through the same HTTP server: first served in order of arrival "
        f"(`{before.policy}`), then by token-weighted fair shares (`{after.policy}`).",
    )
    page.text(headline(rounds))
    page.tiles(
        [
            (f"first token, quiet clients, `{before.policy}`", f"{quiet_ttft(before, 'p50') * 1000:,.0f} ms", "median"),
            (f"first token, quiet clients, `{after.policy}`", f"{quiet_ttft(after, 'p50') * 1000:,.0f} ms", "median"),
            ("adapters registered", after.num_adapters, f"{after.num_adapters_used:,} of them answered in a round"),
            (
                "output and prompt tokens",
                f"{sum(c.tokens for c in after.clients) / after.seconds:,.0f} / s",
                f"all clients, `{after.policy}`; {sum(c.tokens for c in before.clients) / before.seconds:,.0f} / s under "
                f"`{before.policy}`",
            ),
        ]
    )
    page.section(
        "Who was served",
        "Cumulative service of each client: 1 per prompt token, 2 per output token, as VTC counts it. "
        "A line's slope is what the client gets per second.",
    )
    names = [client.name for client in before.clients]
    quiet = names[1:]
    panels = {played.policy: _series(played, names) for played in rounds}
    page.figure(
        small_multiples(panels, x_label="time (s)", y_label="service received", colour_by_name=colours(names)),
        "All four clients, both policies on the same axes.",
    )
    quiet_panels = {played.policy: _series(played, quiet) for played in rounds}
    page.figure(
        small_multiples(
            quiet_panels,
            x_label="time (s)",
            y_label="service received",
            colour_by_name={name: tint for name, tint in colours(names).items() if name in quiet},
        ),
        "The quiet clients alone, enlarged. The better they are served, the more they ask: a person types the next question "
        "when the last one is answered.",
    )
    habit = {plan.name: plan.habit for plan in plans}
    rows: list[list[Cell]] = []
    for index, name in enumerate(names):
        for number, played in enumerate(rounds):
            client = played.clients[index]
            who = [name, habit.get(name, "")] if number == 0 else ["", ""]
            waits = [milliseconds(client.ttft_p50_s), milliseconds(client.ttft_p99_s)]
            rows.append([*who, played.policy, percent(client.share), client.num_requests, client.tokens, *waits])
    page.table(
        ["client", "what it does", "policy", "share of service", "requests", "tokens", "TTFT p50 (ms)", "TTFT p99 (ms)"],
        rows,
        f"{before.seconds:.0f} seconds under each policy, measured at the clients",
    )
    page.text(
        "TTFT is the time from sending a request to its first text. A question that was still waiting when the round ended "
        "counts with the time it had waited, so the longest waits are lower bounds. The greedy client does not stream: its "
        "TTFT is the server's own (`usage.evenflow`), of finished requests. Requests that were cut off: "
        + "; ".join(f"{played.policy} {sum(c.num_cut_off for c in played.clients)}" for played in rounds)
        + "."
    )
    page.section(
        "Same prompt, another adapter",
        "Each answer comes from the same base model with another LoRA adapter, chosen by `model` in the request.",
    )
    for start in range(0, len(samples), _PROMPTS_PER_TABLE):
        shown = samples[start : start + _PROMPTS_PER_TABLE]
        page.table(
            ["adapter", *(sample.prompt for sample in shown)],
            [
                [voice, *(" / ".join(sample.answer_by_voice[voice].splitlines()) for sample in shown)]
                for voice in shown[0].answer_by_voice
            ],
            "greedy decoding, over HTTP",
        )
    page.section("How it was run")
    page.table(
        ["", *[played.policy for played in rounds]],
        [
            ["seconds until the server was ready", *[round(r.start_s, 1) for r in rounds]],
            ["seconds to register the adapters over HTTP", *[round(r.register_s, 1) for r in rounds]],
            ["adapters registered", *[r.num_adapters for r in rounds]],
            ["adapters that answered", *[r.num_adapters_used for r in rounds]],
            ["copies of an adapter into the arena", *[r.num_adapter_loads for r in rounds]],
            ["adapters in the arena at the end", *[r.num_resident for r in rounds]],
        ],
    )
    page.text(
        f"`evenflow demo` took {seconds:.0f} seconds on {platform.machine()} with Python {platform.python_version()}; "
        "server, engine and clients shared its cores. Run it again: the text of the requests is the same, the times are not."
    )
    return page


def _series(played: Round, names: Sequence[str]) -> dict[str, Series]:
    return {c.name: ([t for t, _ in c.timeline], [s for _, s in c.timeline]) for c in played.clients if c.name in names}
