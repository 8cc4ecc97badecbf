"""What scheduling costs per step, by how many requests wait: plan and commit of the shipped scheduler, nothing else.

    python benchmarks/recipes/scheduling.py --hardware NAME [--step-ms 12] [--steps 480] [--repeats 5]

Slots are full and requests end all the time, so steps decode, start, prefill in chunks, load and evict adapters.
Every waiting client has one request; sizes are run in turn (A B C A B C ...). A run with another number waiting
must cost the same: planning is O(running). CPU time is measured, so that a busy machine does not count.
``--step-ms`` is the step that a share is taken of. The default is what reading the bf16 weights of a 135 M model
once takes at 22 GB/s; a decode step of such a model cannot be shorter there. Writes
benchmarks/results/scheduling--<hardware>.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

from evenflow.bench.harness import interleave, summary, write_result
from evenflow.fairness import ClientQueues, create_policy
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.plan import SampledToken, StepResult
from evenflow.serving.core.request import AdapterDigest, ClientId, FinishReason, Request, RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.arena import Arena
from evenflow.serving.memory.residency import Residency
from evenflow.serving.scheduler import Scheduler, SchedulerLimits

NUM_PROMPT, NUM_OUTPUT, NUM_ADAPTERS, ADAPTER_PAGES = 64, 48, 200, 7
WAITING = (0, 100, 1_000, 10_000, 100_000)
POLICIES = ("fcfs", "vtc")


class Load:
    """A scheduler that is kept full: for every request that ends another one of a new client arrives."""

    def __init__(self, policy: str, num_running: int, num_waiting: int) -> None:
        queues = ClientQueues()
        arena = Arena(num_running * 12 + 20 * ADAPTER_PAGES)
        self.scheduler = Scheduler(
            policy=create_policy(policy, queues=queues),
            queues=queues,
            arena=arena,
            residency=Residency(arena, lambda digest: AdapterRecord(digest, AdapterSignature(()), ADAPTER_PAGES, 1)),
            limits=SchedulerLimits(max_num_seqs=num_running, max_batch_tokens=512, max_model_len=512),
        )
        self._num_requests = 0
        for _ in range(num_running + num_waiting):
            self.arrive()

    def arrive(self) -> None:
        """One more request, of a new client."""
        i = self._num_requests
        self._num_requests += 1
        self.scheduler.add(
            Request(
                RequestId(f"r{i}"),
                ClientId(f"c{i}"),
                [0] * NUM_PROMPT,
                GREEDY,
                float(i),
                AdapterDigest(f"a{i * 7919 % NUM_ADAPTERS}"),
                max_output_tokens=NUM_OUTPUT - i % 16,
            ),
            float(i),
        )

    def step(self) -> float:
        """One step; seconds spent in plan and commit."""
        start = time.process_time()
        plan = self.scheduler.plan(0.0)
        planned = time.process_time()
        assert plan is not None
        tokens = {s.request_id: SampledToken(0) for s in plan.sequences if s.sample is not None}
        finished = {}
        for request_id in tokens:
            request = self.scheduler.get(request_id)
            assert request is not None
            if request.num_output_tokens + 1 >= request.max_output_tokens:
                finished[request_id] = FinishReason.LENGTH
        result = StepResult(plan.step, tokens, {})
        committing = time.process_time()
        self.scheduler.commit(result, finished, 0.0)
        end = time.process_time()
        for _ in finished:
            self.arrive()
        return planned - start + end - committing


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--step-ms", type=float, default=12.0)
    parser.add_argument("--running", type=int, default=16)
    parser.add_argument("--steps", type=int, default=480, help="steps per sample; a sample is their mean")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    loads = {f"{policy}, {n} waiting": Load(policy, options.running, n) for policy in POLICIES for n in WAITING}

    def sample(load: Load) -> float:
        return statistics.fmean(load.step() for _ in range(options.steps)) * 1e6

    samples = interleave({name: partial(sample, load) for name, load in loads.items()}, options.repeats)
    results = {}
    print(f"{'':24}{'us per step':>12}{'p10':>8}{'p90':>8}{'share':>8}")
    for name, values in samples.items():
        loads[name].scheduler.check_integrity()
        numbers = summary(values)
        share = numbers["median"] / (options.step_ms * 1e3)
        results[name] = {**numbers, "share_of_step": share, "samples_us": values}
        print(f"{name:24}{numbers['median']:12.0f}{numbers['p10']:8.0f}{numbers['p90']:8.0f}{share:8.2%}")
    parameters = {key: value for key, value in vars(options).items() if key not in ("out", "hardware")}
    parameters |= {"num_prompt": NUM_PROMPT, "num_output": NUM_OUTPUT, "num_adapters": NUM_ADAPTERS}
    write_result(options.out / f"scheduling--{options.hardware}.json", "scheduling", parameters, results)


if __name__ == "__main__":
    main()
