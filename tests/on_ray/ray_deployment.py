"""`evenflow ray serve` in a process of its own, and the processes that it has started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import psutil

OPTIONS = ("--demo", "--cpus-per-replica", "0.1", "--memory", "48MiB", "--threads", "1")


class RayDeployment:
    """The command, its log, and its address once it is ready. Only processes below it are ever touched."""

    def __init__(self, *arguments: str, waits: bool = True) -> None:
        command = [sys.executable, "-m", "evenflow.cli.main", "ray", "serve", *OPTIONS, *arguments]
        environment = {**os.environ, "RAY_DEDUP_LOGS": "0"}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(iter(self.process.stdout.readline, "")), daemon=True)
        self._reader.start()
        self.url = ""
        if waits:
            try:
                self.url = self.wait_for(r"^listening on (http://\S+)")
                self.wait_for(r"^(ready): ")
            except BaseException:
                self.close()
                raise

    def wait_for(self, pattern: str, timeout_s: float = 150) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            is_over = self.process.poll() is not None
            for line in list(self.log):
                if found := re.search(pattern, line):
                    return found[1]
            assert not is_over, "".join(self.log)[-5000:]
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} is not in the log:\n{''.join(self.log)[-5000:]}")

    def processes(self, name: str) -> list[psutil.Process]:
        """Those below the command whose title holds ``name``."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, name: str, index: int = 0) -> None:
        """SIGKILL one of them."""
        self.processes(name)[index].send_signal(signal.SIGKILL)

    def wait_until(self, condition, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "".join(self.log)[-4000:]
            time.sleep(0.1)

    def complete(self, prompt: str, model: str = "base", client: str = "c", max_tokens: int = 8, timeout_s: float = 60, **more):
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "user": client,
        }
        return httpx.post(f"{self.url}/v1/completions", json={**body, **more}, timeout=timeout_s)

    def close(self) -> str:
        """End it as Ctrl-C does; returns its log."""
        children = []
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=15)
        self.left_over = [process.pid for process in alive]
        for process in alive:
            process.kill()
        self._reader.join(5)
        return "".join(self.log)
