"""Say whether training changed anything: examine an adapter, and name the usual cause and the mend of what is wrong."""
from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from helpers.adapter.checks import FAULTS, Check, examine
from helpers.adapter.state import left_as_found
from helpers.training.saving import adapter_folder


@dataclass(frozen=True)
class Diagnosis:
    """What diagnose_adapter found.

    verdict: "trained", "not asked" (trained, but no question was asked) or one of FAULTS; sentence: what it means, with
    cause and mend; update: size of the low-rank update of each layer, norm(scaling * B @ A) / norm(W), Frobenius norms.
    """

    verdict: str
    sentence: str
    checks: list[Check]
    update: dict[str, float]

    def __str__(self) -> str:
        """Return verdict and checks as plain text, a line each."""
        lines = [f"{_sign(check.ok)} {check.name}: {check.measured}" for check in self.checks]
        return "\n".join([f"{self.verdict}: {self.sentence}", *lines])

    def _repr_html_(self) -> str:
        """Return verdict and checks as a table; the text is escaped, and the colours are those of the page."""
        head = f'<p style="border-left:4px solid;padding-left:8px"><b>{html.escape(self.verdict)}</b>: {html.escape(self.sentence)}</p>'
        rows = [("", "check", "measured", "what to do")] + [(_sign(check.ok), check.name, check.measured, check.mend) for check in self.checks]
        cells = ("".join(f'<td style="text-align:left;vertical-align:top">{html.escape(text)}</td>' for text in row) for row in rows)
        return f"<div>{head}<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div>"


def _sign(ok: bool | None) -> str:
    return {True: "✓", False: "!", None: "–"}[ok]


def diagnose_adapter(adapter, tokenizer=None, *, base=None, questions: Sequence[str] = (), trainer=None, saved=None) -> Diagnosis:
    """Examine a LoRA adapter: did training change anything, and if not, why.

    adapter: a PeftModel, or the folder of a saved adapter, which is loaded onto `base` and taken off again. tokenizer,
    questions: compare the answers with the adapter on and off; ask about what was taught. trainer: gives steps and
    supervised tokens; without it they come from the record beside the adapter. saved: folder of the adapter, to compare
    the copy, and a merged model, with the one in memory. base: beside a PeftModel, a fresh copy of its base, to see that
    the base weights are untouched. Nothing that is passed in is changed. Raises ValueError, in one sentence, if this is
    no LoRA adapter, if it is merged, or if its files can't be read.
    """
    if base is not None and any(hasattr(module, "lora_A") for module in base.modules()):
        raise ValueError("base holds LoRA layers already; pass a base model fresh from from_pretrained")
    if not isinstance(adapter, (str, Path)):
        return _conclude(*examine(adapter, tokenizer, list(questions), trainer, saved and adapter_folder(saved), base))
    folder = adapter_folder(adapter)
    if base is None:
        raise ValueError(f"{folder}: a saved adapter needs its base model: diagnose_adapter(folder, base=model)")
    with left_as_found(base):
        model = _load(base, folder)
        try:
            return _conclude(*examine(model, tokenizer, list(questions), trainer, folder, None))
        finally:
            model.unload()


def _load(base, folder: Path) -> PeftModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns of, keys that do not fit, is a check here
            return PeftModel.from_pretrained(base, str(folder))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: the adapter does not load onto this base model; is it the one it was trained on, and are the files "
                         f"whole? ({str(error).splitlines()[-1].strip()})") from error


def _conclude(checks: list[Check], update: dict[str, float]) -> Diagnosis:
    failed = {check.name for check in checks if check.ok is False}
    for name, (verdict, meaning, mend) in FAULTS.items():
        if name in failed:
            return Diagnosis(verdict, f"{meaning} {mend}", checks, update)
    if any(check.name == "answers differ" and check.ok for check in checks):
        return Diagnosis("trained", "Training moved the adapter, and it changes the answers.", checks, update)
    return Diagnosis("not asked", "Training moved the adapter; whether that shows was not tested. Mend: pass a tokenizer, and questions about "
                     "what was taught.", checks, update)
