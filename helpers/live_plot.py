"""Draw the loss while a model trains."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from IPython import get_ipython
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure
from transformers import TrainerCallback

SECONDS_BETWEEN_PICTURES = 1.0
DRAWING_SHARE = 0.1  # of the time of training, at most: a slow machine draws less often


class LossPlot(TrainerCallback):
    """Draw training loss, validation loss and learning rate in place, with sample answers below; save the last picture.

    path: the PNG file to write when training ends. sample(model) -> str is called before the first step and then every
    `sample_every` steps, if given. After training `history` holds a list of (step, value) for each of "train" and
    "validation" (nats per token) and "rate"; `samples` a list of (step, text). Outside a notebook nothing is shown.
    """

    def __init__(self, path: str | Path, sample: Callable[..., str] | None = None, sample_every: int = 20) -> None:
        """Set where the PNG goes, and what to sample how often (in steps)."""
        self.path, self.sample, self.sample_every = Path(path), sample, sample_every
        self._start_afresh()

    def _start_afresh(self, first_step: int = 0) -> None:
        """Forget an earlier run and start the clock."""
        self.history: dict[str, list[tuple[int, float]]] = {"train": [], "validation": [], "rate": []}
        self.samples: list[tuple[int, str]] = []
        self.redraws = 0
        self._first_step, self._start, self._next_picture = first_step, time.perf_counter(), 0.0
        self._picture_on_page = self._text_on_page = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Put an empty picture on the page, and the answer of the model as it is before training."""
        self._start_afresh(first_step=state.global_step)
        if get_ipython():
            self._picture_on_page = display(Image(self._png(state)), display_id=True)
            self._text_on_page = display(HTML(""), display_id=True)
        self._ask(state, model)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Take the numbers that the trainer logs, and draw them if the last picture is old enough."""
        for name, key in (("train", "loss"), ("validation", "eval_loss"), ("rate", "learning_rate")):
            if logs and key in logs:
                self.history[name].append((state.global_step, float(logs[key])))
        if time.perf_counter() >= self._next_picture:
            self._redraw(state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Ask the model for a sample answer now and then."""
        if state.global_step % self.sample_every == 0:
            self._ask(state, model)

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the final picture and save it."""
        png = self._redraw(state)
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(png)

    def _ask(self, state, model) -> None:
        """Add a sample answer, and show all of them under the picture."""
        if self.sample:
            self.samples.append((state.global_step, self.sample(model)))
        if self._text_on_page and self.samples:
            self._text_on_page.update(HTML(samples_as_html(self.samples)))

    def _redraw(self, state) -> bytes:
        """Replace the picture on the page; return it."""
        start = time.perf_counter()
        png = self._png(state)
        if self._picture_on_page:
            self._picture_on_page.update(Image(png))
        self.redraws += 1
        now = time.perf_counter()
        self._next_picture = now + max(SECONDS_BETWEEN_PICTURES, (now - start) / DRAWING_SHARE)
        return png

    def _png(self, state) -> bytes:
        """Draw the picture; return it as the bytes of a PNG file."""
        figure, buffer = Figure(figsize=(9, 3.6), layout="constrained"), BytesIO()
        loss, rate = figure.subplots(1, 2, width_ratios=(2, 1))
        for name, style in (("train", "-"), ("validation", "o--")):
            if self.history[name]:
                loss.plot(*zip(*self.history[name], strict=True), style, label=name)
                loss.legend()
        if self.history["rate"]:
            rate.plot(*zip(*self.history["rate"], strict=True), color="tab:gray")
        loss.set(xlabel="step", ylabel="loss (nats per token)", title=self._progress(state))
        rate.set(xlabel="step", title="learning rate")
        for axes in (loss, rate):
            axes.set(xlim=(0, max(state.max_steps, 1)), ylim=(0, None))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def _progress(self, state) -> str:
        """Say how far training is, and how long the rest will take at the pace so far."""
        done, seconds = state.global_step - self._first_step, time.perf_counter() - self._start
        text = f"step {state.global_step} of {state.max_steps}"
        if not done:
            return text
        left = seconds / done * (state.max_steps - state.global_step)
        return f"{text}, {seconds:.0f} s" + (f", about {left:.0f} s left" if left else "")


def samples_as_html(samples: list[tuple[int, str]]) -> str:
    """Return (step, text) pairs as lines of HTML; what the model wrote is escaped."""
    return "".join(f"<div><b>{step}:</b> {html.escape(text)}</div>" for step, text in samples)
