"""The reference of /metrics: every figure with its type, labels and help, from its one declaration."""

from __future__ import annotations

from evenflow.serving.server.metrics.reference import ReferenceRow, reference_rows
from reference.markdown import cell, code, page, table

INTRO = """\
Every metric of `GET /metrics`, which is Prometheus' text format. Histograms have `_bucket`, `_sum` and
`_count` behind their names. [Metrics and alerts](../operate/metrics.md) says what to look at."""

SECTIONS = (
    ("vLLM's names", "vllm:"),
    ("Our own", "evenflow_"),
    ("The server's process", ""),
)
"""Title -> how the names of a section begin; the last one takes what is left."""


def metrics_page() -> str:
    """The page, one section for each family of names."""
    waiting = reference_rows()
    parts = []
    for title, beginning in SECTIONS:
        rows = [row for row in waiting if row.name.startswith(beginning)]
        waiting = [row for row in waiting if not row.name.startswith(beginning)]
        parts.append(f"## {title}\n\n" + table(["metric", "type", "labels", "what it counts"], map(_row, rows)))
    return page("Metrics", INTRO, *parts)


def _row(row: ReferenceRow) -> list[str]:
    return [code(row.name), row.kind, ", ".join(code(label) for label in row.labels), cell(row.help)]
