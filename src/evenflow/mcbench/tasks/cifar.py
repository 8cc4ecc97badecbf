"""CIFAR-10 and CIFAR-100 from local files, in the layouts in which they are handed out. Nothing is ever downloaded.

* the authors' binary version: ``data_batch_*.bin`` and ``test_batch.bin`` (CIFAR-10), ``train.bin`` and ``test.bin``
  (CIFAR-100, fine labels), in the task's folder or in the folder that the archive makes;
* parquet as in the Hugging Face hub: ``train*.parquet``, ``test*.parquet`` with ``img`` and ``label`` (or ``fine_label``);
* image folders: ``train/LABEL/*.png``, ``test/LABEL/*.png``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenflow.base.errors import ConfigError
from evenflow.mcbench.tasks.local_files import parquet_rows, verify
from evenflow.mcbench.tasks.task import Split, Task

_CLASSES = {"cifar10": 10, "cifar100": 100}
_BINARY = {
    "cifar10": ("cifar-10-batches-bin", {"train": "data_batch_*.bin", "test": "test_batch.bin"}, 1),
    "cifar100": ("cifar-100-binary", {"train": "train.bin", "test": "test.bin"}, 2),
}
_PIXELS = 3 * 32 * 32
Image = tuple[np.ndarray, int]
"""Pixels [3, 32, 32] uint8 and a label."""


def load_cifar(name: str, folder: Path) -> Task:
    """Return a CIFAR task of a folder. Raises ConfigError naming the layouts that are read."""
    digest = hashlib.sha256()
    splits = []
    for split in ("train", "test"):
        images = list(_images(name, folder, split))
        if not images:
            raise ConfigError(f"task {name}: the {split} split in {folder} has no images")
        pixels = np.stack([image for image, _ in images])
        labels = torch.tensor([label for _, label in images])
        if int(labels.max()) >= _CLASSES[name] or int(labels.min()) < 0:
            raise ConfigError(f"task {name}: labels up to {int(labels.max())}; allowed: 0 to {_CLASSES[name] - 1}")
        digest.update(pixels.tobytes() + labels.numpy().tobytes())
        splits.append(Split({"pixel_values": torch.from_numpy(pixels).float() / 127.5 - 1.0}, labels))
    return Task(name, "image", splits[0], splits[1], _CLASSES[name], ("accuracy",), sha256=digest.hexdigest())


def _images(name: str, folder: Path, split: str) -> Iterator[Image]:
    inner, patterns, label_bytes = _BINARY[name]
    for place in (folder / inner, folder):
        if paths := sorted(place.glob(patterns[split])):
            for path in paths:
                yield from _binary(path, label_bytes)
            return
    if paths := sorted(folder.glob(f"{split}*.parquet")):
        for row in parquet_rows(paths):
            yield _row(row, paths[0])
        return
    if (folder / split).is_dir():
        yield from _folders(folder / split)
        return
    raise ConfigError(
        f"task {name}: no {split} split in {folder}; allowed: {patterns[split]} (there or in {inner}), {split}*.parquet, "
        f"or {split}/LABEL/*.png"
    )


def _binary(path: Path, label_bytes: int) -> Iterator[Image]:
    verify(path)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    if data.size == 0 or data.size % (label_bytes + _PIXELS):
        raise ConfigError(f"{path}: {data.size} bytes; allowed: whole records of {label_bytes + _PIXELS}")
    for record in data.reshape(-1, label_bytes + _PIXELS):
        yield record[label_bytes:].reshape(3, 32, 32), int(record[label_bytes - 1])


def _row(row: dict[str, Any], path: Path) -> Image:
    image = row.get("img", row.get("image"))
    label = row.get("label", row.get("fine_label"))
    if image is None or label is None:
        raise ConfigError(f"{path} has the columns {', '.join(row)}; it needs img and label (or fine_label)")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1), int(label)


def _folders(folder: Path) -> Iterator[Image]:
    from PIL import Image as Picture

    labels = sorted(path for path in folder.iterdir() if path.is_dir())
    for number, label in enumerate(labels):
        for path in sorted(label.glob("*.png")):
            yield np.asarray(Picture.open(path).convert("RGB")).transpose(2, 0, 1), number
