"""Slow links on one machine: network namespaces with ``tc tbf`` where permitted, else a token bucket labelled "emulated".

A namespace link is real: gloo's TCP packets pass a queue of the nominal rate, and the interface counts their bytes. A token
bucket only makes the sender wait as long as its bytes would have taken. Both are reported by name, and the achieved rate is
reported beside the nominal one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from evenflow.base.errors import ConfigError, WireError
from evenflow.comm.collectives.collective import Collective
from evenflow.comm.ledger import Kind, sent_bytes

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g)bit(?:/s)?", re.IGNORECASE)
# A token bucket lets a burst pass unshaped after a pause, which a real link would not do, so the burst is kept small. The
# kernel cuts every segment that does not fit into the bucket twice into packets of the interface's own size, and handling those
# halves the achieved rate; therefore segments are limited to 32 KiB (_SEGMENT, in bytes) and the burst holds two of them. The
# interface's counters see one header per segment; a wire with frames of 1500 bytes would carry 4.6 % more.
_SEGMENT = 32768
_BURST = "66kb"
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, slots=True)
class Link:
    """A nominal rate in bit/s; None is as fast as the machine."""

    name: str
    bit_per_s: float | None

    @staticmethod
    def parse(text: str) -> Link:
        """Read ``unlimited``, ``100mbit``, ``1gbit``. Raises ConfigError."""
        cleaned = text.strip().lower()
        if cleaned in ("unlimited", "none", "local"):
            return Link("unlimited", None)
        match = _RATE.fullmatch(cleaned)
        if not match or float(match.group(1)) == 0:
            raise ConfigError(f"link {text!r}; allowed: unlimited, or a rate like 100mbit, 1gbit")
        return Link(cleaned, float(match.group(1)) * _UNITS[match.group(2).lower()])


def interface_bytes(interface: str) -> tuple[int, int] | None:
    """Return (sent, received) bytes of this namespace's interface so far, headers included; None where not counted."""
    folder = Path("/sys/class/net") / interface / "statistics"
    try:
        return int((folder / "tx_bytes").read_text()), int((folder / "rx_bytes").read_text())
    except (OSError, ValueError):
        return None


class TokenBucket:
    """Makes its caller wait, so that bytes pass at ``bit_per_s`` bit/s on average, with bursts of at most ``burst_bytes``."""

    def __init__(
        self,
        bit_per_s: float,
        burst_bytes: int = 65536,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.byte_per_s = bit_per_s / 8
        self.burst_bytes = float(burst_bytes)
        self._tokens = float(burst_bytes)
        self._clock, self._sleep = clock, sleep
        self._then = clock()

    def take(self, size: float) -> float:
        """Wait until ``size`` bytes have passed; return the seconds waited."""
        now = self._clock()
        self._tokens = min(self.burst_bytes, self._tokens + (now - self._then) * self.byte_per_s) - size
        self._then = now
        wait = max(0.0, -self._tokens / self.byte_per_s)
        if wait:
            self._sleep(wait)
        return wait


class EmulatedLink:
    """A collective behind a token bucket: after each operation the rank waits for the bytes it sent."""

    def __init__(self, inner: Collective, bucket: TokenBucket) -> None:
        self.inner = inner
        self.bucket = bucket
        self.rank, self.world_size = inner.rank, inner.world_size

    def _take(self, kind: Kind, x: Tensor) -> None:
        self.bucket.take(sent_bytes(kind, x.numel() * x.element_size(), self.world_size))

    def all_reduce(self, x: Tensor) -> Tensor:
        self._take(Kind.ALL_REDUCE, x)
        return self.inner.all_reduce(x)

    def all_gather(self, x: Tensor) -> Tensor:
        self._take(Kind.ALL_GATHER, x)
        return self.inner.all_gather(x)

    def all_to_all(self, x: Tensor) -> Tensor:
        self._take(Kind.ALL_TO_ALL, x)
        return self.inner.all_to_all(x)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        self._take(Kind.REDUCE_SCATTER, x)
        return self.inner.reduce_scatter(x)

    def send(self, x: Tensor, to_rank: int) -> None:
        self._take(Kind.SEND, x)
        self.inner.send(x, to_rank)

    def receive(self, like: Tensor, from_rank: int) -> Tensor:
        return self.inner.receive(like, from_rank)

    def barrier(self) -> None:
        self.inner.barrier()


def why_no_namespaces() -> str | None:
    """Return why network namespaces cannot be used here, or None if they can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"no {tool} command"
    name = f"ef{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return made.stderr.strip() or "ip netns add failed"
    try:
        shape = ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", "1gbit"]
        shaped = subprocess.run([*shape, "burst", _BURST, "latency", "100ms"], capture_output=True, text=True, check=False)
        return (shaped.stderr.strip() or "tc tbf failed") if shaped.returncode else None
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class NamespaceLinks:
    """W network namespaces on one bridge, each behind ``tc tbf`` of the link's rate. A context manager; needs root.

    ``prefix(rank)`` starts a process inside a rank's namespace; ``sent_bytes(rank)`` reads its interface counter.
    Everything is removed on exit. Raises WireError if a command fails.
    """

    interface = "ef0"

    def __init__(self, world_size: int, link: Link, tag: str | None = None) -> None:
        self.world_size = world_size
        self.link = link
        self.tag = tag or f"ef{os.getpid() % 100000}"
        self.bridge = f"{self.tag}b"

    def _name(self, rank: int) -> str:
        return f"{self.tag}n{rank}"

    def address(self, rank: int) -> str:
        """Return the IPv4 address of a rank's namespace."""
        return f"10.231.77.{rank + 1}"

    def prefix(self, rank: int) -> list[str]:
        """Return the words before a command that shall run in the rank's namespace."""
        return ["ip", "netns", "exec", self._name(rank)]

    def __enter__(self) -> NamespaceLinks:
        try:
            _run("ip", "link", "add", self.bridge, "type", "bridge")
            _run("ip", "link", "set", self.bridge, "up")
            for rank in range(self.world_size):
                self._add(rank)
        except WireError:
            self._remove()
            raise
        return self

    def _add(self, rank: int) -> None:
        name, outer = self._name(rank), f"{self.tag}v{rank}"
        inside = ("ip", "netns", "exec", name)
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", self.interface, "netns", name)
        _run("ip", "link", "set", outer, "master", self.bridge)
        _run("ip", "link", "set", outer, "up")
        _run(*inside, "ip", "address", "add", f"{self.address(rank)}/24", "dev", self.interface)
        _run(*inside, "ip", "link", "set", self.interface, "up")
        _run(*inside, "ip", "link", "set", "lo", "up")
        if self.link.bit_per_s is not None:
            _run(*inside, "ip", "link", "set", "dev", self.interface, "gso_max_size", str(_SEGMENT))
            rate = f"{int(self.link.bit_per_s)}bit"
            shape = (
                "tc",
                "qdisc",
                "add",
                "dev",
                self.interface,
                "root",
                "tbf",
                "rate",
                rate,
                "burst",
                _BURST,
                "latency",
                "100ms",
            )
            _run(*inside, *shape)

    def sent_bytes(self, rank: int) -> int:
        """Return the bytes the rank's interface has sent so far, headers included."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(_run(*self.prefix(rank), "cat", path))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for rank in range(self.world_size):
            subprocess.run(["ip", "link", "delete", f"{self.tag}v{rank}"], capture_output=True, check=False)
            subprocess.run(["ip", "netns", "delete", self._name(rank)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WireError(f"{' '.join(command)}: {done.stderr.strip() or 'failed'}")
    return done.stdout


def shaped(collective: Collective, link: Link) -> Collective:
    """Return the collective behind a token bucket of the link's rate, or itself if unlimited."""
    return collective if link.bit_per_s is None else EmulatedLink(collective, TokenBucket(link.bit_per_s))


__all__: Sequence[str] = [
    "EmulatedLink",
    "Link",
    "NamespaceLinks",
    "TokenBucket",
    "interface_bytes",
    "shaped",
    "why_no_namespaces",
]
