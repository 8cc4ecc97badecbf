"""`evenflow serve` in a process of its own, as users start it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import httpx
import openai


class Served:
    """The process, its address and a client."""

    def __init__(self, *arguments: str, process_group: int | None = None) -> None:
        command = [sys.executable, "-m", "evenflow.cli.main", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=process_group)
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"listening on (http://\S+)")
        self.wait_for(r"(ready): ")
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, pattern: str, is_ended: bool = False) -> str:
        """The first group of the first line that matches. ``is_ended``: the process has ended and said all."""
        deadline = time.monotonic() + 180
        if is_ended:
            self._reader.join(5)
        while time.monotonic() < deadline and (is_ended or self.process.poll() is None):
            for line in list(self.log):
                if found := re.search(pattern, line):
                    return found[1]
            if is_ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} is not in the log:\n{''.join(self.log)}")

    def tokens(self, model: str, prompt: list[int], num_tokens: int = 12) -> list[int]:
        """Greedy output tokens."""
        body = {"model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        answer = self.http.post("/v1/completions", json={**body, "return_token_ids": True})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]

    def metric(self, name: str, **labels: str) -> float:
        return value_of(self.http.get("/metrics").text, name, **labels)

    def metric_by_client(self, name: str, clients: Sequence[str]) -> dict[str, float]:
        """All of them at one time."""
        text = self.http.get("/metrics").text
        return {client: value_of(text, name, client=client) for client in clients}

    def wait_until_idle(self) -> None:
        """Wait for a snapshot in which nothing runs, waits or holds KV pages."""
        deadline = time.monotonic() + 30
        while (
            self.metric("vllm:num_requests_running")
            or self.metric("vllm:num_requests_waiting{")
            or self.metric("evenflow_pages", owner="kv")
        ):
            assert time.monotonic() < deadline, self.http.get("/metrics").text
            time.sleep(0.05)

    def close(self) -> None:
        self.openai.close()
        self.http.close()
        self.process.kill()
        self.process.wait(20)
        self._reader.join(5)


def value_of(text: str, name: str, **labels: str) -> float:
    """The value of one series in Prometheus' text."""
    for line in text.splitlines():
        if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no series {name} {labels}")
