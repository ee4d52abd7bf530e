"""Save what training makes: files whole or not at all, a record beside the adapter, and where an interrupted run goes on."""
from __future__ import annotations

import filecmp
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open

from helpers.model.weights import base_dtype, base_hash

RECORD_FILE, SETTINGS_FILE, GENERATION_FILE = "training_record.json", "settings.json", "generation_config.json"
# What the Trainer writes for a LoRA run and needs to go on exactly; the state comes last. training_args.bin is not read.
NEEDED = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json")
PLACES = {"output_dir", "logging_dir", "run_name", "project"}  # where to write: these do not change what is learned


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, a file or a folder; move it to `path` when the block has ended without an error.

    A file replaces the one before. A folder that was there before is kept, as NAME_previous, unless it holds the same.
    """
    path = Path(path)
    part = path.with_name(f"{path.stem}.part{path.suffix}")  # beside it: a move within one disk copies nothing
    _remove(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if part.is_dir() and path.is_dir():
            if _same(part, path):
                return
            keep_as_previous(path)
        part.replace(path)
    finally:
        _remove(part)


def keep_as_previous(folder: Path) -> Path:
    """Rename a folder to NAME_previous, and return that; what had this name is removed."""
    previous = folder.with_name(f"{folder.name}_previous")
    _remove(previous)
    return folder.rename(previous)


def _same(one: Path, other: Path) -> bool:
    names = [sorted(file.name for file in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def supervised_tokens(trainer) -> int:
    """Return how many tokens carried loss in this run: those of one pass over the data, times the epochs really trained.

    Each row of the trainer's own tokenized dataset goes through its own collator, and the labels that are not -100 are
    counted, but for the first of a row: the loss compares each label with the prediction made one token earlier.
    """
    one_pass = sum(int((trainer.data_collator([row])["labels"][..., 1:] != -100).sum()) for row in trainer.train_dataset)
    return round(one_pass * (trainer.state.epoch or 0))


def keep_record(trainer, folder: str | Path) -> Path:
    """Write training_record.json beside a saved adapter, whole or not at all; return its path.

    It holds the hash and number format of the base weights, the steps and the tokens that carried loss; no path, no person.
    Beside it goes generation_config.json, for the trainer knows where an answer ends. Raises ValueError if there is no adapter.
    """
    path = adapter_folder(folder) / RECORD_FILE
    path.with_name(GENERATION_FILE).write_text(trainer.model.generation_config.to_json_string(), encoding="utf-8")
    record = {"base_sha256": base_hash(trainer.model), "base_dtype": base_dtype(trainer.model), "steps": trainer.state.global_step,
              "supervised_tokens": supervised_tokens(trainer)}
    with written_whole(path) as file:
        file.write_text(json.dumps(record, indent=2), encoding="utf-8")
    return path


def read_record(folder: str | Path) -> dict | None:
    """Return the record beside an adapter, or None if there is none; raise ValueError if it can't be read."""
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"base_sha256": str, "base_dtype": str, "steps": int, "supervised_tokens": int}
        if wrong := [key for key, kind in kinds.items() if type(record[key]) is not kind]:
            raise TypeError(wrong)
        return {key: record[key] for key in kinds}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: this is no record that keep_record wrote; delete it, or train and keep it again") from error


def adapter_folder(folder: str | Path) -> Path:
    """Return the folder as a Path; raise ValueError with what to do if it holds no saved adapter."""
    folder = Path(folder).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder}: there is no adapter here (adapter_config.json is missing); "
                         "give the folder that trainer.save_model or model.save_pretrained wrote")
    return folder


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


def where_to_begin(trainer) -> str | None:
    """Return the checkpoint for `trainer.train(resume_from_checkpoint=...)`, None to begin afresh; print which it is.

    A run goes on only if its settings and its training data are the same and if it is not finished; else its folder is
    kept as NAME_previous. Damaged checkpoints are removed. Raises ValueError for a trainer that has trained already and
    has nothing to go on from: its weights are no longer those of step 0.
    """
    folder = Path(trainer.args.output_dir)
    checkpoint, sentence = last_complete_checkpoint(folder)
    settings = run_settings(trainer)
    reason = checkpoint and _why_afresh(checkpoint, settings)
    if trainer.state.global_step and (reason or not checkpoint):
        raise ValueError(f"this trainer has trained already, {trainer.state.global_step} steps: run the cell that makes the trainer "
                         "again, then this one, and training begins at step 0")
    if reason:
        previous = keep_as_previous(folder)
        checkpoint, sentence = None, f"{reason} was here and is kept in {previous.name}."
    for damaged in folder.glob("checkpoint-*"):
        if checkpoint_problem(damaged):  # a whole one of the same step takes its place
            shutil.rmtree(damaged)
    with written_whole(folder / SETTINGS_FILE) as file:
        file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    where = "Training goes on after step {} of {}.".format(*_steps(checkpoint)) if checkpoint else "Training begins at step 0."
    print(f"{sentence} {where}".strip())
    return checkpoint and str(checkpoint)


def run_settings(trainer) -> dict:
    """Return all that decides what a run learns: the trainer's arguments, those of LoRA, a SHA-256 of the tokenized data."""
    lora = {f"LoRA {name}": value for name, value in trainer.model.peft_config["default"].to_dict().items()}
    args = {name: value for name, value in trainer.args.to_dict().items() if name not in PLACES}
    data = json.dumps(list(trainer.train_dataset), default=str).encode()
    plain = json.dumps(args | lora | {"training data": hashlib.sha256(data).hexdigest()},
                       default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    return json.loads(plain)


def _why_afresh(checkpoint: Path, settings: dict) -> str:
    """Say which run this checkpoint belongs to, if training can't go on from it; else return an empty text."""
    done, planned = _steps(checkpoint)
    try:
        before = json.loads((checkpoint.parent / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    other = sorted(name for name in before.keys() | settings.keys() if before.get(name) != settings.get(name))
    if other:
        return f"A run with other settings ({', '.join(other)})" if before else "A run whose settings are not known"
    return f"A finished run of {done} steps" if done >= planned else ""


def _steps(checkpoint: Path) -> tuple[int, int]:
    """Return how many steps were done at this checkpoint, and how many the run was to have."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"], state["max_steps"]
