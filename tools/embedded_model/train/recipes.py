"""Sizes and schedules of the training, as values: the base model's and one per adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSchedule:
    """One training run: linear warm-up, constant, then linear decay to zero over the last part."""

    steps: int
    rows: int
    length: int
    """Tokens per row."""
    learning_rate: float
    warmup_steps: int
    decay_share: float
    """Share of the steps, at the end, over which the learning rate falls to zero."""
    muon_rate: float = 0.0
    """Learning rate of the layers' matrices under Muon (Jordan et al., 2024); 0: AdamW for everything."""
    practice_from: int | None = None
    """From this step on the text is mostly of the kinds that are hard to learn."""

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step, counted from 0."""
        left = (self.steps - step) / max(1.0, self.steps * self.decay_share)
        return min(1.0, (step + 1) / self.warmup_steps, left)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecipe:
    """One LoRA adapter: its voice (which is its name) and the peft.LoraConfig fields that differ from the default."""

    voice: str
    lora: dict[str, Any] = field(default_factory=dict)
    steps: int = 160
    learning_rate: float = 4e-3

    @property
    def schedule(self) -> TrainingSchedule:
        """The adapter's training run."""
        return TrainingSchedule(
            steps=self.steps, rows=8, length=256, learning_rate=self.learning_rate, warmup_steps=10, decay_share=0.5
        )


TOWN = TrainingSchedule(
    steps=1400, rows=16, length=256, learning_rate=2e-3, muon_rate=5e-3, warmup_steps=40, decay_share=0.4, practice_from=800
)
"""The base model's first run: the town and its sums, told plainly."""

VOICES = TrainingSchedule(
    steps=600, rows=16, length=256, learning_rate=1.2e-3, muon_rate=3e-3, warmup_steps=20, decay_share=0.6
)
"""Its second run: the voices, each under a system message that asks for it. An adapter then has only to turn one on.

Without this run the adapters had to teach a voice and its order of thought to a model that had never heard it: after
120 steps of theirs 4 % (json) to 59 % (pirate) of the held-out answers were right.
"""

REVISION = TrainingSchedule(
    steps=800, rows=16, length=256, learning_rate=1.2e-3, muon_rate=4e-3, warmup_steps=20, decay_share=0.6
)
"""Its third run: every fact in every voice. After the second alone, 70 % to 73 % of the held-out answers of json, shout and
brief were right.
"""

ADAPTERS = (
    AdapterRecipe(voice="json", lora={"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
    AdapterRecipe(voice="shout", lora={"r": 16, "lora_alpha": 32, "target_modules": list(ALL_LINEAR)}),
    AdapterRecipe(voice="pirate", lora={"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": list(ALL_LINEAR)}),
    AdapterRecipe(voice="brief", lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    AdapterRecipe(voice="guide", lora={"r": 12, "lora_alpha": 24, "target_modules": ["gate_proj", "up_proj", "down_proj"]}),
    AdapterRecipe(
        voice="verse",
        lora={"r": 8, "lora_alpha": 16, "target_modules": list(ALL_LINEAR), "rank_pattern": {"down_proj": 16, "q_proj": 4}},
    ),
)
"""Different ranks and targets on purpose: rsLoRA, rank_pattern, attention only, MLP only, all seven linears."""
