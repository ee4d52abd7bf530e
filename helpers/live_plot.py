"""Draw the loss while a model trains."""
from __future__ import annotations

import time
from pathlib import Path

import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.display import display
from transformers import TrainerCallback

SECONDS_BETWEEN_PICTURES = 1.0


class LossPlot(TrainerCallback):
    """Draw train and validation loss and the learning rate in place, with a sample answer; keep the last picture and save it as PNG.

    sample(model) returns a text, asked every `sample_every` steps. After training `history` holds a list of (step, value) for each
    of train, validation and rate, and `samples` a list of (step, text).
    """

    def __init__(self, path: str | Path, sample=None, sample_every: int = 20):
        """Set where the PNG goes, and what to sample how often (in steps)."""
        self.path, self.sample, self.sample_every = Path(path), sample, sample_every
        self.history: dict[str, list[tuple[int, float]]] = {"train": [], "validation": [], "rate": []}
        self.samples: list[tuple[int, str]] = []
        self.redraws = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock and an empty picture."""
        self.__init__(self.path, self.sample, self.sample_every)
        self._start, self._first_step, self._last = time.perf_counter(), state.global_step, 0.0
        self._handle = display(self._picture(state), display_id=True) if get_ipython() else None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Take the numbers that the trainer logs."""
        for name, key in (("train", "loss"), ("validation", "eval_loss"), ("rate", "learning_rate")):
            if logs and key in logs:
                self.history[name].append((state.global_step, float(logs[key])))
        if time.perf_counter() - self._last >= SECONDS_BETWEEN_PICTURES:
            self._redraw(state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Ask the model for a sample answer now and then."""
        if self.sample and state.global_step % self.sample_every == 0:
            self.samples.append((state.global_step, self.sample(model)))

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the final picture and save it."""
        figure = self._redraw(state)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path, dpi=100)

    def _redraw(self, state):
        figure = self._picture(state)
        if self._handle:
            self._handle.update(figure)
        self.redraws += 1
        self._last = time.perf_counter()
        return figure

    def _picture(self, state):
        figure, (loss, rate) = plt.subplots(1, 2, figsize=(9, 4), width_ratios=(2, 1), layout="constrained")
        plt.close(figure)  # else the notebook shows it a second time
        for name, style in (("train", "-"), ("validation", "o--")):
            if self.history[name]:
                loss.plot(*zip(*self.history[name], strict=True), style, label=name)
                loss.legend()
        loss.set(xlabel="step", ylabel="loss (nats per token)", title=self._progress(state), xlim=(0, state.max_steps), ylim=(0, None))
        if self.history["rate"]:
            rate.plot(*zip(*self.history["rate"], strict=True), color="tab:gray")
        rate.set(xlabel="step", title="learning rate", xlim=(0, state.max_steps), ylim=(0, None))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        if self.samples:
            step, text = self.samples[-1]
            figure.supxlabel(f"after step {step}: {text[:90]}".replace("$", r"\$"), fontsize=10, x=0.01, ha="left")
        return figure

    def _progress(self, state) -> str:
        done, seconds = state.global_step - self._first_step, time.perf_counter() - self._start
        left = seconds / done * (state.max_steps - state.global_step) if done else None
        if left is None:
            return f"step {state.global_step} of {state.max_steps}"
        return f"step {state.global_step} of {state.max_steps}, {seconds:.0f} s" + (f", about {left:.0f} s left" if left else "")
