"""Transformers' Trainer with compressed gradients: data-parallel ranks that send 4 bits instead of 32.

    torchrun --standalone --nproc-per-node 2 examples/compressed_trainer.py

Trainer wraps the model in DistributedDataParallel through accelerate; the hook goes in when training begins. With accelerate
alone it is one line after ``model = accelerator.prepare(model)``: ``traffic = compress_ddp(model, "ef(int4-g32)")``. A tiny
random model and made-up data, so that it runs anywhere in seconds; put your own in their place.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from evenflow.comm.data_parallel.ddp import compress_ddp
from evenflow.comm.data_parallel.traffic import GRADIENTS, DataParallelTraffic

SPEC = "ef(int4-g32)"
STEPS = 20


class Counting(Dataset[dict[str, torch.Tensor]]):
    """Sequences that count upwards: easy to learn."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(16) + index) % 64
        return {"input_ids": ids, "labels": ids}


class CompressGradients(TrainerCallback):
    """Registers the hook once the Trainer has wrapped its model."""

    def __init__(self) -> None:
        self.traffic: DataParallelTraffic | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wrapped = self.trainer.model_wrapped
        if self.traffic is None and isinstance(wrapped, DistributedDataParallel):
            self.traffic = compress_ddp(wrapped, SPEC)

    trainer: Trainer


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=STEPS,
            ddp_find_unused_parameters=False,
        )
        callback = CompressGradients()
        trainer = Trainer(model=model, args=arguments, train_dataset=Counting(), callbacks=[callback])
        callback.trainer = trainer
        result = trainer.train()
    if arguments.process_index == 0:
        print(f"loss {result.training_loss:.3f} over {STEPS} steps")
        if callback.traffic is None:
            print("one process: nothing was sent. Start it with torchrun.")
        else:
            sent = callback.traffic.ledger.by_site[GRADIENTS].counted / STEPS
            dense = 4 * sum(p.numel() for p in model.parameters()) * 2 * (arguments.world_size - 1) / arguments.world_size
            print(f"{SPEC}: {sent:,.0f} bytes a step and rank, {100 * sent / dense:.0f} % of fp32")


if __name__ == "__main__":
    main()
