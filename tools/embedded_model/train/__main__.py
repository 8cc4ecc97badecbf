"""Train the embedded model and its adapters: ``python -m embedded_model.train --out DIR``.

Everything comes from the seed: text, tokenizer, base model, adapters. On two cores it takes less than half an hour
(see assets/TRAINING.json for what it took). Interrupt it at any time and start it again: it goes on from the
checkpoints in ``--work``. Needs ``pip install evenflow[train]``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer

from embedded_model.tidewick.corpus import END, PAD, base_text, conversation, instructed_text, practice_text, revision_text
from embedded_model.train.evaluate import accuracy_by_kind
from embedded_model.train.loop import Draw, Progress, train
from embedded_model.train.recipes import ADAPTERS, ALL_LINEAR, MODEL, REVISION, TOWN, VOICES, AdapterRecipe, TrainingSchedule
from embedded_model.train.tokenizer import save_tokenizer, train_tokenizer


def _new_model(tokenizer: Tokenizer, seed: int) -> Any:
    torch.manual_seed(seed)
    special: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    config: Any = transformers.LlamaConfig(vocab_size=tokenizer.get_vocab_size(), **special, **MODEL)
    return transformers.LlamaForCausalLM(config)


def _town_draw(step: int) -> Draw:
    return practice_text if TOWN.practice_from is not None and step >= TOWN.practice_from else base_text


def _train_base(tokenizer: Tokenizer, work: Path, seed: int) -> tuple[Any, Progress]:
    """Train the base model in its three runs; return it and the progress of all together."""
    model = _new_model(tokenizer, seed)
    runs: tuple[tuple[str, TrainingSchedule, Callable[[int], Draw]], ...] = (
        ("base", TOWN, _town_draw),
        ("voices", VOICES, lambda _: instructed_text),
        ("revision", REVISION, lambda _: revision_text),
    )
    whole = Progress()
    for name, schedule, draw_at in runs:
        done = train(model, tokenizer, draw_at, schedule, f"{seed} {name}", work / f"{name}.pt", name)
        whole.losses += [[whole.step + step, loss] for step, loss in done.losses]
        whole.step += done.step
        whole.seconds += done.seconds
    return model, whole


def _save_base(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the base model in bf16, as an ordinary Hugging Face folder."""
    model.to(torch.bfloat16)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.token_to_id(END), pad_token_id=tokenizer.token_to_id(PAD), bos_token_id=None, do_sample=False
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, MODEL["max_position_embeddings"])
    for file in folder.iterdir():
        file.chmod(0o644)


def _load_base(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _train_adapter(
    recipe: AdapterRecipe, base: Path, out: Path, work: Path, tokenizer: Tokenizer, seed: int
) -> tuple[Any, Progress]:
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **recipe.lora)
    model = peft.get_peft_model(_load_base(base), config)
    draw: Draw = partial(conversation, voice=recipe.voice)
    progress = train(
        model, tokenizer, lambda _: draw, recipe.schedule, f"{seed} {recipe.voice}", work / f"{recipe.voice}.pt", recipe.voice
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(out / recipe.voice))
    _make_portable(out / recipe.voice)
    return model.to(torch.bfloat16).float(), progress


def _make_portable(folder: Path) -> None:
    """Take out what belongs to this machine or run: the base's path, the order of a set, peft's model card."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    config["target_modules"] = [name for name in ALL_LINEAR if name in config["target_modules"]]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def _measured(progress: Progress, model: Any, tokenizer: Tokenizer, voice: str, per_kind: int, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    accuracy, asked, wrong = accuracy_by_kind(model, tokenizer, voice, per_kind, seed)
    total = sum(asked.values())
    mean = sum(accuracy[k] * asked[k] for k in asked) / total
    print(
        f"{voice}: {mean:.1%} of {total} held-out questions right; " + ", ".join(f"{k} {v:.0%}" for k, v in accuracy.items()),
        flush=True,
    )
    for question, answer in wrong[:8]:
        print(f"    wrong: {question} -> {answer!r}", flush=True)
    return {
        "seconds": round(progress.seconds, 1),
        "evaluation_seconds": round(time.monotonic() - began, 1),
        "losses": progress.losses,
        "accuracy": round(mean, 4),
        "accuracy_by_kind": accuracy,
        "asked_by_kind": asked,
    }


def main() -> None:
    """Train what is not trained yet, measure it, and write TRAINING.json."""
    parser = argparse.ArgumentParser(prog="python -m embedded_model.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for base/, adapters/ and TRAINING.json")
    parser.add_argument("--work", type=Path, default=Path("build/demo-training"), help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--per-kind", type=int, default=24, help="held-out questions per kind and voice")
    parser.add_argument("--note", default="", help="kept in the record: what a reader should know of the machine")
    parser.add_argument("--voices", nargs="*", help="train these adapters only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    result_path: Path = args.out / "TRAINING.json"
    result: dict[str, Any] = json.loads(result_path.read_text()) if result_path.exists() else {"runs": {}}
    result["seed"] = args.seed
    modules = {"torch": torch, "transformers": transformers, "peft": peft, "tokenizers": tokenizers}
    result["versions"] = {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}
    result["threads"] = args.threads
    result["note"] = args.note or result.get("note", "")

    def note(name: str, run: dict[str, Any]) -> None:
        result["runs"][name] = run
        result["total_seconds"] = round(sum(r["seconds"] + r["evaluation_seconds"] for r in result["runs"].values()), 1)
        args.out.mkdir(parents=True, exist_ok=True)
        result_path.write_text(json.dumps(result, indent=1) + "\n")

    base_folder: Path = args.out / "base"
    tokenizer = train_tokenizer(args.seed)
    if not (base_folder / "model.safetensors").exists():
        model, progress = _train_base(tokenizer, args.work, args.seed)
        result["parameters"] = sum(p.numel() for p in model.parameters())
        _save_base(model, tokenizer, base_folder)
        tokens = sum(run.steps * run.rows * run.length for run in (TOWN, VOICES, REVISION))
        measured = _measured(progress, _load_base(base_folder), tokenizer, "plain", args.per_kind, args.seed)
        note("plain", {"tokens": tokens} | measured)
    for recipe in ADAPTERS:
        if (args.voices and recipe.voice not in args.voices) or (
            args.out / "adapters" / recipe.voice / "adapter_config.json"
        ).exists():
            continue
        adapted, progress = _train_adapter(recipe, base_folder, args.out / "adapters", args.work, tokenizer, args.seed)
        tokens = recipe.schedule.steps * recipe.schedule.rows * recipe.schedule.length
        measured = _measured(progress, adapted, tokenizer, recipe.voice, args.per_kind, args.seed)
        note(recipe.voice, {"lora": recipe.lora, "tokens": tokens} | measured)
    print(f"done in {result['total_seconds']:.0f} s of training and measuring")


if __name__ == "__main__":
    main()
