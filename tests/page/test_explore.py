import base64
import html
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import cycle

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from notebook_tools import ROOT
from peft import LoraConfig, get_peft_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from helpers.ask.answers import generate_answers
from helpers.model.base_model import base_model_path
from helpers.page.explorers import before_and_after, explore

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def model():
    """The base model with an adapter that changes its answers."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    return model


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(100, 112).reshape(1, 12)).logits


def state(model):
    """What a box must leave as it was: what is trained, what is switched on, the factors, and the mode."""
    layers = [part for part in model.modules() if isinstance(part, LoraLayer)]
    return ([p.requires_grad for p in model.parameters()], [(part.scaling, part.disable_adapters, part.active_adapters) for part in layers],
            model.training)


def box(model, tokenizer, question=QUESTION, **sliders):
    panel = before_and_after(model, tokenizer, max_new_tokens=6)
    controls = {child.description: child for child in panel.children if getattr(child, "description", "")}
    controls["question"].value = question
    for name, value in sliders.items():
        controls[name.replace("_", " ")].value = value
    return panel, controls, [column for child in panel.children if isinstance(child, widgets.HBox) for column in child.children]


def test_strength_0_is_the_base_and_1_the_adapter(model):
    tuned = logits(model)
    with model.disable_adapter():
        base = logits(model)
    for strength, expected in [(0, base), (1, tuned)]:
        with rescale_adapter_scale(model, strength):
            assert torch.equal(logits(model), expected)
    with rescale_adapter_scale(model, 0.5):
        half = logits(model)
    assert (half - base).abs().max() > 1e-2 and (half - tuned).abs().max() > 1e-2
    assert torch.equal(logits(model), tuned)


@pytest.mark.parametrize("ask", ["button", "Enter"])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_both_answers_stand_side_by_side(model, tokenizer, strength, ask):
    before = state(model)
    panel, controls, (left, right) = box(model, tokenizer, adapter_strength=strength)
    if ask == "button":
        controls["Ask both"].click()
    else:
        controls["question"]._handle_custom_msg({"event": "submit"}, [])  # what the browser sends for the Enter key
    with model.disable_adapter():
        base = generate_answers(model, tokenizer, [QUESTION], 6)[0].text
    tuned = generate_answers(model, tokenizer, [QUESTION], 6)[0].text
    assert base != tuned and html.escape(base) in left.value and html.escape(tuned if strength else base) in right.value
    assert f"strength {strength:g}" in right.value and state(model) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("falls_in", ["base", "tuned"])
def test_an_error_or_an_interrupt_leaves_the_model_as_it_was(model, tokenizer, error, falls_in):
    before, asked = (state(model), logits(model)), []
    layer = next(part for part in model.modules() if isinstance(part, LoraLayer))

    def fall(*_):
        asked.append("base" if layer.disable_adapters else "tuned")
        if asked[-1] == falls_in:
            raise error

    hook = model.get_base_model().register_forward_pre_hook(fall)
    _, controls, _ = box(model, tokenizer, adapter_strength=0.3)
    with suppress(error):  # a button passes an interrupt on, and logs an error
        controls["Ask both"].click()
    hook.remove()
    assert asked[-1] == falls_in and state(model) == before[0] and torch.equal(logits(model), before[1])


def test_an_empty_question_is_asked_for(model, tokenizer):
    panel, controls, columns = box(model, tokenizer, question="  ")
    controls["Ask both"].click()
    assert all("Type a question first." in column.value for column in columns) and panel.children[-1].outputs == ()


def test_a_models_answer_is_escaped(model, tokenizer):
    said = cycle([*tokenizer("<script>")["input_ids"], tokenizer.eos_token_id])
    hook = model.get_base_model().lm_head.register_forward_hook(lambda *call: torch.nn.functional.one_hot(torch.full(call[2].shape[:2], next(said)), call[2].shape[-1]).float())
    _, controls, columns = box(model, tokenizer)
    controls["Ask both"].click()
    hook.remove()
    assert all("<script" not in column.value and "&lt;script&gt;" in column.value for column in columns)


def test_every_move_of_a_control_calls_the_function_again():
    seen = []
    panel = explore(lambda number, word: seen.append((number, word)), number=(1, 9), word=["a", "b"])
    number, word = panel.children[:2]
    number.value, word.value = 7, "b"
    assert seen == [(5, "a"), (7, "a"), (7, "b")]


def test_a_default_is_where_its_control_begins_and_what_is_returned_is_shown():
    def look(rank=8, word="b"):
        return word if rank < 9 else pd.DataFrame({"rank": [rank]})

    panel = explore(look, rank=(1, 64), word=["a", "b"])
    rank, word, place = panel.children
    assert (rank.value, word.value) == (8, "b") and place.outputs == ({"output_type": "stream", "name": "stdout", "text": "b"},)
    rank.value = 16
    assert "<td>16</td>" in place.outputs[0]["data"]["text/html"]


def test_an_error_and_nothing_to_show_stand_in_the_result_s_place():
    panel = explore(lambda number: 1 / number, number=(0, 2))
    panel.children[0].value = 0
    [shown] = panel.children[-1].outputs
    assert (shown["output_type"], shown["ename"]) == ("error", "ZeroDivisionError") and "1 / number" in "".join(shown["traceback"])
    [shown] = explore(lambda number: None, number=(0, 2)).children[-1].outputs
    assert shown["text"] == "<lambda> returned nothing. Let it return what is to be seen here, in place of printing it.\n"


def test_controls_of_all_kinds_and_functions_that_take_anything():
    panel = explore(lambda number, **more: f"{number} {sorted(more)}", number=(0, 4), fixed=widgets.fixed(7), word=["a", "b"])
    assert [child.description for child in panel.children[:-1]] == ["number", "word"]
    assert panel.children[-1].outputs[0]["text"] == "2 ['fixed', 'word']"
    once_more = explore(partial(lambda factor, number: factor * number, 3), number=panel.children[0])
    panel.children[0].value = 4
    assert once_more.children[-1].outputs[0]["data"]["text/plain"] == "12"
    assert panel.children[-1].outputs[0]["text"].startswith("2 ")  # the widget serves the new function only


@pytest.mark.parametrize("given, said", [({"nubmer": (0, 4)}, "no argument 'nubmer'; it takes number"), ({"number": None}, "no control can be made of number=None")])
def test_a_control_that_does_not_fit_is_a_sentence(given, said):
    with pytest.raises(ValueError, match=said):
        explore(lambda number: str(number), **given)


def test_what_is_shown_can_be_kept_in_a_notebook():
    class Png:
        def _repr_png_(self):
            return b"\x89PNG"

    class Bad:
        def _repr_html_(self):
            raise RuntimeError("no page")

    figures = plt.get_fignums()
    shown = {number: explore(lambda number, what=what: what(), number=(0, 4)).children[-1].outputs[0]
             for number, what in enumerate((Png, plt.figure, Bad))}
    json.dumps(shown)
    assert base64.b64decode(shown[0]["data"]["image/png"]) == b"\x89PNG" and plt.get_fignums() == figures


def test_two_threads_never_work_at_once():
    """JupyterLab serves widgets in threads of their own; see the browser's test of two controls moved at once."""
    inside, most = [], []

    def slow(number, other):
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    one, two = (explore(slow, number=(0, 9), other=(0, 9)) for _ in range(2))
    controls = [*one.children[:2], *two.children[:2]]
    threads = [threading.Thread(target=setattr, args=(control, "value", value)) for value in (1, 2) for control in controls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 2 + 8 and max(most) == 1


IN_A_SHELL = """
import threading, time, torch
from IPython.core.interactiveshell import InteractiveShell
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from helpers.model.base_model import base_model_path
from helpers.page.explorers import before_and_after

shell = InteractiveShell.instance()
tokenizer = AutoTokenizer.from_pretrained(base_model_path())
base = AutoModelForCausalLM.from_pretrained(base_model_path(), dtype=torch.float32)
model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
box = before_and_after(model, tokenizer)
question, _, _, ask, (left, right), _ = (getattr(child, "children", child) for child in box.children)
question.value = "Tell me a long story about a lighthouse."
shell.user_ns.update(click=threading.Thread(target=ask.click), left=left, right=right, model=model)
shell.run_cell("click.start(); click.join()")
assert "A cell is running" in left.value and "A cell is running" in right.value, left.value

click = threading.Thread(target=ask.click)
click.start()
while not left.value.endswith("</div>") or "A cell" in left.value or left.value.count(" ") < 12:
    time.sleep(0.01)
layer = next(layer for layer in model.modules() if hasattr(layer, "disable_adapters") and hasattr(layer, "lora_A"))
assert layer.disable_adapters, "the base model was to be answering now"
shell.user_ns["layer"] = layer
shell.run_cell("seen = layer.disable_adapters, click.is_alive(), right.value")
off, alive, text = shell.user_ns["seen"]
assert not off, "a cell met the model with its adapter switched off"
assert len(text) > 150, text
"""


def test_it_is_not_asked_while_a_cell_runs_and_a_cell_waits_for_an_answer():
    subprocess.run([sys.executable, "-c", IN_A_SHELL], check=True, timeout=240, cwd=ROOT)


def test_labels_have_room():
    panel = explore(lambda number, slider: None, number=(1, 9), slider=widgets.IntSlider(1, description="a much longer label"))
    for control in panel.children[:-1]:
        assert len(control.description) < int(control.style.description_width.removesuffix("ch"))
