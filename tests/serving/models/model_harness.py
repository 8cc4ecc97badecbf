"""A minimal engine: pages, plans and greedy choice by hand, to compare the decoder with its oracle."""

import torch

from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.backends.lora.side_weights import SidedLoRA, SideWeights
from evenflow.serving.backends.lora.torch_lora import TorchLoRA
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.load import load_model
from evenflow.serving.models.model_attention import make_attention
from evenflow.serving.parallel.sharded_lora import ExchangedLoRA

PAGES_PER_SEQUENCE = 8


class Harness:
    """Runs prompts through a decoder with the torch backends, each sequence in pages of its own."""

    def __init__(self, folder, config, dtype=torch.float32, num_pages=512, shard=None, group=None, quantization="none"):
        self.config = config
        self.layout = ArenaLayout.of_shard(shard, dtype.itemsize) if shard else ArenaLayout(config.shape, dtype.itemsize)
        self.storage = Storage(self.layout, num_pages, dtype, torch.device("cpu"))
        self.model = load_model(folder, config, dtype, group=group, shard=shard, quantization=quantization)
        self.attention = make_attention("torch", self.storage, config, config.context_length())
        self.lora: LoRABackend = TorchLoRA(self.storage)
        if shard and shard.exchanged:
            self.lora = ExchangedLoRA(self.lora, shard, group)
        self.lora = SidedLoRA(self.lora, SideWeights(self.storage, config.shape.vocab_size))
        self.model.bind(self.attention, self.lora)
        self._next_page = num_pages

    def load(self, slot, signature, image):
        """Copy an adapter's image into the last free pages and bind ``slot`` to it."""
        self._next_page -= len(image)
        pages = list(range(self._next_page, self._next_page + len(image)))
        self.storage.write_pages(pages, torch.from_numpy(image))
        self.lora.bind(slot, signature, pages)

    def step(self, rows):
        """rows: (sequence number, token ids, start, slot). Returns fp32 logits of each sequence's last row."""
        sequences = []
        for number, tokens, start, slot in rows:
            used = -(-(start + len(tokens)) // self.layout.page_tokens)
            assert used <= PAGES_PER_SEQUENCE
            assert (number + 1) * PAGES_PER_SEQUENCE <= self._next_page, "KV would overwrite adapters"
            pages = list(range(number * PAGES_PER_SEQUENCE, number * PAGES_PER_SEQUENCE + used))
            sample = SampleSpec(GREEDY, [], [], 0)
            sequences.append(PlannedSequence(RequestId(str(number)), tokens, start, pages, slot, sample))
        batch = build_batch(StepPlan(0, tuple(sequences)), self.layout.page_tokens, torch.device("cpu"))
        self.attention.plan(batch)
        self.lora.plan(batch)
        return self.model.logits(self.model.forward(batch)).float()

    def generate(self, prompts, num_tokens, slots=None, chunk=10_000):
        """Greedy. (token ids of each prompt, logits [num_tokens, V] of each prompt)."""
        slots = slots or [-1] * len(prompts)
        tokens = [list(p) for p in prompts]
        done = [0] * len(prompts)
        outputs = [[] for _ in prompts]
        logits = [[] for _ in prompts]
        while any(len(o) < num_tokens for o in outputs):
            rows = []
            for i, known in enumerate(tokens):
                if len(outputs[i]) < num_tokens:
                    rows.append((i, known[done[i] : done[i] + chunk], done[i], slots[i]))
            for (i, part, start, _), row in zip(rows, self.step(rows)):
                done[i] = start + len(part)
                if done[i] == len(tokens[i]):
                    logits[i].append(row)
                    outputs[i].append(int(row.argmax()))
                    tokens[i].append(outputs[i][-1])
        return outputs, [torch.stack(rows) for rows in logits]
