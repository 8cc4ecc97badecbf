"""Chat with a running server through the ordinary ``openai`` client; the adapter is the model's name.

make serve                                   # in one terminal: the embedded model on 127.0.0.1:8000
python examples/openai_chat.py               # in another
"""

from __future__ import annotations

import argparse

from openai import OpenAI


def main(base_url: str, model: str, client: str) -> str:
    """Stream an answer, then ask what the server knows of the adapters; returns the answer."""
    # Without keys the server takes the client's name from this header; with keys, from the key alone.
    openai = OpenAI(base_url=base_url, api_key="none", default_headers={"x-evenflow-client": client})
    names = [entry.id for entry in openai.models.list()]
    print("models:", ", ".join(names[:12]))

    text = ""
    stream = openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Where is the lighthouse?"}],
        max_tokens=64,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"\n[{chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens]")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="pirate", help="the base model's name or an adapter's")
    parser.add_argument("--client", default="anna", help="who pays for it")
    args = parser.parse_args()
    main(args.base_url, args.model, args.client)
