"""A real `evenflow serve` to be hurt: its processes by what they are, how it ends, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

import httpx
import psutil

ENDS_WITHIN_S = 10.0
SMALL = ("--kernels", "torch", "--dtype", "float32", "--memory", "4MiB", "--threads", "1", "--max-num-seqs", "4")


class Victim:
    """One server in a session of its own. ``is_heard``: somebody reads its log. ``limits``: what the shell's ulimit sets."""

    def __init__(
        self, *arguments: str, environment: Mapping[str, str] | None = None, is_heard: bool = True, limits: str = ""
    ) -> None:
        command = [sys.executable, "-m", "evenflow.cli.main", "serve", *arguments, "--port", "0"]
        if limits:
            command = ["sh", "-c", f'ulimit {limits}; exec "$@"', "sh", *command]
        inherited = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={name: value for name, value in inherited.items() if value},
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        if is_heard:
            self._reader.start()
        self._url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            process.kill()
        self.process.kill()
        self.process.wait(20)

    def processes(self) -> list[psutil.Process]:
        """All of its session that still run, the server included; zombies are those that nobody has collected."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid:
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def child(self, what: str, timeout_s: float = 60.0) -> psutil.Process:
        """The process whose command line names the module ``what``; waits until there is one."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for process in self.processes():
                try:
                    if any(what in part for part in process.cmdline()):
                        return process
                except psutil.Error:
                    continue
            assert time.monotonic() < deadline_s, f"no process {what}:\n{self.text}"
            time.sleep(0.02)

    @property
    def engine(self) -> psutil.Process:
        return self.child("evenflow.serving.engine.child")

    @property
    def rank(self) -> psutil.Process:
        return self.child("evenflow.serving.ranks.rank")

    @property
    def reader(self) -> psutil.Process:
        """The first of those that read adapters."""
        return self.child("evenflow.serving.adapters.reading_process")

    @property
    def text(self) -> str:
        return "".join(self.log)

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> str:
        """The first group of the first line of the log that matches."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s and self.process.poll() is None:
            for line in list(self.log):
                if found := re.search(pattern, line):
                    return found[1]
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in the log:\n{self.text}")

    @property
    def url(self) -> str:
        if not self._url:
            self._url = self.wait_for(r"listening on (http://\S+)")
        return self._url

    def ready(self) -> httpx.Client:
        """A client, once it is ready."""
        self.wait_for(r"(ready): ")
        return httpx.Client(base_url=self.url, timeout=60)

    def complete(self, http: httpx.Client, model: str = "base", **body: object) -> httpx.Response:
        return http.post("/v1/completions", json={"model": model, "prompt": [5, 6, 7], "max_tokens": 4, **body})

    def assert_ends(self, reason: str, within_s: float = ENDS_WITHIN_S, began_s: float | None = None) -> None:
        """It ends with a status that is not 0 and its reason as the last word, in time, and nothing of it is left."""
        began_s = time.monotonic() if began_s is None else began_s
        try:
            status = self.process.wait(within_s + 20)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text}\n{self.processes()}") from None
        took_s = time.monotonic() - began_s
        self._reader.join(5)
        assert status not in (0, -signal.SIGKILL), f"status {status}:\n{self.text}"
        assert re.search(reason, self.text.strip().splitlines()[-1]), self.text
        assert took_s < within_s, f"it took {took_s:.1f} s:\n{self.text}"
        self.assert_nothing_left()

    def assert_nothing_left(self, within_s: float = 3.0) -> None:
        """No process of its session runs, and none waits to be collected."""
        deadline_s = time.monotonic() + within_s
        while left := self.processes():
            assert time.monotonic() < deadline_s, f"left behind: {left}"
            time.sleep(0.05)
