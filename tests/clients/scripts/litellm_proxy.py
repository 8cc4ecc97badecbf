"""LiteLLM's proxy in front of the server, and OpenAI's client in front of that."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai
from order import ANSWER, BASE, QUESTION, Order, check_order

PORT = 8138
PROXY = f"http://127.0.0.1:{PORT}"
CONFIG = {
    "model_list": [
        {"model_name": "shop", "litellm_params": {"model": "openai/base", "api_base": BASE + "/v1", "api_key": "x"}},
    ],
    "litellm_settings": {"telemetry": False, "num_retries": 0},
}


def ask() -> None:
    """Everything that goes through it."""
    client = openai.OpenAI(base_url=PROXY + "/v1", api_key="x", max_retries=0, timeout=60)
    asked = {"model": "shop", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    assert ANSWER in client.chat.completions.create(**asked, max_tokens=40).choices[0].message.content
    stream = client.chat.completions.create(**asked, max_tokens=40, stream=True)
    assert ANSWER in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    tools = [{"type": "function", "function": {"name": "price", "parameters": Order.model_json_schema()}}]
    said = client.chat.completions.create(**asked, max_tokens=120, tools=tools, tool_choice="required").choices[0]
    check_order(json.loads(said.message.tool_calls[0].function.arguments))
    parsed = client.chat.completions.parse(**asked, max_tokens=120, response_format=Order).choices[0].message.parsed
    check_order(parsed)
    refused = ""
    try:
        client.chat.completions.create(model="shop", messages=[{"role": "user", "content": "x " * 3000}])
    except openai.BadRequestError as error:
        refused = str(error)
    assert "maximum context length" in refused


def main() -> None:
    """Start it, ask, end it."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps(CONFIG))  # JSON is YAML
        command = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--port", str(PORT)]
        child = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 240
            while True:
                assert child.poll() is None, "the proxy ended"
                assert time.monotonic() < deadline, "the proxy did not start"
                try:
                    if httpx.get(PROXY + "/health/liveliness").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.5)
            ask()
        finally:
            child.terminate()
            child.wait(30)
    print("ok")


main()
