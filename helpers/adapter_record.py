"""Keep a record beside a saved adapter: on which base weights it was trained, for how many steps, on how many tokens."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from helpers.whole_files import written_whole

RECORD_FILE = "training_record.json"


def base_parameters(model) -> dict[str, torch.Tensor]:
    """Return the base model's parameters by the names that they have without PEFT; what an adapter added is left out."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name and "modules_to_save" not in name:
            plain = name.replace("base_model.model.", "").replace(".base_layer", "").replace(".original_module", "")
            found[plain] = parameter.detach()
    return found


def base_hash(model) -> str:
    """Return the SHA-256 of the base weights (names, types, shapes, bytes), the same with and without an adapter on top."""
    digest = hashlib.sha256()
    for name, weight in sorted(base_parameters(model).items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def base_dtype(model) -> str:
    """Return the number format of the base weights, for example "float32"; several are joined by a comma."""
    return ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in base_parameters(model).values()}))


def supervised_tokens(trainer) -> int:
    """Return how many tokens carried loss in this run: those of one pass over the data, times the epochs really trained.

    Each row of the trainer's own tokenized dataset goes through its own collator, and the labels that are not -100 are
    counted, but for the first of a row: the loss compares each label with the prediction made one token earlier.
    """
    one_pass = sum(_supervised_in(trainer.data_collator([row])["labels"]) for row in trainer.train_dataset)
    return round(one_pass * (trainer.state.epoch or 0))


def _supervised_in(labels: torch.Tensor) -> int:
    return int((labels[..., 1:] != -100).sum())


def describe_training(trainer) -> dict:
    """Return the record of a run: hash and number format of its base weights, steps taken, tokens that carried loss."""
    return {
        "base_sha256": base_hash(trainer.model),
        "base_dtype": base_dtype(trainer.model),
        "steps": trainer.state.global_step,
        "supervised_tokens": supervised_tokens(trainer),
    }


def keep_record(trainer, folder: str | Path) -> Path:
    """Write training_record.json beside a saved adapter, whole or not at all; return its path.

    It names no path and no person, so it may be shared with the adapter. Raises ValueError if the folder holds none.
    """
    path = adapter_folder(folder) / RECORD_FILE
    with written_whole(path) as file:
        file.write_text(json.dumps(describe_training(trainer), indent=2), encoding="utf-8")
    return path


def read_record(folder: str | Path) -> dict | None:
    """Return the record beside an adapter, or None if there is none; raise ValueError if it can't be read."""
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: record[key] for key in ("base_sha256", "base_dtype", "steps", "supervised_tokens")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: this is no record that keep_record wrote; delete it, or train and keep it again") from error


def adapter_folder(folder: str | Path) -> Path:
    """Return the folder as a Path; raise ValueError with what to do if it holds no saved adapter."""
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder}: there is no adapter here (adapter_config.json is missing); "
                         "give the folder that trainer.save_model or model.save_pretrained wrote")
    return folder
