"""Save what training makes: files whole or not at all, and a record beside the adapter."""
import filecmp
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path

from helpers import at_home
from helpers.data.rows import collate
from helpers.model.weights import base_dtype, base_hash, replaced_names
from helpers.moving import move

RECORD_FILE, GENERATION_FILE = "training_record.json", "generation_config.json"


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, a file or a folder; move it to `path` when the block has ended without an error.

    A file replaces the one before. A folder that was there before is kept, as NAME_previous, unless it holds the same.
    Raises PermissionError, with the place of what was written, if it can't be moved.
    """
    path = at_home(path).resolve()  # a link stays one: what it points to is replaced
    part = path.with_name(f"{path.stem}.part-of-course{path.suffix}")  # beside it: a move within one disk copies nothing
    _remove(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
    except BaseException:
        _remove(part)
        raise
    two_folders = part.is_dir() and path.is_dir()
    if two_folders and _same(part, path):
        _remove(part)
        return
    try:
        if two_folders:
            previous = path.with_name(f"{path.name}_previous")
            if previous.is_dir():
                _remove(previous)
            move(path, previous)
        move(part, path)
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:  # a file stands where a folder is to be, or the other way round
        raise PermissionError(f"{path} can't be replaced ({error.strerror}); nothing is lost: what was written is in {part}") from error


def _same(one: Path, other: Path) -> bool:
    names = [sorted(file.name for file in folder.iterdir()) for folder in (one, other)]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rows_of(trainer, steps: int) -> Iterator[dict]:
    """Give the rows of the trainer's dataset once; of a stream, which may have no end, those of so many steps."""
    rows = trainer.train_dataset
    batch = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps
    return islice(rows, len(rows)) if hasattr(rows, "__len__") else islice(_again_and_again(rows), max(0, batch * steps))


def _again_and_again(stream) -> Iterator[dict]:
    while (first := next(rows := iter(stream), None)) is not None:  # one that is used up gives no row
        yield first
        yield from rows


def supervised_tokens(trainer) -> int | None:
    """Return how many tokens carried loss in this run: those of one pass over the data, times the epochs really trained.

    Each row of the trainer's own tokenized dataset goes through its own collator, and the labels that are not -100 are
    counted, but for the first of a row: the loss compares each label with the prediction made one token earlier. Of a
    stream the rows of the steps that were taken are counted. None for a training whose rows have no label for each token.
    """
    counted = 0
    for row in rows_of(trainer, trainer.state.global_step):
        batch = collate(trainer, row) if "input_ids" in row else {}
        if "labels" not in batch or batch["labels"].shape != batch["input_ids"].shape:
            return None
        counted += int((batch["labels"][:, 1:] != -100).sum())
    return round(counted * (trainer.state.epoch or 0)) if hasattr(trainer.train_dataset, "__len__") else counted  # a stream's epochs nobody counts


def best_step(args, state) -> int | None:
    """Return the step whose weights the trainer puts back at the end, or None where it keeps the last one's."""
    return state.best_global_step or None if args.load_best_model_at_end else None


def keep_record(trainer, folder: str | Path) -> Path:
    """Write training_record.json beside a saved adapter; return its path.

    It holds the hash and number format of the base weights (those in use: not what modules_to_save replaces), the steps and the tokens that carried loss; no path, no person.
    Beside it goes generation_config.json, for the trainer knows where an answer ends; each file is written whole or not at all.
    Raises ValueError if there is no adapter, or no trainer.
    """
    path = adapter_folder(folder) / RECORD_FILE
    if getattr(trainer, "train_dataset", None) is None or not hasattr(trainer, "state"):
        raise ValueError(f"{type(trainer).__name__} is no trainer with a train_dataset; pass the one that has trained")
    steps = best_step(trainer.args, trainer.state) or trainer.state.global_step
    record = {"base_sha256": base_hash(trainer.model, replaced_names(trainer.model)), "base_dtype": base_dtype(trainer.model), "steps": steps,
              "supervised_tokens": supervised_tokens(trainer)}
    texts = {path: json.dumps(record, indent=2)}
    if generation := getattr(trainer.model, "generation_config", None):
        texts[path.with_name(GENERATION_FILE)] = generation.to_json_string()
    for each, text in texts.items():
        with written_whole(each) as file:
            file.write_text(text, encoding="utf-8")
    return path


def read_record(folder: str | Path) -> dict | None:
    """Return the record beside an adapter, or None if there is none; raise ValueError if it can't be read."""
    path = Path(folder) / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"base_sha256": (str,), "base_dtype": (str,), "steps": (int,), "supervised_tokens": (int, type(None))}
        if wrong := [key for key, kind in kinds.items() if type(record[key]) not in kind]:
            raise TypeError(wrong)
        return {key: record[key] for key in kinds}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: this is no record that keep_record wrote; delete it, or train and keep it again") from error


def adapter_folder(folder: str | Path) -> Path:
    """Return the folder as a Path; raise ValueError with what to do if it holds no saved adapter."""
    if not isinstance(folder, str | PathLike):
        raise ValueError(f"the folder is of type {type(folder).__name__}; give the path of a saved adapter")
    folder = at_home(folder)
    if not (folder / "adapter_config.json").is_file():
        inside = sorted(place.parent.name for place in folder.glob("*/adapter_config.json"))[:3]
        raise ValueError(f"{folder}: there is no adapter here (adapter_config.json is missing); " + (
            f"give the folder in it that holds one ({', '.join(inside)})" if inside else "give the folder that trainer.save_model or model.save_pretrained wrote"))
    return folder
