"""Find where an interrupted run goes on, and leave alone what is not this run's."""
import hashlib
import json
import re
from pathlib import Path

from helpers.model.hub import is_whole
from helpers.model.weights import base_hash
from helpers.moving import move
from helpers.training.saving import rows_of, written_whole

SETTINGS_FILE = "settings.json"
# What the Trainer writes for a LoRA run and needs to go on exactly; the state comes last. training_args.bin is not read.
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json")
# Where and how often to write, and who works: these do not change what is learned.
NO_MATTER = {"output_dir", "logging_dir", "run_name", "project", "report_to", "disable_tqdm", "save_steps", "save_total_limit",
             "per_device_eval_batch_size", "eval_on_start"}
NO_MATTER_BEGINS = ("logging_", "log_", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent", "dataloader_prefetch")


def last_complete_checkpoint(folder: str | Path) -> tuple[Path | None, str]:
    """Return the newest whole checkpoint in a run's folder, or None, and one sentence on the newer ones that are damaged.

    The sentence is empty if nothing is damaged. Nothing is changed or removed. For `train(resume_from_checkpoint=...)`.
    """
    damaged = []
    for _, checkpoint in sorted(_checkpoints(Path(folder)).items(), reverse=True):
        if not (problem := checkpoint_problem(checkpoint)):
            break
        damaged.append(f"{checkpoint.name} is damaged ({problem})")
    else:
        checkpoint = None
    advice = f"use {checkpoint.name}, the one before" if checkpoint else "no other is left, so begin again from step 0"
    return checkpoint, f"{', '.join(damaged)}; {advice}." if damaged else ""


def checkpoint_problem(folder: str | Path) -> str | None:
    """Return what keeps training from resuming exactly from this checkpoint-NUMBER folder, or None if it is whole.

    Every file must be there and readable to its end, and the step in trainer_state.json must be the one in the name.
    """
    folder = Path(folder)
    if not _step(folder) or not folder.is_dir():
        return "there is no such folder" if _step(folder) else f"{folder.name} is not named checkpoint-NUMBER"
    wanted = [(place, name) for place in _adapter_places(folder) for name in ADAPTER] + [(folder, name) for name in NEEDED]
    for place, pattern in wanted:
        if not (files := sorted(place.glob(pattern))):
            return f"{pattern} is missing"
        if broken := next((file.name for file in files if not is_whole(file)), None):
            return f"{broken} is not whole"
    step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")).get("global_step")
    return None if str(step) == _step(folder).group(1) else f"trainer_state.json is of step {step}"


def _adapter_places(folder: Path) -> list[Path]:
    """Return where the adapters of a checkpoint lie: in it, or, if they have names, each in a folder of its own."""
    inside = sorted({file.parent for name in ADAPTER for file in folder.glob(f"*/{name}")})
    return inside if inside and not any((folder / name).exists() for name in ADAPTER) else [folder]


def _step(folder: Path) -> re.Match | None:
    return re.fullmatch(r"checkpoint-(\d+)", folder.name)


def where_to_begin(trainer) -> str | None:
    """Return the checkpoint for `trainer.train(resume_from_checkpoint=...)`, None to begin afresh; print which it is.

    A run goes on only if its settings, its training data and its base are the same and if it is not finished; else its
    checkpoints are kept in NAME_previous. A damaged checkpoint is renamed to damaged-NUMBER. Other files stay. Raises
    ValueError for a trainer that has trained already and has nothing to go on from, or is at its end: its weights are no
    longer those of step 0.
    """
    folder = Path(trainer.args.output_dir).resolve()
    checkpoint, sentence = last_complete_checkpoint(folder)
    settings = run_settings(trainer)
    reason = checkpoint and _why_afresh(checkpoint, settings)
    done = trainer.state.global_step
    if done and (reason or not checkpoint or done >= trainer.state.max_steps):
        raise ValueError(f"this trainer has trained already, {done} steps: run the cell that makes the trainer "
                         "again, then this one, and training begins at step 0")
    if reason:
        checkpoint, sentence = None, f"{reason} was here and is kept in {_set_aside(folder).name}."
    for damaged in _checkpoints(folder).values():
        if checkpoint_problem(damaged):  # a whole one of the same step takes its place
            move(damaged, _free(damaged.with_name(damaged.name.replace("checkpoint", "damaged"))))
    with written_whole(folder / SETTINGS_FILE) as file:
        file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    where = "Training goes on after step {} of {}.".format(*_steps(checkpoint)) if checkpoint else "Training begins at step 0."
    print(f"{sentence} {where}".strip())
    return checkpoint and str(checkpoint)


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the folders named checkpoint-NUMBER by their number; what else is there is not the Trainer's."""
    return {int(found.group(1)): path for path in folder.glob("checkpoint-*") if (found := _step(path)) and path.is_dir()}


def _set_aside(folder: Path) -> Path:
    """Move a run's checkpoints and settings to NAME_previous, or NAME_previous_2 and so on; return where they are."""
    previous = _free(folder.with_name(f"{folder.name}_previous"))
    previous.mkdir()
    for path in [*_checkpoints(folder).values(), folder / SETTINGS_FILE]:
        if path.exists():
            move(path, previous / path.name)
    return previous


def _free(path: Path) -> Path:
    """Return this path, or the first one with a number behind that nobody has taken."""
    names = [path.name, *(f"{path.name}_{number}" for number in range(2, 1000))]
    return next(free for name in names if not (free := path.with_name(name)).exists())


def run_settings(trainer) -> dict:
    """Return what decides what a run learns: the trainer's arguments, those of LoRA, hashes of the tokenized data and of the base."""
    configs = getattr(trainer.model, "peft_config", {}).values()
    lora = {f"LoRA {name}": value for config in configs for name, value in config.to_dict().items()}
    args = {name: value for name, value in trainer.args.to_dict().items()
            if name not in NO_MATTER and not name.startswith(NO_MATTER_BEGINS)}
    data = json.dumps(list(rows_of(trainer, trainer.args.max_steps)), default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value)).encode()
    made = {"training data": hashlib.sha256(data).hexdigest(), "data collator": type(trainer.data_collator).__name__}
    base = {"base weights": base_hash(trainer.model)} if lora else {}
    plain = json.dumps(args | lora | made | base, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
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
