"""The checks behind diagnose_adapter on weights, files and record: each examines one thing on a copy of the model."""
import math
import re
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key

from helpers import first_line
from helpers.adapter.effect import check_effect, not_examined
from helpers.adapter.faults import Check, check
from helpers.adapter.state import FROM_ZERO, adapter_tensors, as_saved, holds, lora_layers, update_sizes
from helpers.adapter.stopping import check_stop
from helpers.model.weights import base_dtype, base_hash, base_parameters, plain_name, replaced_names
from helpers.training.saving import read_record, supervised_tokens

LORA = re.compile(r"lora_[AB]\.weight$|lora_embedding_[AB]$|lora_magnitude_vector")  # what a plain LoRA or DoRA layer holds
HEADED = re.compile("Classification|QuestionAnswering|MultipleChoice")  # models of which most bases have no head, so that each load draws another


def examine(model, tokenizer, questions: list[str], trainer, saved: Path | None, in_file: dict, base, loaded: bool) -> tuple[list[Check], dict[str, float]]:
    """Run every check on a PeftModel, a copy that is of no use afterwards; return them, and the size of each part's update.

    The parameters are those of diagnose_adapter; saved is a folder that holds an adapter, in_file what its file holds, or None; loaded: the model was loaded from it.
    """
    record, stored = read_record(saved) if saved else None, as_saved(model, in_file)
    active = [name for name in model.active_adapters if name in model.peft_config] or list(model.peft_config)
    parts = {name: tensor for adapter in active for name, tensor in adapter_tensors(model, adapter_name=adapter).items()}
    other, update = _other(model, parts | stored, base), update_sizes(model, active)
    layers = {name: layer for name, layer in lora_layers(model).items() if holds(layer, active)}
    scales = {f"scale of {name}": torch.tensor(float(layer.scaling[key])) for name, layer in layers.items() for key in holds(layer, active)}
    numbers = parts | {f"file {name}": tensor for name, tensor in stored.items()} | scales
    settings = [model.peft_config[name] for name in active]
    from_zero, own = all(one.init_lora_weights in FROM_ZERO for one in settings), model.get_base_model()
    headed = bool(HEADED.search(type(own).__name__) or getattr(own, "pooler", None))  # many a checkpoint has no pooler either
    judged = {name: size for name, size in update.items() if name in map(plain_name, layers)} if headed else update  # a head is compared with another than it began as
    resized = not (loaded or base is None) and _resized(model, base)
    known = from_zero and not (other or headed or resized or any(one.layer_replication for one in settings))
    checks = [_check_wrapping(model, stored), *_check_finite(model, numbers, update), *_check_update(judged, parts, other, from_zero),
              _check_base(model, record, None if loaded else base, known),
              _check_switch(layers, active), *_check_training(trainer, record)]
    checks += [check("other parts", None, f"this adapter also holds {', '.join(other)}; not examined")] if other else []
    checks += [check("head", None, "not examined: for most such bases each load draws another")] if headed else []
    checks += _check_saved(model, stored, saved, active, len(stored) < len(in_file)) if saved else []
    effect, answers = _effect(model, active, tokenizer, questions, from_zero, bool(saved))
    return [*checks, *effect, check_stop(model, tokenizer, saved, base, answers)], update


def _effect(model, active: list[str], *how) -> tuple[list[Check], list]:
    """Examine what the adapter does to answers, or say why that can't be; how: what check_effect takes. Return the answers too."""
    if why_not := _no_effect(model, active):
        return not_examined(why_not), []
    try:
        more = _reads_more(model)  # a merge takes the layers away
        found, answers = check_effect(model, *how)
    except Exception as error:  # there is no list of what a forward raises
        return not_examined(f"computing failed ({type(error).__name__}: {first_line(error):.150})"), []
    if found[0].ok is False and found[0].name == "logits differ" and more:
        found[:2] = not_examined("the adapter works on more than text, and does nothing to text alone")
    return found, answers


def _reads_more(model) -> bool:
    """Say whether a layer with an adapter is no part of the language model, as where pictures are read."""
    base = model.get_base_model()
    inside = {*base.get_decoder().modules()} if base.config.get_text_config() is not base.config else None
    return inside is not None and any(layer not in inside for layer in lora_layers(model).values())


def _no_effect(model, active: list[str]) -> str:
    """Say why what the adapter does to answers can't be examined here; nothing if it can."""
    settings, base = [model.peft_config[name] for name in active], model.get_base_model()
    if tasks := {str(one.task_type) for one in settings} - {"None", "CAUSAL_LM", "TaskType.CAUSAL_LM"}:
        return f"it was trained for another task than to go on with a text ({min(tasks)})"
    if not getattr(base, "can_generate", bool)() or getattr(base.config, "is_encoder_decoder", False):
        return f"{type(base).__name__} is no causal language model"
    if any(getattr(one, "alora_invocation_tokens", None) for one in settings):
        return "the adapter acts only after the tokens that invoke it"
    return ""


def _other(model, names, base) -> list[str]:
    """Return the kinds of tensors that are no part of LoRA or DoRA, and no retrained module, but for tables of the base as they were."""
    wrappers = tuple(f"{part}." for part, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    here, first = ({plain_name(name): tensor for name, tensor in one.state_dict().items()} for one in (model, model if base is None else base))
    trained = {plain_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {name for name in names if not LORA.search(name) and not name.startswith(wrappers)}
    as_it_was = {name for name in found if (plain := plain_name(name)) in here and plain in first
                 and (base is not None or plain not in trained) and torch.equal(here[plain].cpu().float(), first[plain].cpu().float())}
    return sorted({re.sub(r"\.\d+\.", ".*.", plain_name(name)) for name in found - as_it_was})


def _resized(model, base) -> bool:
    """Say whether the base differs from the adapter's in the lengths of tables alone, as where tokens were added."""
    ours, first = ({name: weight.shape for name, weight in base_parameters(one).items()} for one in (model, base))
    return ours != first and {name: shape[1:] for name, shape in ours.items()} == {name: shape[1:] for name, shape in first.items()}


def _check_wrapping(model, stored: dict) -> Check:
    """See whether the model had an adapter before PEFT wrapped it: then the settings are its own, not the wrapper's."""
    nested = isinstance(model.get_base_model(), PeftModel) or "peft_config" not in vars(model.base_model)
    in_file = any("base_model.model.base_model.model." in name for name in stored)
    measured = "the model had an adapter already" if nested else "the saved names show two wrappers" if in_file else "one adapter around the base model"
    return check("wrapped once", not (nested or in_file), measured)


def _check_finite(model, tensors: dict[str, torch.Tensor], update: dict[str, float]) -> list[Check]:
    trained = {plain_name(name.removeprefix("file ")) for name in tensors}
    base = [name for name, weight in base_parameters(model).items() if name not in trained and type(weight) is torch.Tensor
            and weight.dtype.itemsize > 1 and not weight.sum(dtype=torch.float32).isfinite()]  # a sum needs no copy
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
    bad += [f"update of {name}" for name, size in update.items() if not math.isfinite(size)]
    where = f"; not so in {len(bad)}, {bad[0]} first" if bad else ""
    checks = [check("finite base", False, f"not so in {len(base)} weights, {base[0]} first")] if base else []
    return [*checks, check("finite numbers", not bad, f"{len(tensors)} tensors looked at{where}")]


def _check_update(update: dict[str, float], parts: dict, other: list[str], from_zero: bool) -> list[Check]:
    """Look at the size of each part's update; where its beginning, or a part, is not known, it is no reason for a verdict."""
    sizes, moved = sorted(update.values()), sum(size != 0 for size in update.values())
    measured = f"{moved} of {len(sizes)} parts changed; the update is {sizes[0]:.2g} to {sizes[-1]:.2g} of the weights it is added to"
    if not from_zero:
        return [check("B is not zero", None, "A and B begin with values of their own (init_lora_weights), which are not in the adapter")]
    trained = any(tensor.any() for name, tensor in parts.items() if "lora_B" in name or "lora_embedding_A" in name)  # an embedding begins with A zero
    checks = [check("B is not zero", moved > 0 or trained, measured), check("every part moved", moved == len(sizes), f"{moved} of {len(sizes)}")]
    checks += [check("adds something", False, "B is not zero, and the update of every layer is")] if trained and not moved else []
    return [one._replace(ok=None, mend="") if other and not one.ok else one for one in checks]


def _check_base(model, record: dict | None, base, known: bool) -> Check:
    """Compare the base weights with the hash in the record, and with those of a fresh copy; known: no part of the adapter changes them.

    What the adapter replaces is left out: new tokens, for instance, are drawn at random, each time others.
    """
    if not record and base is None:
        return check("its own base", None, "no record beside the adapter (keep_record writes one)")
    gone = replaced_names(model)
    here = base_dtype(model), base_hash(model, gone)
    others = [(record["base_dtype"], record["base_sha256"])] if record else []
    if gone and record and record["base_sha256"] == base_hash(model):  # a record of an older version
        others = [here]
    others += [(base_dtype(base), base_hash(base, gone))] if base is not None else []
    if any(dtype != here[0] for dtype, _ in others):
        return check("its own base", None, f"{others[0][0]} weights then, {here[0]} now: their bytes can't be compared")
    hashes = " and ".join(sorted({sha[:8] for _, sha in others}))
    same = all(one == here for one in others)
    return check("its own base", same or (False if known else None), f"SHA-256 of the base weights {here[1][:8]}…, expected {hashes}…")


def _check_switch(layers: dict, active: list[str]) -> Check:
    on = sum(not layer.disable_adapters and bool({*active} & {*layer.active_adapters}) for layer in layers.values())
    return check("switched on", on == len(layers), f"on in {on} of {len(layers)} layers")


def _check_training(trainer, record: dict | None) -> list[Check]:
    if trainer is not None:
        record = {"steps": trainer.state.global_step, "supervised_tokens": supervised_tokens(trainer)}
    if record is None:
        return [check(name, None, "no trainer, no record") for name in ("steps", "tokens with loss")]
    steps, tokens = record["steps"], record["supervised_tokens"]
    if tokens is None:
        counted = None, "not examined: this training has no label for each token"
    else:
        counted = tokens > 0, f"{tokens:,}, all epochs together"
    return [check("steps", steps > 0, f"{steps:,} taken"), check("tokens with loss", *counted)]


def _check_saved(model, stored: dict, folder: Path, active: list[str], joined: bool) -> list[Check]:
    """See whether the file's tensors have a place each, compare them with those in memory, and say whose they are.

    joined: on loading PEFT made one of several, with another rank, which the saved settings do not show.
    """
    weights = model.state_dict()
    shared = {key: weights[key] for key in stored if key in weights}  # a resized table, or biases
    places = {name: shared | adapter_tensors(model, adapter_name=name) for name in model.peft_config}
    equal = {name: sum(key in stored and _same(stored[key], tensor.cpu()) for key, tensor in place.items()) for name, place in places.items()}
    name = max([*active, *places], key=equal.get)
    place, same = places[name], equal[name]
    lost = [key for key in stored.keys() - place.keys() if LORA.search(key)]
    fits = not lost and place.keys() <= stored.keys()
    filled = f"{len(place.keys() & stored.keys())} of {len(place)} places in the model are filled" + (f"; none is called {min(lost)}" if lost else "")
    saved, here = PeftConfig.from_pretrained(str(folder)), model.peft_config[name]
    converted = saved.init_lora_weights in FROM_ZERO and here.init_lora_weights not in FROM_ZERO and saved.r == 2 * here.r  # as PEFT does with path_initial_model_for_weight_conversion
    scaling = None if joined else saved.use_dora == here.use_dora and all(
        math.isclose(layer.scaling[name], _scale(saved, key, layer)) for key, layer in lora_layers(model).items() if name in layer.scaling)
    total, whole = len(place | stored), scaling is not False and same == len(place)
    formats = sorted({str(tensor.dtype)[6:] for key in place.keys() & stored.keys() for tensor in (place[key], stored[key])})
    rounded = f" but for rounding ({' and '.join(formats)})" * (len(formats) > 1)
    measured = f"{same} of {total} matrices equal{rounded}, " \
               f"rank and alpha {'equal' if scaling else 'not examined: PEFT joins matrices of this file' if joined else 'different'}"
    copied = scaling if whole and not lost else False
    if converted:
        copied, measured = None, "not examined: it was converted to another start when it was saved"
    return [check("file fits", fits, filled),
            check("active adapter", name in active or not whole, f'the saved one is "{name}", active is "{", ".join(active)}"'),
            check("saved copy", copied, measured)]


def _scale(config, name: str, layer) -> float:
    """Return the factor that a layer's update gets by these settings; an expert's key is the name of its parameter, as in PEFT."""
    name = name.removeprefix("base_model.model.")
    if part := getattr(layer, "parameter_name", None):
        name = f"{name.replace('.base_layer', '')}.{part}"
    rank, alpha = (pattern.get(get_pattern_key(pattern, name), value) for pattern, value in ((config.rank_pattern, config.r), (config.alpha_pattern, config.lora_alpha)))
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Say whether both hold the same numbers, as far as the number formats of both go; what is no number is the same as another such."""
    one, other = (tensor.to(one.dtype).to(other.dtype).float() for tensor in (one, other))
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
