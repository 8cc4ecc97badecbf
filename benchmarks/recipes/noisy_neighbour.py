"""A quiet client behind a greedy one: how long until its first token, in steps and in seconds.

    python benchmarks/recipes/noisy_neighbour.py --json benchmarks/results/noisy_neighbour--MACHINE.json

One client queues 64 requests (64 + 48 tokens); four steps later, when 16 slots are full, a quiet client sends one.
The 135 M random model, bf16. With 16 slots the quiet request waits for a slot that frees; with 80 there is room at once.
One engine message is one step, so steps are counted where they arrive. Policies run in turn: A B A B.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from evenflow import SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.client.messages import Outputs, Submit
from evenflow.serving.client.process import EngineConnection
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

QUEUED, PROMPT_TOKENS, OUTPUT_TOKENS, HEAD_START_STEPS = 64, 64, 48, 4
SLOTS = (16, 80)


class Scenario:
    """One engine, one policy. Each run is a fresh flood; the engine is idle again afterwards."""

    def __init__(self, model: Path, policy: str, num_slots: int) -> None:
        config = EngineConfig(
            model=model, policy=policy, max_num_seqs=num_slots, memory_bytes=1 << 30, enable_prefix_caching=False
        )
        self._connection = EngineConnection(config)
        self._connection.wait_until_ready()
        self._rounds = 0
        self.steps_outright: list[int] = []
        self.steps_after_slot: list[int] = []

    def run(self) -> float:
        """Seconds to the quiet client's first token."""
        self._rounds += 1
        prompts = np.random.default_rng(self._rounds).integers(1, 500, (QUEUED + 1, PROMPT_TOKENS)).tolist()
        sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        waiting = set()
        for i in range(QUEUED):
            waiting.add(f"greedy-{self._rounds}-{i}")
            self._connection.send(Submit(f"greedy-{self._rounds}-{i}", "greedy", prompts[i], sampling))
        sent_s, steps_before = 0.0, 0
        quiet = f"quiet-{self._rounds}"
        is_sent, first_token_s = False, None
        steps, steps_after_slot, has_slot = 0, 0, False
        while waiting:
            if not is_sent and steps_before >= HEAD_START_STEPS:
                is_sent, sent_s = True, time.monotonic()
                waiting.add(quiet)
                self._connection.send(Submit(quiet, "quiet", prompts[QUEUED], sampling))
            message = self._connection.receive(0.005)
            if not isinstance(message, Outputs) or not message.outputs:
                continue
            steps_before += 1
            if is_sent and first_token_s is None:
                steps += 1
                steps_after_slot += has_slot
                has_slot = has_slot or any(output.finish_reason is not None for output in message.outputs)
            for output in message.outputs:
                assert output.error_type is None, output.error
                if output.request_id == quiet and output.token_ids and first_token_s is None:
                    first_token_s = time.monotonic()
                if output.finish_reason is not None:
                    waiting.discard(output.request_id)
        assert first_token_s is not None
        self.steps_outright.append(steps)
        self.steps_after_slot.append(steps_after_slot)
        return first_token_s - sent_s

    def close(self) -> None:
        self._connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, object] = {"unit": "seconds from sending to the quiet client's first token"}
    with tempfile.TemporaryDirectory() as folder:
        import torch

        model = Path(folder) / "model"
        make_model(model, LLAMA_135M, dtype=torch.bfloat16)
        for num_slots in SLOTS:
            scenarios = {policy: Scenario(model, policy, num_slots) for policy in ("fcfs", "vtc")}
            try:
                samples = interleave({policy: scenario.run for policy, scenario in scenarios.items()}, args.repeats)
            finally:
                for scenario in scenarios.values():
                    scenario.close()
            row = {
                policy: {
                    **summary(samples[policy]),
                    "samples": samples[policy],
                    "steps_to_first_token": scenario.steps_outright,
                    "steps_from_first_free_slot_to_first_token": scenario.steps_after_slot,
                }
                for policy, scenario in scenarios.items()
            }
            results[f"{num_slots} slots"] = {**row, "fcfs / vtc": round(paired_ratio(samples["fcfs"], samples["vtc"]), 2)}
            for policy in scenarios:
                print(num_slots, "slots", policy, {k: v for k, v in row[policy].items() if k != "samples"})
            print(num_slots, "slots fcfs / vtc", results[f"{num_slots} slots"]["fcfs / vtc"])  # type: ignore[index]
    parameters = {
        "queued": QUEUED,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "head_start_steps": HEAD_START_STEPS,
    }
    write_result(args.json, "noisy_neighbour", parameters, results)


if __name__ == "__main__":
    main()
