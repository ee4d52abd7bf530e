"""Say whether training changed anything: examine an adapter, and name the usual cause and the mend of what is wrong."""
import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from helpers.adapter.checks import examine
from helpers.adapter.faults import FAULTS
from helpers.adapter.state import copy_of, lora_layers, read_tensors
from helpers.adapter.stopping import kept_settings
from helpers.findings import Check, sign, table
from helpers.model.weights import plain_name
from helpers.training.saving import adapter_folder

TELLING = ("steps", "B is not zero", "answers differ", "other parts")  # these checks are shown whatever they say


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
        more = f"<details><summary>{len(rest)} more checks</summary>{_table(rest)}</details>" if rest else ""
        return f"<div>{head}{_table(first)}{more}</div>"


def _table(checks: list[Check]) -> str:
    return table([("", "check", "measured", "what to do"), *((sign(check.ok), check.name, check.measured, check.mend) for check in checks)])


def diagnose_adapter(adapter, tokenizer=None, *, base=None, questions: Sequence[str] = (), trainer=None, saved=None) -> Diagnosis:
    """Examine a LoRA adapter: did training change anything, and if not, why.

    adapter: a PeftModel, or the folder of a saved adapter, which is loaded onto a copy of `base`. tokenizer, questions:
    compare the answers with the adapter on and off; ask about what was taught. trainer: gives steps and supervised tokens;
    without it they come from the record beside the adapter. saved: folder of the adapter, to compare the copy, a merged
    model, and where answers stop, with those in memory. base: beside a PeftModel, a fresh copy of its base, to see that the
    base weights are untouched. Nothing that is passed in is changed: all is done on a copy that shares the memory of the
    weights. Raises ValueError, in one sentence, if this is no LoRA adapter, if it is merged, or if its files can't be read.
    """
    if isinstance(questions, str):
        raise ValueError("questions is one text; put it into a list")
    if base is not None and not isinstance(base, torch.nn.Module):
        raise ValueError(f"base is of type {type(base).__name__}; pass a model, loaded with from_pretrained")
    if base is not None and any(hasattr(module, "lora_A") for module in base.modules()):
        raise ValueError("base holds LoRA layers already; pass a base model fresh from from_pretrained")
    if base is not None and any(weight.is_meta for weight in base.parameters()):
        raise ValueError("base has weights on the device meta, where there are no numbers; load it whole")
    if not isinstance(adapter, (str, Path)):
        lora_layers(adapter)  # a sentence if there are none
        return _conclude(*examine(copy_of(adapter), tokenizer, list(questions), trainer, saved and adapter_folder(saved), base, loaded=False))
    folder = adapter_folder(adapter)
    if base is None:
        raise ValueError(f"{folder}: a saved adapter needs its base model: diagnose_adapter(folder, base=model)")
    return _conclude(*examine(_load(base, folder), tokenizer, list(questions), trainer, folder, base, loaded=True))


def _load(base, folder: Path) -> PeftModel:
    """Load an adapter onto a copy of the base, with the ends of an answer that are kept beside it."""
    own = copy_of(base, written={plain_name(name) for name in read_tensors(folder)})  # what the file has more than an adapter's parts
    if settings := kept_settings(folder):
        own.generation_config = settings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns of, keys that do not fit, is a check here
            return PeftModel.from_pretrained(own, str(folder))
    except Exception as error:  # whatever PEFT makes of a file that another tool wrote, or nobody should have
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[-1].strip():.300}"
        hint = "with new tokens, call base.resize_token_embeddings(len(tokenizer)) first; " if "size mismatch" in reason else ""
        raise ValueError(f"{folder}: the adapter does not load onto this base model; {hint}is it the one it was trained on, and are the files "
                         f"whole? ({reason})") from error


def _conclude(checks: list[Check], update: dict[str, float]) -> Diagnosis:
    results = {check.name: check for check in checks}
    for name, (verdict, meaning, mend) in FAULTS.items():
        if name == "answers differ" and results["B is not zero"].ok is None:
            reason = results.get("other parts", results["B is not zero"]).measured
            return Diagnosis("not examined", f"Nothing here tells whether training moved this adapter: {reason}.", checks, update)
        if name in results and results[name].ok is False:
            return Diagnosis(verdict, f"{meaning} {mend}", checks, update)
    if results["answers differ"].ok:
        return Diagnosis("trained", "Training moved the adapter, and it changes the answers.", checks, update)
    if (why := results["answers differ"].measured).startswith("not examined"):
        return Diagnosis("not asked", f"Training moved the adapter; whether that shows was {why}.", checks, update)
    return Diagnosis("not asked", "Training moved the adapter; whether that shows was not tested. Mend: pass a tokenizer, and questions about "
                     "what was taught.", checks, update)
