"""Reading traces from CSV files: ``arrival_s,client,input_len,output_len[,adapter]``, with a clear word about every fault."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evenflow.base.errors import ConfigError
from evenflow.bench.replay.trace import Trace

LATEST_S = 1e9
"""Thirty years; beyond it times of steps would be lost in rounding."""
MOST_TOKENS = 10**9

REQUIRED_COLUMNS = ("arrival_s", "client", "input_len", "output_len")


def read_trace(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> Trace:
    """Read a trace. ``progress`` is told the number of rows read now and then.

    Raises ConfigError with the file and line for a missing column, a value that is no number, a negative or unsorted
    time, a length below 1, a nameless client or an empty file.
    """
    name = os.fspath(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            return _read(csv.reader(stream), name, Path(path).stem, progress)
    except OSError as error:
        raise ConfigError(f"cannot read the trace {name}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{name} is not a CSV text file: {error}") from error


def _read(reader: csv._reader, name: str, title: str, progress: Callable[[int], None] | None) -> Trace:  # type: ignore[name-defined]
    header = [column.strip() for column in next(reader, [])]
    missing = [column for column in REQUIRED_COLUMNS if column not in header]
    if missing:
        raise ConfigError(
            f"{name}: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"wanted: {','.join(REQUIRED_COLUMNS)}[,adapter]; found: {','.join(header) or 'nothing'}"
        )
    at, who, size_in, size_out = (header.index(column) for column in REQUIRED_COLUMNS)
    which = header.index("adapter") if "adapter" in header else -1
    times, inputs, outputs = array("d"), array("q"), array("q")
    client_index, adapter_index = array("q"), array("q")
    clients: dict[str, int] = {}
    adapters: dict[str, int] = {}
    before = 0.0
    for row in reader:
        if not row:
            continue
        try:
            arrival_s, input_len, output_len = float(row[at]), int(row[size_in]), int(row[size_out])
            client = row[who].strip()
            adapter = row[which].strip() if which >= 0 else ""
        except (ValueError, IndexError) as error:
            what = "too few cells" if isinstance(error, IndexError) else str(error)
            raise ConfigError(f"{name} line {reader.line_num}: {what}; the row is {','.join(row)!r}") from None
        fault = ""
        if not 0 <= arrival_s <= LATEST_S:
            fault = f"arrival_s is {row[at]}; times are seconds from 0 to {LATEST_S:.0e}"
        elif arrival_s < before:
            fault = f"arrival_s {arrival_s:g} comes after {before:g}; sort the trace by arrival_s"
        elif input_len < 1 or output_len < 1:
            fault = f"input_len is {input_len} and output_len {output_len}; both must be at least 1 token"
        elif max(input_len, output_len) > MOST_TOKENS:
            fault = f"input_len is {input_len} and output_len {output_len}; allowed: at most {MOST_TOKENS:,} tokens"
        elif not client:
            fault = "the client has no name"
        if fault:
            raise ConfigError(f"{name} line {reader.line_num}: {fault}")
        before = arrival_s
        times.append(arrival_s)
        inputs.append(input_len)
        outputs.append(output_len)
        client_index.append(clients.setdefault(client, len(clients)))
        adapter_index.append(adapters.setdefault(adapter, len(adapters)) if adapter else -1)
        if progress is not None and len(times) % 50_000 == 0:
            progress(len(times))
    if not times:
        raise ConfigError(f"{name}: the trace has no requests")
    return Trace(
        name=title,
        clients=tuple(clients),
        arrival_s=np.frombuffer(times, np.float64),
        client_index=np.frombuffer(client_index, np.int64),
        input_len=np.frombuffer(inputs, np.int64),
        output_len=np.frombuffer(outputs, np.int64),
        adapters=tuple(adapters),
        adapter_index=np.frombuffer(adapter_index, np.int64) if adapters else None,
        # differences are taken up to the last arrival, to the whole second as the published scripts do
        horizon_s=math.ceil(times[-1]) or 1.0,
        description=f"{len(times)} requests of {len(clients)} clients",
    )


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace so that ``read_trace`` reads it back. Raises ConfigError with the path and the reason."""
    try:
        with open(path, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([*REQUIRED_COLUMNS, *(["adapter"] if trace.adapters else [])])
            for row in trace:
                cells = [f"{row.arrival_s:.6f}", row.client, row.input_len, row.output_len]
                writer.writerow([*cells, *([row.adapter or ""] if trace.adapters else [])])
    except OSError as error:
        raise ConfigError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error
