"""The checks behind diagnose_adapter: each examines one thing, and names the usual cause and the mend if it fails."""
from __future__ import annotations

import math
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError

from helpers.adapter.state import left_as_found, lora_layers, merged, relative_update
from helpers.ask.answers import generate_answers
from helpers.data.chat import encode_chat
from helpers.model.weights import base_dtype, base_hash
from helpers.training.saving import read_record, supervised_tokens

NEW_TOKENS = 20  # in each answer that is compared
VISIBLE = 0.1  # of the next token's probability, moved on average: the two-record run moves about 0.01, 15 good steps move 0.25
TOLERANCE = 1e-3  # of the largest logit: float32 sums in another order differ by less
FAULTS = {  # name of the check that fails -> its verdict, what that means, its cause and mend; the first that fails gives the verdict
    "wrapped once": ("wrapped twice", "One adapter was put on top of another.",
                     "Usual cause: a cell with get_peft_model was run twice, or a model that has an adapter got a new one. "
                     "Mend: load the base model afresh and wrap it once."),
    "finite numbers": ("not a number", "The adapter holds values that are no numbers (NaN or infinite).",
                       "Usual cause: the learning rate was far too high, or fp16 overflowed. Mend: train again with a lower rate, or without fp16."),
    "B is not zero": ("never trained", "The adapter does nothing: B is zero, as it is before the first step.",
                      "Usual cause: train() was not run, or a fresh adapter took the place of the trained one. Mend: train, or load the saved adapter."),
    "its own base": ("wrong base", "The base weights below the adapter are not those it was trained on.",
                     "Usual cause: another model of the same shape, or base weights changed by a merge or by training. "
                     "Mend: load the base model that it was trained on, then the adapter."),
    "switched on": ("disabled", "The adapter is there but switched off, so the base model answers.",
                    "Usual cause: disable_adapter_layers() was called, or this runs inside disable_adapter(). "
                    "Mend: call model.base_model.enable_adapter_layers(), or leave the with block."),
    "saved copy": ("damaged copy", "The saved adapter is not the one in memory.",
                   "Usual cause: training went on after saving, or another run wrote into the folder. Mend: save again with trainer.save_model(folder)."),
    "answers differ": ("too little to see", "Training moved the adapter, but so little that the answers are the same, or nearly.",
                       "Usual cause: too few steps, or a learning rate that is too low. Mend: more records or epochs, or a higher rate."),
}
OTHER_MENDS = {  # checks that do not decide the verdict
    "steps": "Usual cause: train() was not run with this trainer. Mend: run it.",
    "tokens with loss": "Usual cause: max_length cut the answers off, or the labels mask everything. Mend: look at one row with show_tokens.",
    "logits differ": "Usual cause: B is zero or next to it. Mend: train for more steps, or with a higher rate.",
    "merged model": "Usual cause: 16-bit base weights, which round the merged numbers. Mend: merge into a float32 copy of the base.",
}


class Check(NamedTuple):
    """One thing examined: ok is True, False or None (not examined); mend says why and what to do if it failed."""

    name: str
    ok: bool | None
    measured: str
    mend: str = ""


def examine(model, tokenizer, questions: list[str], trainer, saved: Path | None, base) -> tuple[list[Check], dict[str, float]]:
    """Run every check on a PeftModel, which is left as found; return them, and the size of each layer's update.

    The parameters are those of diagnose_adapter; saved is a folder that holds an adapter, or None.
    """
    layers = lora_layers(model)
    update = {name.replace("base_model.model.", ""): relative_update(layer) for name, layer in layers.items()}
    record = read_record(saved) if saved else None
    checks = [_check_wrapping(model, saved), *_check_update(update), _check_base(model, record, base), _check_switch(layers),
              *_check_training(trainer, record)]
    with left_as_found(model):
        checks += _check_effect(model, tokenizer, questions, saved)
    return checks, update


def _check(name: str, ok: bool | None, measured: str) -> Check:
    """Make a check, with cause and mend if it failed."""
    mend = FAULTS[name][2] if name in FAULTS else OTHER_MENDS[name]
    return Check(name, ok, measured, mend if ok is False else "")


def _check_wrapping(model, saved: Path | None) -> Check:
    """See whether the model had an adapter before PEFT wrapped it: then the settings are its own, not the wrapper's."""
    nested = isinstance(model.get_base_model(), PeftModel) or "peft_config" not in vars(model.base_model)
    in_file = saved is not None and any("base_model.model.base_model.model." in name for name in _read_weights(saved))
    measured = "the model had an adapter already" if nested else "the saved names show two wrappers" if in_file else "one adapter around the base model"
    return _check("wrapped once", not (nested or in_file), measured)


def _check_update(update: dict[str, float]) -> list[Check]:
    """Look at the size of each layer's update."""
    sizes, moved = sorted(update.values()), sum(size != 0 for size in update.values())
    measured = f"B is not zero in {moved} of {len(sizes)} layers; the update is {sizes[0]:.2g} to {sizes[-1]:.2g} of the weights it is added to"
    return [_check("finite numbers", all(map(math.isfinite, sizes)), f"{len(sizes)} layers looked at"), _check("B is not zero", moved > 0, measured)]


def _check_base(model, record: dict | None, base) -> Check:
    """Compare the base weights with the hash in the record, and with those of a fresh copy."""
    here = (base_dtype(model), base_hash(model)) if record or base is not None else None
    others = [(record["base_dtype"], record["base_sha256"])] if record else []
    others += [(base_dtype(base), base_hash(base))] if base is not None else []
    if not others:
        return _check("its own base", None, "no record beside the adapter (keep_record writes one)")
    if any(dtype != here[0] for dtype, _ in others):
        return _check("its own base", None, f"{others[0][0]} weights then, {here[0]} now: their bytes can't be compared")
    hashes = " and ".join(sorted({sha[:8] for _, sha in others}))
    return _check("its own base", all(other == here for other in others), f"SHA-256 of the base weights {here[1][:8]}…, expected {hashes}…")


def _check_switch(layers: dict) -> Check:
    on = sum(not layer.disable_adapters and bool(layer.active_adapters) for layer in layers.values())
    return _check("switched on", on == len(layers), f"on in {on} of {len(layers)} layers")


def _check_training(trainer, record: dict | None) -> list[Check]:
    """Say how many steps were taken, and how many tokens carried loss."""
    if trainer is not None:
        record = {"steps": trainer.state.global_step, "supervised_tokens": supervised_tokens(trainer)}
    if record is None:
        return [_check(name, None, "no trainer, no record") for name in ("steps", "tokens with loss")]
    steps, tokens = record["steps"], record["supervised_tokens"]
    return [_check("steps", steps > 0, f"{steps:,} taken"), _check("tokens with loss", tokens > 0, f"{tokens:,}, all epochs together")]


def _check_effect(model, tokenizer, questions: list[str], saved: Path | None) -> list[Check]:
    """Compare answers and logits with the adapter off and on, and with copies of it."""
    asked = questions if tokenizer is not None else []
    model.eval()
    model.base_model.disable_adapter_layers()
    answers_off = generate_answers(model, tokenizer, asked, NEW_TOKENS) if asked else []
    rows = [_row(tokenizer, *pair) for pair in zip(asked, answers_off, strict=True)] or [(torch.arange(16)[None] % 4, 0)]
    logits_off = _logits(model, rows)
    with merged(model):
        logits_merged = _logits(model, rows) if saved else None
    model.base_model.enable_adapter_layers()
    logits_on = _logits(model, rows)
    answers_on = generate_answers(model, tokenizer, asked, NEW_TOKENS) if asked else []
    effect = _relative_difference(logits_on, logits_off)
    checks = [_check("logits differ", effect > 1e-6, f"by up to {effect:.2g} of the largest logit, with the adapter on and off"),
              _check_answers(answers_on, answers_off, logits_on, logits_off)]
    if saved:
        rounding = _relative_difference(logits_on, logits_merged)
        checks += [_check_saved(model, saved), _check("merged model", rounding < TOLERANCE, f"logits differ by {rounding:.1g} of the largest")]
    return checks


def _check_answers(answers_on: list, answers_off: list, logits_on: torch.Tensor, logits_off: torch.Tensor) -> Check:
    """See whether answers changed, and by more than a coin's fall: one doubtful token can tip a whole answer."""
    if not answers_on:
        return _check("answers differ", None, "no question was asked")
    differ = sum(one.text != other.text for one, other in zip(answers_on, answers_off, strict=True))
    moved = (logits_on.softmax(-1) - logits_off.softmax(-1)).abs().sum(-1).mean().item() / 2
    measured = f"{differ} of {len(answers_on)}; {moved:.1%} of the next token's probability moved"
    return _check("answers differ", differ > 0 and moved >= VISIBLE, measured)


def _row(tokenizer, question: str, answer) -> tuple[torch.Tensor, int]:
    """Return the token ids of a question with its answer, as [1, tokens], and how many of them are the prompt."""
    chat = [{"role": "user", "content": question}]
    prompt = encode_chat(tokenizer, chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    given = torch.tensor([tokenizer(answer.text, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    return torch.cat([prompt, given], dim=1), prompt.shape[1]


@torch.inference_mode()
def _logits(model, rows: list[tuple[torch.Tensor, int]]) -> torch.Tensor:
    """Return the logits for each token of the answers and the one after, as [tokens, vocabulary].

    The wrapper is passed by: a trainer with mixed precision makes it compute in 16 bits, which would hide small differences.
    """
    return torch.cat([model.base_model(input_ids=ids.to(model.device)).logits[0, max(prompt - 1, 0):].float() for ids, prompt in rows])


def _relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / one.abs().max()).item()


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):  # else PEFT asks the hub
        raise ValueError(f"{folder}: adapter_model.safetensors is missing; save the adapter again with save_model")
    try:
        return load_peft_weights(str(folder), device="cpu")  # the older .bin too, of which nothing but tensors is taken
    except (OSError, SafetensorError, UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{folder}: the adapter's weights are not whole; save the adapter again with save_model") from error


def _check_saved(model, folder: Path) -> Check:
    """Compare each saved matrix, and the scaling, with those in memory."""
    name = model.active_adapters[0]
    memory = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    stored = {key: value for key, value in _read_weights(folder).items() if "lora_" in key or key in memory}
    same = sum(key in stored and torch.equal(stored[key].float(), memory[key].cpu().float()) for key in memory)
    saved, here = PeftConfig.from_pretrained(str(folder)), model.peft_config[name]
    scaling = all(getattr(saved, key) == getattr(here, key) for key in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"))
    measured = f"{same} of {len(memory | stored)} matrices equal, rank and alpha {'equal' if scaling else 'different'}"
    return _check("saved copy", scaling and same == len(memory | stored), measured)
