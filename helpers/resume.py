"""Find where a training run begins: at the last whole checkpoint of the very same run, or afresh."""
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from helpers.checkpoints import checkpoint_problem, last_complete_checkpoint
from helpers.whole_files import keep_as_previous, written_whole

SETTINGS_FILE = "settings.json"
PLACES = {"output_dir", "logging_dir", "run_name", "project"}  # where to write: these do not change what is learned


def where_to_begin(trainer) -> tuple[str | None, str]:
    """Return the checkpoint for `trainer.train(resume_from_checkpoint=...)`, None to begin afresh, and a sentence that says so.

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
    return checkpoint and str(checkpoint), f"{sentence} {where}".strip()


def run_settings(trainer) -> dict:
    """Return all that decides what a run learns: the trainer's arguments, those of LoRA, a SHA-256 of the tokenized data."""
    lora = {f"LoRA {name}": value for name, value in trainer.model.peft_config["default"].to_dict().items()}
    args = {name: value for name, value in trainer.args.to_dict().items() if name not in PLACES}
    data = json.dumps(list(trainer.train_dataset), default=str).encode()
    return json.loads(json.dumps(args | lora | {"training data": hashlib.sha256(data).hexdigest()}, default=_plain))


def _plain(value):
    return sorted(value) if isinstance(value, set) else str(value)


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
