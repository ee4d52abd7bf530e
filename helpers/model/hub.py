"""What a folder or the hub has of a model, and whether its files are whole."""
import json
import zipfile
from pathlib import Path

from helpers import first_line


class BaseModelError(RuntimeError):
    """The base model can't be had; the message says why and what to do."""


def fetch_snapshot(name: str, revision: str | None = None) -> str:
    """Return the folder of a model of the hub, which is fetched if it is not there; raise BaseModelError if it can't be had."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
    except Exception as error:  # behind a proxy, for instance, the hub's library raises what is no OSError
        wanted = f"{name}@{revision}" if revision else name
        raise BaseModelError(f"BASE_MODEL={wanted}: the hub does not give {'this revision' if revision else 'this model'} "
                             f"({first_line(error)}); check name, revision and connection.") from error


def has_weights(folder: Path) -> bool:
    """Say whether all files of weights are there; a download that was stopped leaves the small files first."""
    try:
        lists = [json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() for index in folder.glob("*.index.json")]
    except (ValueError, LookupError, TypeError, AttributeError):  # cut while it was copied
        return False
    if lists:  # one for each format, of which one will do
        return any(all((folder / name).is_file() for name in names) for names in lists)
    return any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))  # not training_args.bin, nor an adapter


def is_whole(file: Path) -> bool:
    """Say whether a file can be read to its end: JSON object, safetensors, or the ZIP archive that torch.save writes."""
    from safetensors import safe_open

    try:
        if file.suffix == ".json":
            made = json.loads(file.read_text(encoding="utf-8"))
            return isinstance(made, dict) and bool(made)
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as matrices:  # compares the header with the size of the file
                return bool(matrices.keys())
        with zipfile.ZipFile(file) as archive:
            return bool(archive.namelist()) and archive.testzip() is None  # compares every checksum; loads nothing
    except Exception:  # a damaged file fails in any of a dozen ways; each means that it is not whole
        return False
