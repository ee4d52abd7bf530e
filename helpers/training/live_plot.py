"""Draw the loss while a model trains, and let the learner stop it."""

import html
import math
import signal
import threading
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import HTML, display
from matplotlib.figure import Figure
from transformers import TrainerCallback

from helpers.training.saving import best_step, written_whole

SECONDS_BETWEEN_PICTURES = 1.0
DRAWING_SHARE = 0.05  # of the time of training, at most: a slow machine draws less often
KINDS_OF_FILE = (".png", ".svg", ".pdf", ".jpg")
NAMES = {"train": "training loss", "validation": "validation loss", "rate": "learning rate"}
HOVER = '<circle cx="{:.1f}" cy="{:.1f}" r="6" fill="transparent"><title>{}</title></circle>'


class LossPlot(TrainerCallback):
    """Draw training loss, validation loss and learning rate in place, with sample answers below; save the last picture.

    path: the file for the picture when training ends, .png, .svg, .pdf or .jpg. sample(model) -> str is called before the first step and then every
    `sample_every` steps, if given. After training `history` holds a list of (step, value) for each of "train" and
    "validation" (nats per token) and "rate"; `samples` a list of (step, text); `stopped` is true if it was ended early,
    by the button or by the notebook's interrupt, which both wait for the step to end. Outside a notebook nothing is shown.
    Raises ValueError for a path that no picture can be written to, and unless sample_every is at least 1.
    """

    def __init__(self, path: str | Path, sample: Callable[..., str] | None = None, sample_every: int = 20) -> None:
        self.path, self.sample, self.sample_every = Path(path), sample, sample_every
        if self.path.suffix.lower() not in KINDS_OF_FILE or self.path.is_dir():
            raise ValueError(f"path is {str(path)!r}; give the file for the picture, with one of the endings {', '.join(KINDS_OF_FILE)}")
        if sample_every < 1:
            raise ValueError(f"sample_every is {sample_every}; give a number of steps, 1 or more")
        self._start_afresh()

    def _start_afresh(self, first_step: int = 0) -> None:
        """Forget an earlier run and start the clock."""
        self.history: dict[str, list[tuple[int, float]]] = {"train": [], "validation": [], "rate": []}
        self.samples: list[tuple[int, str]] = []
        self._read_so_far, self._validation = 0, ""
        self.stopped, self._stop_asked = False, threading.Event()
        self._first_step, self._start, self._next_picture = first_step, time.perf_counter(), 0.0
        self._picture_on_page = self._text_on_page = self._button_on_page = self._handler_before = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Put a button, a picture and the answer of the model before training on the page; a resumed run brings its log along."""
        self._start_afresh(first_step=state.global_step)
        self._read(state)
        if get_ipython():
            self._button_on_page = display(stop_button(self.stop), display_id=True)
            self._picture_on_page = display(HTML(as_html(draw(self.history, state.max_steps, self._progress(state)), self.history)), display_id=True)
            self._text_on_page = display(HTML(""), display_id=True)
            if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
                self._handler_before = signal.signal(signal.SIGINT, self._on_interrupt)
        self._ask(state, model)

    def on_log(self, args, state, control, **kwargs):
        """Take the numbers that the trainer logs, and draw them if the last picture is old enough."""
        self._read(state)
        if time.perf_counter() >= self._next_picture:
            self._redraw(state)

    def _read(self, state) -> None:
        """Take the trainer's log; the validation loss that a resumed run measures again replaces the one before."""
        for entry in state.log_history[self._read_so_far:]:
            self._validation = self._validation or next((key for key in entry if key.startswith("eval_") and key.endswith("loss")), "")  # of several sets the first
            for name, key in (("train", "loss"), ("validation", self._validation), ("rate", "learning_rate")):
                if key in entry:
                    line = self.history[name]
                    if line and line[-1][0] == entry["step"]:
                        line.pop()
                    line.append((entry["step"], float(entry[key])))
        self._read_so_far = len(state.log_history)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """End training if that was asked for, with a checkpoint if any are written; ask the model for a sample answer now and then."""
        self.stopped = self._stop_asked.is_set() and state.global_step < state.max_steps
        control.should_training_stop |= self.stopped
        control.should_save |= self.stopped and args.save_strategy != "no"
        if state.global_step % self.sample_every == 0 or self.stopped:
            self._ask(state, model)
        return control

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the final picture and save it; the button gives way to a sentence if training was stopped."""
        figure = self._redraw(state)
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)
        if self._button_on_page:
            self._button_on_page.update(HTML(stopped_text(state.global_step, state.max_steps, best_step(args, state)) if self.stopped else ""))
        if state.is_world_process_zero:
            try:
                with written_whole(self.path) as file:
                    figure.savefig(file, dpi=100)
            except OSError as error:  # what was trained must not be lost for a picture
                print(f"The picture could not be written to {self.path}: {error}. Training is not affected.")

    def stop(self) -> None:
        """Ask training to end after the step that it is in; any thread may call this."""
        self._stop_asked.set()

    def _on_interrupt(self, *signal_and_frame) -> None:
        """Turn the first interrupt into a stop, which ends training in order; the second one is not held back."""
        if self._stop_asked.is_set():
            raise KeyboardInterrupt
        self.stop()

    def _ask(self, state, model) -> None:
        """Add a sample answer, and show all of them under the picture."""
        if self.sample:
            self.samples.append((state.global_step, self.sample(model)))
        if self._text_on_page and self.samples:
            self._text_on_page.update(HTML(samples_as_html(self.samples)))

    def _redraw(self, state) -> Figure:
        start = time.perf_counter()
        figure = draw(self.history, state.max_steps, self._progress(state))
        if self._picture_on_page:
            self._picture_on_page.update(HTML(as_html(figure, self.history)))
        now = time.perf_counter()
        self._next_picture = now + max(SECONDS_BETWEEN_PICTURES, (now - start) / DRAWING_SHARE)
        return figure

    def _progress(self, state) -> str:
        """Say how far training is, and how long the rest will take at the pace so far."""
        done, seconds = state.global_step - self._first_step, time.perf_counter() - self._start
        text = f"step {state.global_step} of {state.max_steps}"
        if not done:
            return text
        left = 0 if self.stopped else seconds / done * (state.max_steps - state.global_step)
        return f"{text}, {seconds:.0f} s" + (f", about {left:.0f} s left" if left else "")


def draw(history: dict[str, list[tuple[int, float]]], max_steps: int, title: str) -> Figure:
    """Return the picture: the losses in the left axes, the learning rate in the right ones."""
    figure = Figure(figsize=(9, 3.6), dpi=72)  # 72: one unit of the SVG is one pixel; a layout made to measure takes twice the time
    margins = {"left": 0.08, "right": 0.99, "bottom": 0.15, "top": 0.9, "wspace": 0.17}
    loss, rate = figure.subplots(1, 2, width_ratios=(2, 1), gridspec_kw=margins)
    for name, style, axes in (("train", ".-", loss), ("validation", "s--", loss), ("rate", ".-", rate)):
        if history[name]:
            axes.plot(*zip(*history[name], strict=True), style, label=NAMES[name], color="gray" if axes is rate else None,
                      clip_on=False)
    if loss.lines:
        loss.legend()
    loss.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    rate.set(xlabel="step", title="learning rate")
    for axes in (loss, rate):
        axes.set(xlim=(0, max(max_steps, 1)), ylim=(min(0, axes.dataLim.y0), None))
        axes.spines[["top", "right"]].set_visible(False)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    return figure


def as_html(figure: Figure, history: dict[str, list[tuple[int, float]]]) -> str:
    """Return the picture as inline SVG, which a page replaces without flicker; each point tells its value on hover.

    Who does not see it is told the first and the last value of each line, and the highest where it lies between them.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text, (loss, rate) = buffer.getvalue(), figure.axes
    spots = []
    for name, axes in (("train", loss), ("rate", rate), ("validation", loss)):
        for step, value in history[name]:
            x, y = axes.transData.transform((step, value))
            if math.isfinite(y):
                spots.append(HOVER.format(x, figure.bbox.height - y, f"step {step}: {NAMES[name]} {value:.3g}"))
    lines = [f"{NAMES[name]} {_in_words([value for _, value in values])}" for name, values in history.items() if values]
    label = html.escape("; ".join([f"Loss and learning rate, {loss.get_title()}", *lines]))
    start = f'<svg role="img" aria-label="{label}" style="max-width: 100%; height: auto" '
    return start + text[text.index("<svg ") + 5:text.rindex("</svg>")] + "".join(spots) + "</svg>"


def _in_words(values: list[float]) -> str:
    first, top, last = values[0], max(values), values[-1]
    return f"from {first:.3g}" + f" up to {top:.3g} and" * (top > max(first, last)) + f" to {last:.3g}"


def stop_button(on_click: Callable[[], None]) -> widgets.Button:
    """Return a button that calls `on_click` also while a cell is running."""
    button = widgets.Button(description="Stop training", icon="stop", tooltip="Ends after this step and keeps what it learned")

    def clicked(_):
        button.set_trait("disabled", True)
        button.description = "Stopping ..."
        on_click()

    button.on_click(clicked)
    # ipykernel 7.4 sends a click to the thread that made the button, which is busy training. Without this method it
    # goes where JupyterLab addressed it: to a thread of its own. (Elsewhere a click waits, and the interrupt stops.)
    button.comm._reply_subshell_for = None
    return button


def stopped_text(step: int, max_steps: int, best: int | None = None) -> str:
    """Return the sentence for a run that was ended early; best: the step whose weights the trainer has put back."""
    kept = f"is that of step {best}, whose validation loss was the lowest" if best else "keeps what it has learned up to here"
    return f"<b>Stopped after step {step} of {max_steps}. The model {kept}.</b>"


def samples_as_html(samples: list[tuple[int, str]]) -> str:
    """Return (step, text) pairs as lines of HTML; what the model wrote is escaped."""
    return "".join(f"<div><b>{step}:</b> {html.escape(text)}</div>" for step, text in samples)
