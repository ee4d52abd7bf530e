"""Say what this machine has, and which device and precision are fast on it (measured, not guessed from a name)."""
from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil
import torch


def best_device() -> str:
    """Return "cuda", "mps" (Apple) or "cpu": the fastest device that PyTorch can use here."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def training_precision() -> dict[str, bool]:
    """Return the precision switches of TrainingArguments, as `SFTConfig(**training_precision())`.

    bf16 and fp16 switch mixed precision on where it is faster than float32 (on Apple's MPS neither is); use_cpu is True
    where no accelerator is found.
    """
    device = best_device()
    if device == "cpu":
        _score_supervised_only()
    bf16 = device == "cpu" and bf16_speedup() > 1.2
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {"bf16": bf16, "fp16": device == "cuda" and not bf16, "use_cpu": device == "cpu"}


def _score_supervised_only() -> None:
    """Let TRL's loss skip the positions without a label on a CPU too, as it does on a GPU: about a quarter of the time.

    The switch is private, so it is touched only in the version that it was checked with; the tests compare the loss.
    """
    utils = sys.modules.get("trl.trainer.utils")  # nothing to do before TRL is imported
    if utils and version("trl").startswith("1.16.") and hasattr(utils, "_use_triton"):
        utils._use_triton = lambda device: True


@cache
def bf16_speedup() -> float:
    """Time a matrix product on the CPU; return how many times faster bfloat16 is than float32 (below 1: slower)."""
    return matmul_seconds(torch.float32) / matmul_seconds(torch.bfloat16)


def matmul_seconds(dtype: torch.dtype, rows: int = 256, tries: int = 5) -> float:
    """Return the shortest of some times, in seconds, of one [rows, 576] x [576, 1536] product on the CPU."""
    left, right = torch.ones(rows, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)


def describe_hardware(folder: str | Path = ".") -> dict[str, str]:
    """Describe the machine as a table of short texts; memory in GB (10^9 bytes), free disk space for `folder`."""
    memory, device = psutil.virtual_memory(), best_device()
    precision = training_precision()
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "CPU cores": str(psutil.cpu_count(logical=False) or os.cpu_count()),
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB of it free",
        "free disk": f"{shutil.disk_usage(folder).free / 1e9:.1f} GB",
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "precision": "bfloat16" if precision["bf16"] else "float16" if precision["fp16"] else "float32",
        "bfloat16 on this CPU": f"{bf16_speedup():.2f} times the speed of float32",
    }
