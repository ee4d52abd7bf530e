"""Tell a whole checkpoint of a LoRA run from a damaged one, without loading any pickle."""
from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import safe_open

# What the Trainer writes for a LoRA run and needs to go on exactly; the state comes last. training_args.bin is not read.
NEEDED = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json")


def last_complete_checkpoint(folder: str | Path) -> tuple[Path | None, str]:
    """Return the newest whole checkpoint in a run's folder, or None, and one sentence on the newer ones that are damaged.

    The sentence is empty if nothing is damaged. Nothing is changed or removed. For `train(resume_from_checkpoint=...)`.
    """
    numbered = {int(found.group(1)): path for path in Path(folder).glob("checkpoint-*") if (found := _step(path))}
    damaged = []
    for step in sorted(numbered, reverse=True):
        problem = checkpoint_problem(numbered[step])
        if problem is None:
            return numbered[step], _sentence(damaged, f"use {numbered[step].name}, the one before")
        damaged.append(f"{numbered[step].name} is damaged ({problem})")
    return None, _sentence(damaged, "no other is left, so begin again from step 0")


def checkpoint_problem(folder: str | Path) -> str | None:
    """Return what keeps training from resuming exactly from this checkpoint-NUMBER folder, or None if it is whole.

    Every file must be there and readable to its end, and the step in trainer_state.json must be the one in the name.
    """
    folder = Path(folder)
    if not _step(folder) or not folder.is_dir():
        return "there is no such folder" if _step(folder) else f"{folder.name} is not named checkpoint-NUMBER"
    for pattern in NEEDED:
        files = sorted(folder.glob(pattern))
        if not files:
            return f"{pattern} is missing"
        for file in files:
            if not _readable(file):
                return f"{file.name} is not whole"
    step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")).get("global_step")
    return None if str(step) == _step(folder).group(1) else f"trainer_state.json is of step {step}"


def _step(folder: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", folder.name)


def _sentence(damaged: list[str], advice: str) -> str:
    return f"{', '.join(damaged)}; {advice}." if damaged else ""


def _readable(file: Path) -> bool:
    """Say whether a file can be read to its end: JSON object, safetensors, or the ZIP archive that torch.save writes."""
    try:
        if file.suffix == ".json":
            return isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as matrices:  # compares the header with the size of the file
                return bool(matrices.keys())
        with zipfile.ZipFile(file) as archive:
            return bool(archive.namelist()) and archive.testzip() is None  # compares every checksum; loads nothing
    except Exception:  # a damaged file fails in any of a dozen ways; each means that it is not whole
        return False
