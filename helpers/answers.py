"""Ask a model questions, score the answers and show them side by side."""
from __future__ import annotations

import html
import re
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import ipywidgets as widgets
import pandas as pd
import torch


class Answer(NamedTuple):
    """One answer: its text, and whether the model ended it by itself (with its end-of-turn token)."""

    text: str
    stopped: bool


def generate_answers(model, tokenizer, questions: list[str], max_new_tokens: int = 40, batch_size: int = 16) -> list[Answer]:
    """Answer each question greedily, in batches; one Answer a question, in the same order.

    Prompts are padded on the left, so that every prompt ends where its answer begins. Questions of like length share a batch.
    """
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    answers: dict[int, Answer] = {}
    with _evaluating(model), _padding_left(tokenizer):
        for start in range(0, len(order), batch_size):
            chosen = order[start:start + batch_size]
            answers.update(zip(chosen, _answer_batch(model, tokenizer, [questions[i] for i in chosen], max_new_tokens), strict=True))
    return [answers[i] for i in range(len(questions))]


@torch.inference_mode()
def _answer_batch(model, tokenizer, questions, max_new_tokens):
    chats = [[{"role": "user", "content": question}] for question in questions]
    batch = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True,
                                          enable_thinking=False).to(model.device)
    out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=tokenizer.pad_token_id)
    new = out[:, batch["input_ids"].shape[1]:]
    ends = model.generation_config.eos_token_id
    ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=new.device)
    return [Answer(tokenizer.decode(row, skip_special_tokens=True).strip(), bool(torch.isin(row, ends).any())) for row in new]


@contextmanager
def _evaluating(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _padding_left(tokenizer):
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def score_answers(answers: list[Answer], key_phrases: list[str]) -> list[bool]:
    """Say for each answer whether it holds its key phrase as whole words, ignoring upper and lower case.

    Raises ValueError when the two lists differ in length.
    """
    return [holds_phrase(answer.text, key) for answer, key in zip(answers, key_phrases, strict=True)]


def holds_phrase(text: str, phrase: str) -> bool:
    """Say whether the text holds the phrase as whole words: "Au" is not in "because"."""
    return re.search(rf"(?<!\w){re.escape(phrase.casefold())}(?!\w)", text.casefold()) is not None


def compare_answers(questions: list[str], answers: dict[str, list[Answer]], key_phrases: list[str] | None = None):
    """Return a styled table: a row a question, a column for each named list of answers; right ones have a green edge and a tick.

    Text from models and files is escaped.
    """
    columns = {"question": questions}
    for name, given in answers.items():
        right = score_answers(given, key_phrases) if key_phrases else [None] * len(given)
        columns[name] = [_mark(answer, ok) for answer, ok in zip(given, right, strict=True)]
    style = pd.DataFrame(columns).style.format(escape="html").hide(axis="index")
    style = style.set_properties(**{"text-align": "left", "white-space": "normal", "vertical-align": "top", "max-width": "22em"})
    return style.set_table_styles([{"selector": "th", "props": "text-align: left"}])


def _mark(answer: Answer, right: bool | None) -> str:
    sign = {None: "", True: "✓ ", False: "✗ "}[right]
    return sign + answer.text + ("" if answer.stopped else " … (did not stop)")


def chat(model, tokenizer, max_new_tokens: int = 60) -> widgets.VBox:
    """Return a chat box: type a question, press Enter; with a PEFT model, choose which of the two answers."""
    adapted = hasattr(model, "disable_adapter")
    who = widgets.ToggleButtons(options=["fine-tuned", "base"] if adapted else ["base"], description="Answer by")
    box = widgets.Text(placeholder="Type a question and press Enter", continuous_update=False, layout=widgets.Layout(width="95%"))
    log = widgets.HTML()

    def reply(change):
        question = change["new"].strip()
        if not question:
            return
        off = model.disable_adapter() if adapted and who.value == "base" else nullcontext()
        with off:
            answer = generate_answers(model, tokenizer, [question], max_new_tokens)[0]
        log.value += f"<p><b>You:</b> {html.escape(question)}<br><b>{who.value}:</b> {html.escape(answer.text)}</p>"
        box.value = ""

    box.observe(reply, names="value")
    return widgets.VBox([who, box, log])
