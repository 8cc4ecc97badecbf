"""OpenVINO GenAI's continuous batching behind JSON lines; runs in the peer's own environment, so it imports nothing of ours.

``python openvino_process.py MODEL_FOLDER NUM_STREAMS NUM_THREADS``; questions and answers are those of ``process_peer``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main(argv: list[str]) -> int:
    """Serve requests from stdin until it closes."""
    answers = os.fdopen(os.dup(1), "w")  # what the library itself prints is no answer
    os.dup2(2, 1)
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    folder, streams, threads = argv[0], int(argv[1]), int(argv[2])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_seqs = streams
    scheduler.enable_prefix_caching = False
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
    pipeline: Any = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", options)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if any(request["adapters"]):
            print(json.dumps({"error": "OpenVINO GenAI cannot choose an adapter for each request"}), file=answers, flush=True)
            continue
        config = genai.GenerationConfig(max_new_tokens=request["max_tokens"], do_sample=False, ignore_eos=True)
        inputs = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in request["prompts"]]
        started_s = time.perf_counter()
        results = pipeline.generate(inputs, [config] * len(inputs))
        seconds = time.perf_counter() - started_s
        token_ids = [[int(token) for token in result.m_generation_ids[0]] for result in results]
        print(json.dumps({"seconds": seconds, "token_ids": token_ids}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
