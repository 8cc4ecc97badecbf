"""OpenVINO GenAI as a peer, in process: `openvino` (bf16), `openvino:int8`, `openvino:int4`; one model, no adapters."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from evenflow.bench.peers import openvino_process
from evenflow.bench.peers.peer import PeerFailed, PeerMissing, Setup, converted_path, environment_python
from evenflow.bench.peers.process_peer import ProcessPeer

_FORMATS = {"": "fp16", "int8": "int8", "int4": "int4"}
"""What its exporter calls them; fp16 weights are computed with in bf16, as its CPU plug-in chooses."""
_EXPORT_TIMEOUT_S = 900


class OpenVinoPeer(ProcessPeer):
    """The model is exported by optimum, once."""

    def __init__(self, form: str) -> None:
        super().__init__()
        if form not in _FORMATS:
            raise PeerMissing(f"openvino is compared in bf16, int8 and int4, not {form}")
        self.name = f"openvino:{form}" if form else "openvino"
        self._format = _FORMATS[form]

    def command(self, setup: Setup) -> tuple[Sequence[str], Mapping[str, str]]:
        """See ProcessPeer."""
        python = environment_python(setup.cache, "openvino")
        folder = converted_path(setup, setup.model, f"openvino-{self._format}")
        if not (folder / "openvino_model.bin").exists():
            _export(python, setup.model, folder, self._format)
        words = [str(python), openvino_process.__file__, str(folder), str(setup.num_streams), str(setup.num_threads)]
        return words, {"PYTHONPATH": ""}


def _export(python: Path, model: Path, folder: Path, weight_format: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    words = [
        str(python.with_name("optimum-cli")),
        "export",
        "openvino",
        "--model",
        str(model),
        "--weight-format",
        weight_format,
    ]
    words += ["--task", "text-generation-with-past", str(partial)]
    variables = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_EXPORT_TIMEOUT_S, env=variables, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"the export for OpenVINO failed: {error}") from None
    if done.returncode or not (partial / "openvino_model.bin").exists():
        raise PeerFailed(f"the export for OpenVINO failed: {(done.stderr or done.stdout)[-600:]}")
    partial.rename(folder)
