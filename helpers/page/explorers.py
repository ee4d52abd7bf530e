"""Put controls over a result that follows them, and two answers side by side."""
from __future__ import annotations

import html
import threading
from collections.abc import Callable

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import clear_output
from peft.helpers import rescale_adapter_scale

from helpers.ask.answers import stream_answer

ONE_AT_A_TIME = threading.RLock()
COLUMN = '<b>{name}</b><div style="border-left:3px {line} #6e7781;padding-left:8px;white-space:pre-wrap;min-height:3em">{text}</div>'
WAIT = "A cell is running, perhaps on this model. Ask again when it has ended."


def explore(function: Callable, **controls) -> widgets.VBox:
    """Return controls over what function(**values) returns or shows, made anew at every move; no label is cut.

    controls: as for ipywidgets.interact. An error of the function appears in the place of its result. A figure is shown
    by the function itself, with show_plot.
    """
    panel = _Explorer(function, {"auto_display": True}, **controls)
    _lay_out(panel.children[:-1])
    return panel


class _Explorer(widgets.interactive):
    """ipywidgets' own, for one move at a time.

    JupyterLab answers widgets in threads beside the cells. Where two moves overlap, ipywidgets catches the end of one as
    if it were output; the browser waits for that end, and never again sends what the control says.
    """

    def update(self, *change) -> None:
        """Call the function when no other explorer is at work; pyplot, too, can serve one thread only."""
        with ONE_AT_A_TIME:
            super().update(*change)


def before_and_after(model, tokenizer, max_new_tokens: int = 40) -> widgets.VBox:
    """Return a box in which both models answer a typed question, word by word: the base left, the fine-tuned right.

    model: a PEFT model with a LoRA adapter; it is left as it was found, after an error or an interrupt too. It is not
    asked while a cell runs, which may be training or scoring the same model.
    """
    cell_runs = _watch_cells()
    question = widgets.Text(description="question", placeholder="Type a question and press Enter")
    temperature = widgets.FloatSlider(0, min=0, max=1.5, step=0.1, description="temperature")
    strength = widgets.FloatSlider(1, min=0, max=1.5, step=0.1, description="adapter strength")
    ask = widgets.Button(description="Ask both")
    columns = [widgets.HTML(layout=widgets.Layout(width="50%", margin="0 12px 0 0")) for _ in range(2)]
    errors = widgets.Output()

    def reply(_):
        names = "base", f"fine-tuned, strength {strength.value:g}"
        shows = [_column(*each) for each in zip(columns, names, ("dotted", "solid"), strict=True)]
        with ONE_AT_A_TIME, errors:
            clear_output()
            for show in shows:
                show(WAIT if cell_runs.is_set() else "")
            if cell_runs.is_set():
                return
            how = {"temperature": temperature.value, "max_new_tokens": max_new_tokens}
            with model.disable_adapter():
                stream_answer(model, tokenizer, question.value, shows[0], **how)
            with rescale_adapter_scale(model, strength.value):
                stream_answer(model, tokenizer, question.value, shows[1], **how)

    ask.on_click(reply)
    question.on_msg(lambda _, content, buffers: content.get("event") == "submit" and reply(None))  # the Enter key
    _lay_out([question, temperature, strength])
    return widgets.VBox([question, temperature, strength, ask, widgets.HBox(columns), errors])


def _watch_cells() -> threading.Event:
    """Return an event that is set while a cell runs, from the next cell on, which waits for an answer in the making."""
    runs = threading.Event()

    def begin(info) -> None:
        with ONE_AT_A_TIME:
            runs.set()

    if shell := get_ipython():
        shell.events.register("pre_run_cell", begin)
        shell.events.register("post_run_cell", lambda result: runs.clear())
    return runs


def _column(column: widgets.HTML, name: str, line: str) -> Callable[[str], None]:
    """Return a function that shows a text in the column, escaped."""
    def show(text: str) -> None:
        column.value = COLUMN.format(name=name, line=line, text=html.escape(text))
    return show


def _lay_out(controls) -> None:
    """Line the controls up, with room for the longest label."""
    for control in controls:
        control.style.description_width = f"{max(len(each.description) for each in controls) + 1}ch"
        control.layout.width = "min(44em, 98%)"
