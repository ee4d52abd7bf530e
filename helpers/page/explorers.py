"""Put controls over a result that follows them, and two answers side by side."""
import html
import inspect
import threading
from base64 import encodebytes
from collections.abc import Callable
from traceback import format_exception
from weakref import WeakKeyDictionary

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython import get_ipython
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from peft.helpers import rescale_adapter_scale

from helpers.ask.answers import stream_answer

ONE_AT_A_TIME = threading.RLock()
SERVES = WeakKeyDictionary()  # control -> what it calls
COLUMN = '<b>{name}</b><div style="border-left:3px {line} #6e7781;padding-left:8px;white-space:pre-wrap;min-height:3em">{text}</div>'
WAIT = "A cell is running, perhaps on this model. Ask again when it has ended."


def explore(function: Callable, **controls) -> widgets.VBox:
    """Return controls over what function(**values) returns, made anew at every move; no label is cut.

    controls: as for ipywidgets.interact, fixed(...) too; a default of the function is where its control begins. function
    returns a text, or what a cell shows as its last line: a table, a picture of helpers.page. Its error appears in that
    place. (What it prints or displays is not caught: ipywidgets' way to do that leaves a control dead where two moves
    overlap.) Raises ValueError for a control that the function does not take, or that nothing can be made of.
    """
    chosen = _controls(function, controls)
    place, shown = widgets.Output(), [control for control in chosen.values() if isinstance(control, widgets.DOMWidget)]

    def move(change=None) -> None:
        with ONE_AT_A_TIME:  # JupyterLab answers widgets in threads beside the cells, and pyplot serves one
            place.outputs = (_output_of(function, {name: control.value for name, control in chosen.items()}),)

    for control in shown:
        if before := SERVES.pop(control, None):  # a widget used once more, as when a cell is run again
            control.unobserve(before, "value")
        control.observe(move, "value")
        SERVES[control] = move
    move()
    _lay_out(shown)
    return widgets.VBox([*shown, place])


def _controls(function: Callable, given: dict) -> dict:
    taken = inspect.signature(function).parameters
    anything, chosen = any(each.kind == each.VAR_KEYWORD for each in taken.values()), {}
    for name, abbreviation in given.items():
        if name not in taken and not anything:
            raise ValueError(f"the function has no argument {name!r}; it takes {', '.join(taken)}")
        default = taken[name].default if name in taken else inspect.Parameter.empty
        if (control := widgets.interactive.widget_from_abbrev(abbreviation, default)) is None:
            raise ValueError(f"no control can be made of {name}={abbreviation!r}; give a range, a list, a text, a number, a bool or a widget")
        control.description = control.description or name
        chosen[name] = control
    return chosen


def _output_of(function: Callable, values: dict) -> dict:
    """Return what a notebook keeps of a cell, of the call instead."""
    try:
        result = function(**values)
        if result is None:
            result = f"{getattr(function, '__name__', 'The function')} returned nothing. Let it return what is to be seen here, in place of printing it.\n"
        if isinstance(result, str):
            return {"output_type": "stream", "name": "stdout", "text": result}
        if isinstance(result, Figure):
            plt.close(result)
        shell = get_ipython()
        data, metadata = (shell.display_formatter if shell else DisplayFormatter()).format(result)
        data = {kind: encodebytes(content).decode() if isinstance(content, bytes) else content for kind, content in data.items()}
        return {"output_type": "display_data", "data": data, "metadata": metadata}
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> dict:
    return {"output_type": "error", "ename": type(error).__name__, "evalue": str(error), "traceback": format_exception(error)}


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
        how = {"temperature": temperature.value, "max_new_tokens": max_new_tokens}
        errors.outputs = ()
        with ONE_AT_A_TIME:
            hint = WAIT if cell_runs.is_set() else "" if question.value.strip() else "Type a question first."
            for show in shows:
                show(hint)
            if hint:
                return
            try:
                with model.disable_adapter():
                    stream_answer(model, tokenizer, question.value, shows[0], **how)
                with rescale_adapter_scale(model, strength.value):
                    stream_answer(model, tokenizer, question.value, shows[1], **how)
            except Exception as error:
                errors.outputs = (_failure(error),)

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
