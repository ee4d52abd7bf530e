"""Say whether training changed anything: examine an adapter, and name the usual cause and the mend of what is wrong."""
import html
import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from helpers.adapter.checks import examine
from helpers.adapter.faults import FAULTS
from helpers.adapter.state import FROM_ZERO, copy_of, lora_layers, only_lora, read_tensors
from helpers.adapter.stopping import kept_settings
from helpers.findings import Check, sign, table
from helpers.model.weights import four_bit_layers, plain_name
from helpers.training.saving import adapter_folder

TELLING = ("steps", "B is not zero", "answers differ", "other parts")  # these checks are shown whatever they say
HEAD = [("", "check", "measured", "what to do")]


@dataclass(frozen=True)
class Diagnosis:
    """What diagnose_adapter found.

    verdict: "trained", "not asked" (trained, but no question was asked), "not examined" or one of FAULTS; sentence: what it
    means, with cause and mend; update: size of the change to each layer, norm(W' - W) / norm(W), Frobenius norms, and to each
    retrained module and set of single tokens.
    """

    verdict: str
    sentence: str
    checks: list[Check]
    update: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{sign(check.ok)} {check.name}: {check.measured}" for check in self.checks]
        return "\n".join([f"{self.verdict}: {self.sentence}", *lines])

    def _repr_html_(self) -> str:
        head = f'<p style="border-left:4px solid;padding-left:8px"><b>{html.escape(self.verdict)}</b>: {html.escape(self.sentence)}</p>'
        first = [check for check in self.checks if check.ok is False or check.name in TELLING]
        rest = [check for check in self.checks if check not in first]
        more = f"<details><summary>{len(rest)} more checks</summary>{table(rest, head=HEAD)}</details>" if rest else ""
        return f"<div>{head}{table(first, head=HEAD)}{more}</div>"


def diagnose_adapter(adapter, tokenizer=None, *, base=None, questions: Sequence[str] = (), trainer=None, saved=None) -> Diagnosis:
    """Examine a LoRA adapter: did training change anything, and if not, why.

    adapter: a PeftModel, or the folder of a saved adapter, which is loaded onto a copy of `base`. tokenizer, questions:
    compare the answers with the adapter on and off; ask about what was taught. trainer: gives steps and supervised tokens;
    without it they come from the record beside the adapter. saved: folder of the adapter, to compare the copy, a merged
    model, and where answers stop, with those in memory. base: beside a PeftModel, a fresh copy of its base, to see that the
    base weights are untouched. Nothing that is passed in is changed: all is done on a copy that shares the memory of the
    weights. Raises ValueError, in one sentence, if this is no LoRA adapter, if it is merged, if its files can't be read, or if it can't
    be copied or measured here.
    """
    if isinstance(questions, str):
        raise ValueError("questions is one text; put it into a list")
    if isinstance(tokenizer, str):
        raise ValueError("tokenizer is a text; pass AutoTokenizer.from_pretrained of it")
    if trainer is not None and not hasattr(trainer, "train_dataset"):
        raise ValueError(f"trainer is of type {type(trainer).__name__}; pass the trainer that has trained")
    adapter, base = map(_unwrapped, (adapter, base))
    if base is not None and not isinstance(base, torch.nn.Module):
        raise ValueError(f"base is of type {type(base).__name__}; pass a model, loaded with from_pretrained")
    if base is not None and (isinstance(base, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in base.modules())):
        raise ValueError(f"base holds {'LoRA' if any(hasattr(module, 'lora_A') for module in base.modules()) else 'adapter'} layers already; "
                         "pass a base model fresh from from_pretrained")
    for name, model in (("base", base), ("the adapter's model", adapter)):
        if isinstance(model, torch.nn.Module) and any(weight.is_meta for weight in model.parameters()):
            raise ValueError(f"{name} has weights on the device meta, where there are no numbers; load it whole")
    if base is not None and four_bit_layers(base):
        base = copy_of(base)  # reading such weights can change them
    loaded = isinstance(adapter, (str, Path))
    if not loaded:
        lora_layers(adapter)  # a sentence if there are none
    saved = adapter_folder(adapter if loaded else saved) if loaded or saved else None
    if loaded and base is None:
        raise ValueError(f"{saved}: a saved adapter needs its base model: diagnose_adapter(folder, base=model)")
    tensors, config = (read_tensors(saved), lora_config(saved)) if saved else ({}, None)
    if loaded:
        lora_layers(model := _load(base, saved, config, tensors))
    else:
        with _in_one_sentence("this model can't be copied; save the adapter, and pass its folder, with base="):
            model = copy_of(adapter)
    with _in_one_sentence("this adapter can't be examined here; ask with it and without it, in model.disable_adapter(), and compare"):
        checks, update = examine(model, tokenizer, list(questions or ()), trainer, saved, tensors, base, loaded)
    return Diagnosis(*_conclude(checks), checks, update)


def _unwrapped(model):
    """Return the model below torch.compile and below PyTorch's data parallelism."""
    while isinstance(model, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.module
    return model


def lora_config(folder: Path) -> PeftConfig:
    """Return the settings of a saved LoRA adapter; raise ValueError if there are none."""
    with _in_one_sentence(f"{folder}: it does not load: its adapter_config.json is not as PEFT writes it; save it again"):
        config = PeftConfig.from_pretrained(str(folder))
    only_lora(config, f"{folder}: this adapter")
    return config


def _load(base, folder: Path, config: PeftConfig, tensors: dict) -> PeftModel:
    """Load an adapter onto a copy of the base, with the ends of an answer that are kept beside it; tensors: what its file holds."""
    failed = f"{folder}: the adapter does not load onto this base model; is it the one it was trained on, and are the files whole?"
    with _in_one_sentence(failed), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):  # what PEFT warns of, keys that do not fit, is a check here
        changed = () if config.init_lora_weights in FROM_ZERO else dict(base.named_parameters())  # PEFT may write into what does not begin at zero
        own = copy_of(base, written=set(map(plain_name, [*tensors, *changed])))
        _add_tokens(own, tensors)
        if settings := kept_settings(folder):
            own.generation_config = settings
        return PeftModel.from_pretrained(own, str(folder), torch_device="cpu")  # read there, then put where the base is


def _add_tokens(model, tensors: dict) -> None:
    """Give the model as many tokens as the adapter's file has rows for, where that holds a longer table."""
    saved = {plain_name(name): tensor for name, tensor in tensors.items()}
    rows = [len(saved[f"{name}.weight"]) for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)
            and len(saved.get(f"{name}.weight", ())) > module.num_embeddings]
    if rows and hasattr(model, "resize_token_embeddings"):
        model.resize_token_embeddings(rows[0], mean_resizing=False)


@contextmanager
def _in_one_sentence(failed: str):
    """Say in one sentence whatever PEFT, PyTorch or a packed base raises, of which there is no list."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1].strip():.300}"
        wrong = re.findall("size mismatch.*", str(error))
        tokens = isinstance(error, IndexError) or wrong and all(re.search("embed|wte|lm_head", line) for line in wrong)
        hint = " With new tokens, call base.resize_token_embeddings(len(tokenizer)) first." if tokens else ""
        raise ValueError(f"{failed}{hint} ({reason})") from error


def _conclude(checks: list[Check]) -> tuple[str, str]:
    """Return the verdict and its sentence."""
    results = {check.name: check for check in checks}
    for name, (verdict, meaning, mend) in FAULTS.items():
        if name == "logits differ" and results["B is not zero"].ok is None:
            reason = results.get("other parts", results["B is not zero"]).measured
            return "not examined", f"Nothing here tells whether training moved this adapter: {reason}."
        if name == "B is not zero" and results[name].ok is False and results["logits differ"].ok:
            return "not examined", ("B is zero in the active adapter, and yet it moves the model's scores: "
                                    "it works in another way than LoRA does.")
        if name in results and results[name].ok is False:
            return verdict, f"{meaning} {mend}"
    if results["answers differ"].ok:
        return "trained", "Training moved the adapter, and it changes the answers."
    if not (why := results["answers differ"].measured).startswith("not examined"):
        why = "not tested. Mend: pass a tokenizer, and questions about what was taught"
    return "not asked", f"Training moved the adapter; whether that shows was {why}."
