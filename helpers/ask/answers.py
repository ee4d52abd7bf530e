"""Ask a model questions, score the answers and show them side by side."""
from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from os.path import commonprefix
from typing import NamedTuple

import pandas as pd
import torch
from transformers import DynamicCache, TextStreamer
from transformers.cache_utils import DynamicLayer

from helpers.ask.scores import score_answers
from helpers.data.chat import as_prompt, encode_chat, end_ids, prompt_text

WORTH_KEEPING = 16  # tokens that all prompts begin with; with fewer, reading them once saves nothing
BY_COLUMN = ("mpt", "gpt_neo")  # these models count the columns of a batch, and so what pads it, in place of positions
GREEDY = {"do_sample": False, "use_cache": True, "repetition_penalty": 1.0, "num_beams": 1}  # some models come with other settings


class Answer(NamedTuple):
    """One answer: its text, and whether the model ended it by itself (with its end-of-turn token)."""

    text: str
    stopped: bool


def generate_answers(model, tokenizer, questions: list[str | list[dict]], max_new_tokens: int = 40, batch_size: int = 32) -> list[Answer]:
    """Answer each question greedily, in batches; one Answer a question, in the same order.

    A question is a text, which is sent as one user message, or a list of messages: to ask what a record teaches, all of
    its messages but the last. Raises ValueError for a question that is neither, or ends with an answer, and a batch of none.
    Every prompt is padded so that it ends where its answer begins. Prompts of like length share a batch, and what all of them
    begin with, as a system message, is read once where the model's cache allows it.
    """
    if isinstance(questions, str):
        raise ValueError("questions is one text; put it into a list")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; give 1 or more")
    prompts = _encode(tokenizer, [as_prompt(question) for question in questions])
    if tokenizer.pad_token_id is None:  # nothing to make prompts of one length with
        batch_size = 1
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    with _evaluating(model):
        read = _read_once(model, prompts)
        for start in range(0, len(order), batch_size):
            chosen = order[start:start + batch_size]
            answers.update(zip(chosen, _answer_batch(model, tokenizer, [prompts[i] for i in chosen], max_new_tokens, read), strict=True))
    return [answers[i] for i in range(len(prompts))]


def stream_answer(model, tokenizer, question: str | list[dict], show: Callable[[str], None], max_new_tokens: int = 40,
                  temperature: float = 0.0) -> Answer:
    """Answer one question, and call show(text so far) after every new word. Returns the Answer.

    With temperature 0 each token is the likeliest; above, it is drawn at random, the more freely the higher it is.
    Raises ValueError for a blank question and for a temperature below 0.
    """
    if not prompt_text(question).strip() or temperature < 0:
        raise ValueError("question is blank: type one" if temperature >= 0 else f"temperature is {temperature}: give 0 or more")
    how = {"do_sample": True, "temperature": temperature} if temperature else {}
    with _evaluating(model):
        return _answer_batch(model, tokenizer, _encode(tokenizer, [as_prompt(question)]), max_new_tokens,
                             streamer=_WordByWord(tokenizer, show), **how)[0]


class _WordByWord(TextStreamer):
    """Hand on the answer so far, without the prompt and the control tokens."""

    def __init__(self, tokenizer, show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._text, self._show = "", show

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._text += text
        self._show(_whole(self._text))


def _encode(tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    return encode_chat(tokenizer, prompts, add_generation_prompt=True)["input_ids"] if prompts else []


@torch.inference_mode()
def _read_once(model, prompts: list[list[int]]) -> DynamicCache | None:
    """Return what the model keeps (its key-value cache) of the tokens that all prompts begin with; None where that saves nothing."""
    shared = commonprefix(prompts)[:min(map(len, prompts), default=0) - 1]  # something of each prompt is left to read
    learned = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)  # an adapter with a cache of its own
    unfit = getattr(model.generation_config, "cache_implementation", None) or model.config.model_type in BY_COLUMN
    if len(prompts) < 2 or len(shared) < WORTH_KEEPING or learned or unfit or not _is_plain(DynamicCache(config=model.config)):
        return None
    ids = torch.tensor([shared], device=model.device)
    cache = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, return_dict_in_generate=True,
                           **GREEDY).past_key_values
    return cache if _is_plain(cache) else None


def _is_plain(cache) -> bool:
    """Say whether a cache keeps all tokens; a window or a state can't be continued from the middle of a prompt."""
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


@torch.inference_mode()
def _answer_batch(model, tokenizer, prompts: list[list[int]], max_new_tokens, read=None, **how):
    start, width, pad = read.get_seq_length() if read else 0, max(map(len, prompts)), tokenizer.pad_token_id or 0
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [prompt[:start] + [pad] * gap + prompt[start:] for prompt, gap in zip(prompts, gaps, strict=True)]
    seen = [[1] * start + [0] * gap + [1] * (width - start - gap) for gap in gaps]
    if read:
        how["past_key_values"] = deepcopy(read)
        how["past_key_values"].batch_repeat_interleave(len(prompts))
    out = model.generate(input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(seen, device=model.device),
                         max_new_tokens=max_new_tokens, pad_token_id=pad, **GREEDY | how)
    ends = torch.tensor(sorted(end_ids(model.generation_config)), dtype=torch.long, device=out.device)
    return [Answer(_whole(tokenizer.decode(row, skip_special_tokens=True)), bool(torch.isin(row, ends).any())) for row in out[:, width:]]


def _whole(text: str) -> str:
    """Return the text without the half of a character with which an answer ends that was cut off."""
    return text.rstrip("\ufffd").strip()


@contextmanager
def _evaluating(model):
    modes = {part: part.training for part in model.modules()}  # a base in a new PeftModel may have another than its wrapper
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def compare_answers(questions: list[str | list[dict]], answers: dict[str, list[Answer]], key_phrases: list[str] | None = None,
                    whole: bool = False):
    """Return a styled table: a row a question, a column for each named list of answers; right ones have a green edge and a tick.

    A question that is a list of messages is shown whole, each after its role. Text from models and files is escaped.
    whole: as for score_answers. Raises ValueError where answers are named "question", as the first column is.
    """
    if "question" in answers:
        raise ValueError('answers are named "question", as the first column is: give them another name')
    columns = {"question": [prompt_text(question) for question in questions]}
    for name, given in answers.items():
        right = score_answers(given, key_phrases, whole) if key_phrases else [None] * len(given)
        columns[name] = [_mark(answer, ok) for answer, ok in zip(given, right, strict=True)]
    style = pd.DataFrame(columns).style.format(escape="html").format_index(escape="html", axis="columns").hide(axis="index")
    style = style.set_properties(**{"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top", "max-width": "22em"})
    style = style.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')  # else JupyterLab makes a formula of two prices
    return style.set_table_styles([{"selector": "th", "props": "text-align: left"}])


def _mark(answer: Answer | str, right: bool | None) -> str:
    sign = {None: "", True: "✓ ", False: "✗ "}[right]
    text, stopped = (answer, True) if isinstance(answer, str) else answer
    return sign + text + ("" if stopped else " … (did not stop)")
