"""What an adapter does: answers and logits with it, without it, and of a model into which it is merged."""
import warnings

import psutil
import torch
from jinja2 import TemplateError
from peft import PeftModel

from helpers import first_line
from helpers.adapter.faults import Check, check
from helpers.adapter.state import ROUNDED, holds, lora_layers, only_magnitudes
from helpers.ask.answers import generate_answers
from helpers.data.chat import as_prompt, encode_chat

NEW_TOKENS = 20  # in each answer that is compared
VISIBLE = 0.1  # of the next token's probability, moved on average: the two-record run moves about 0.01, 15 good steps move 0.25
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by less


def not_examined(why_not: str) -> list[Check]:
    """Return the checks of an effect that can't be told, each with the reason."""
    return [check(name, None, f"not examined: {why_not}") for name in ("logits differ", "answers differ")]


def check_effect(model, tokenizer, questions: list, from_zero: bool, merge: bool) -> tuple[list[Check], list]:
    """Compare answers and logits with the adapter off and on, and of a merged model; the model is of no use afterwards.

    from_zero: with the adapter off, the model is as it was before training. Return the answers with the adapter too.
    """
    asked, failure = questions if tokenizer is not None else [], ""
    model.eval()
    model.base_model.disable_adapter_layers()
    try:
        before = generate_answers(model, tokenizer, asked, NEW_TOKENS) if asked else []
    except (ValueError, TypeError, LookupError, RuntimeError, TemplateError) as error:  # a tokenizer that can't chat, or has more tokens
        asked, before, failure = [], [], f"asking failed ({first_line(error):.150})"
    known = model.get_input_embeddings().weight.shape[0]
    rows = [_row(tokenizer, *pair) for pair in zip(asked, before, strict=True)] or [(torch.arange(16)[None] % min(4, known), 0)]
    logits_off = _logits(model, rows)
    model.base_model.enable_adapter_layers()
    logits = _logits(model, rows)
    if not logits.isfinite().all():
        ok, which = (False, "with the adapter") if logits_off.isfinite().all() else (None, "with the adapter and without")
        return [check("finite logits", ok, f"scores {which} are no numbers"), *not_examined("the scores are no numbers")], []
    answers = generate_answers(model, tokenizer, asked, NEW_TOKENS) if asked else []
    effect = _relative_difference(logits, logits_off)
    pairs = [(layer, name) for layer in lora_layers(model).values() for name in holds(layer, model.active_adapters)]
    least = ROUNDED if all(only_magnitudes(*pair) for pair in pairs) else 1e-6
    checks = [check("logits differ", effect > least or (False if asked else None), f"by up to {effect:.2g} of the largest logit, with the adapter on and off"),
              check("answers differ", None, f"not examined: {failure}") if failure else _check_answers(answers, before, logits, logits_off)]
    if not from_zero:
        checks = not_examined("with the adapter off, this is not the model as it was before")
    return checks + ([_check_merged(model, rows, logits)] if merge else []), answers


def _check_answers(answers_on: list, answers_off: list, logits_on: torch.Tensor, logits_off: torch.Tensor) -> Check:
    """See whether answers changed, and by more than a coin's fall: one doubtful token can tip a whole answer, a certain one does not turn by chance."""
    if not answers_on:
        return check("answers differ", None, "no question was asked")
    differ = sum(one.text != other.text for one, other in zip(answers_on, answers_off, strict=True))
    moved = (logits_on.softmax(-1) - logits_off.softmax(-1)).abs().sum(-1) / 2
    turned = moved[logits_on.argmax(-1) != logits_off.argmax(-1)]
    mean, there = moved.mean().item(), turned.sum().item() / max(1, len(turned))
    measured = f"{differ} of {len(answers_on)}; {mean:.1%} of the next token's probability moved" + f", {there:.1%} where another token became the likeliest" * bool(len(turned))
    return check("answers differ", differ > 0 and max(mean, there * differ / len(answers_on)) >= VISIBLE, measured)


def _check_merged(model, rows: list, logits: torch.Tensor) -> Check:
    """Merge for real, where that is possible, and compare the logits."""
    weights = [getattr(layer.get_base_layer(), "weight", None) for layer in lora_layers(model).values()]
    weights = [weight for weight in weights if weight is not None]
    need, free = sum(weight.nbytes for weight in weights), psutil.virtual_memory().available
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    if any(type(weight) is not torch.nn.Parameter for weight in weights):
        return check("merged model", None, "not examined: the base is packed. Load it unpacked, with dtype=torch.float32, to merge and to see")
    if need > free:
        return check("merged model", None, f"not examined: a merge takes {need / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free")
    repeats = any(one.layer_replication for one in model.peft_config.values())
    rounds = not repeats and any(weight.dtype.itemsize < 4 for weight in model.parameters())  # else it is a weight that two modules share
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="peft")  # that a tied table is no longer tied is what is measured
            difference = _relative_difference(logits, _logits(model.merge_and_unload(safe_merge=True), rows))
    except Exception as error:  # there is no list of what a merge raises
        return check("merged model", None, f"not examined: PEFT can't merge this adapter ({first_line(error)})")
    return check("merged model", difference < TOLERANCE, f"logits differ by {difference:.1g} of the largest", "" if rounds else "merged table")


def _row(tokenizer, question: str | list[dict], answer) -> tuple[torch.Tensor, int]:
    """Return the token ids of a question with its answer, as [1, tokens], and how many of them are the prompt."""
    prompt = encode_chat(tokenizer, as_prompt(question), add_generation_prompt=True, return_tensors="pt")["input_ids"]
    given = torch.tensor([tokenizer(answer.text, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    return torch.cat([prompt, given], dim=1), prompt.shape[1]


@torch.inference_mode()
def _logits(model, rows: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """Return the logits for each token of the answers and the one after, as [tokens, vocabulary]."""
    inner = model.base_model if isinstance(model, PeftModel) else model
    return torch.cat([inner(input_ids=ids.to(model.device)).logits[0, max(prompt - 1, 0):].float() for ids, prompt in rows])


def _relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item() / (one.abs().max().item() or 1)
