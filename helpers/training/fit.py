"""Say whether a fine-tune fits in this machine's memory, and what makes it fit; measure what it really takes."""
import threading
from itertools import accumulate, combinations
from typing import NamedTuple

import matplotlib.pyplot as plt
import psutil
import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback

from helpers.training.memory import MemoryEstimate, as_dtype, estimate_memory, read_config
from helpers.training.steps import check_above_zero

GPU = ("QLoRA runs on a GPU: compare with the GPU's memory, and leave room for what its allocator adds,\n"
       "which nobody can predict here.")
SURELY_GB = 1_000  # bytes; no machine that asks here has as many gigabytes
QLORA = "QLoRA (needs a GPU)"
COLOURS = ("#8C8C8C", "#4C78A8", "#B279A2", "#9D755D", "#E45756", "#F58518", "#54A24B", "#BAB0AC")


class Fit(NamedTuple):
    """What a fine-tune needs, the memory there is, and what that means in words."""

    needs: MemoryEstimate
    memory: int
    verdict: str


def check_fit(config, memory: int | None = None, models: dict | None = None, **settings) -> Fit:
    """Return the Fit of a fine-tune of `config` with the settings of `estimate_memory`.

    memory: bytes to compare with, by default what is free now or held by this process. models: names and configurations that may be suggested
    instead. Raises ValueError for so few bytes that gigabytes were meant.
    """
    if memory is not None and memory < SURELY_GB:
        raise ValueError(f"memory is {memory} bytes; if you mean {memory} GB, write {memory}e9")
    config = read_config(config)  # once: it takes longer than an estimate
    needs = estimate_memory(config, **settings)
    memory = psutil.virtual_memory().available + resident_bytes() if memory is None else memory  # what this process holds is in needs
    verdict = f"It fits: {needs.total / 1e9:.1f} GB needed, {memory / 1e9:.1f} GB there."
    if needs.total > memory:
        verdict = f"It does not fit: {needs.total / 1e9:.1f} GB needed, {memory / 1e9:.1f} GB there. " + _advice(config, memory, models or {}, settings)
    return Fit(needs, memory, verdict + (f"\n{GPU}" if settings.get("method") == "qlora" else ""))


def changes(settings: dict) -> list[tuple[str, dict]]:
    """Return what can be changed to save memory, the cheapest first: a text, and the settings that it changes."""
    batch, length, method = settings.get("batch_size", 4), settings.get("length", 64), settings.get("method", "lora")
    found = [(f"batch size 1 with accumulation {batch} (the same result)", {"batch_size": 1})] if batch > 1 else []
    if not settings.get("checkpointing", False):
        found.append(("gradient checkpointing (about a third more time)", {"checkpointing": True}))
    if method == "full":
        found.append(("LoRA instead of full fine-tuning", {"method": "lora"}))
    if length > 64:
        found.append((f"records of at most {length // 2} tokens", {"length": length // 2}))
    if as_dtype(settings.get("dtype", torch.float32)).itemsize > 2:
        found.append(("bfloat16 (slow on most CPUs)", {"dtype": torch.bfloat16}))
    if method != "qlora":
        found.append((QLORA, {"method": "qlora", "dtype": torch.bfloat16}))
    return found


def _advice(config, memory: int, models: dict, settings: dict) -> str:
    """Return in words the fewest and cheapest changes that make it fit, those that need a GPU last; else a smaller model."""
    options = changes(settings)
    sets = [chosen for count in range(1, len(options) + 1) for chosen in combinations(options, count)]
    for chosen in sorted(sets, key=lambda chosen: any(QLORA in text for text, _ in chosen)):
        total = estimate_memory(config, **settings | _together(chosen)).total
        if total <= memory:
            return f"Cheapest change: {' and '.join(text for text, _ in chosen)}; then {total / 1e9:.1f} GB."
    least = settings | _together([option for option in options if QLORA not in option[0]])
    models = {name: read_config(model) for name, model in models.items()}
    for texts, other in (("", settings), (" with all that saves memory on a CPU", least)):
        sizes = {name: estimate_memory(model, **other).total for name, model in models.items()}
        fitting = {name: total for name, total in sizes.items() if total <= memory}
        if fitting:
            largest = max(fitting, key=fitting.get)
            return f"No setting helps; the largest model that fits is {largest}{texts}: {fitting[largest] / 1e9:.1f} GB."
    return "Neither another setting nor one of these models fits: close other programs, or use a larger machine."


def _together(chosen) -> dict:
    return {name: value for _, change in chosen for name, value in change.items()}


def plot_fit(fit: Fit) -> Figure:
    """Draw the parts of a Fit as bars, one after the other, against the memory there is, or towards it if that is far."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    figure.subplots_adjust(left=0.12, right=0.98, bottom=0.15, top=0.98)  # a layout engine would draw everything twice
    sizes = [size / 1e9 for size in fit.needs]
    *starts, total = accumulate(sizes, initial=0)
    bars = axes.barh([*fit.needs._fields, "total"], [*sizes, total], left=[*starts, 0], color=[*COLOURS, "black"])
    *_, last = axes.bar_label(bars, [*(f" {size:.2f}" for size in sizes), f" {total:.2f} GB"])
    last.set_weight("bold")
    there, end = fit.memory / 1e9, 1.6 * total
    axes.axvline(there, color="black", linestyle="--")
    if there > end:
        axes.text(end, 0, f"{there:.1f} GB there →", ha="right", va="center")
    axes.set(xlabel="memory (GB)" + "; dashed: what there is" * (there <= end), xlim=(0, min(end, 1.15 * max(total, there))))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def resident_bytes() -> int:
    """Return the bytes of real memory (RSS) that this process holds now, pages of mapped files included."""
    return psutil.Process().memory_info().rss


class PeakMemory(TrainerCallback):
    """Watch this process's memory while a `with` block runs, or, as a callback of a trainer, while it trains.

    start_bytes: RSS at the beginning; peak_bytes: the highest RSS seen, readable while it watches; growth_bytes: their
    difference. A thread looks every `interval` seconds, so a shorter spike can be missed. GPU memory is not counted, and
    memory that is reused rather than asked for does not show as growth.
    """

    def __init__(self, interval: float = 0.01) -> None:
        check_above_zero(interval=interval)
        self.interval, self.start_bytes, self.peak_bytes = interval, 0, 0
        self._done, self._thread = threading.Event(), None

    @property
    def growth_bytes(self) -> int:
        """Return how many bytes the peak lies above the start."""
        return self.peak_bytes - self.start_bytes

    def __enter__(self) -> "PeakMemory":
        if self._thread is not None:
            raise RuntimeError("this PeakMemory is already watching a block: make a second one for the inner block")
        self.start_bytes = self.peak_bytes = resident_bytes()
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, name="PeakMemory", daemon=True)
        self._thread.start()
        return self

    def on_train_begin(self, *state, **kwargs) -> None:
        """Begin to watch, also if an interrupted training left this watching."""
        if self._thread is None:
            self.__enter__()

    def __exit__(self, *error, **kwargs) -> None:
        if self._thread is None:  # as a callback that was added twice
            return
        self._done.set()
        self._thread.join()
        self._thread = None

    on_train_end = __exit__

    def _watch(self) -> None:
        done = False
        while not done:  # a last look when it is done
            done = self._done.wait(self.interval)
            self.peak_bytes = max(self.peak_bytes, resident_bytes())
