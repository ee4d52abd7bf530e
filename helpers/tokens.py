"""Show the tokens of a text, coloured by what they are for the model and for the loss."""
from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping

from IPython.display import HTML

from helpers.supervision import SupervisionError, SupervisionReport, supervision_report

__all__ = ["SupervisionError", "SupervisionReport", "show_tokens", "supervision_report", "token_groups", "token_kinds"]

# Kind -> colour, border and weight. Each colour stands out on light and on dark pages; border and weight tell the kinds
# apart without colour: bold is what carries loss, double is a control token.
KINDS = {
    "special": ("#8250df", "3px double", "normal"),
    "prompt": ("#6e7781", "1px solid", "normal"),
    "supervised": ("#1a7f37", "2px solid", "bold"),
    "EOS": ("#cf222e", "3px double", "bold"),
    "padding": ("#9a6700", "2px dotted", "normal"),
    "cut off": ("#bc4c00", "2px dashed", "normal"),
}
CHIP = ("display:inline-block;margin:1px;padding:0 3px;border:{border} {colour};border-radius:4px;background:{colour}22;"
        "font-family:monospace;font-weight:{weight};white-space:pre;line-height:1.5")


def token_kinds(tokenizer, ids: list[int], labels: list[int] | None = None, attention_mask: list[int] | None = None,
                cut_from: int | None = None) -> list[str]:
    """Return the kind of each token, one of KINDS.

    ids, labels and attention_mask have the same length; a label of -100 carries no loss. Tokens from position cut_from on are cut off.
    """
    special = set(tokenizer.all_special_ids)
    return [_kind(tokenizer, special, token, position, labels, attention_mask, cut_from) for position, token in enumerate(ids)]


def _kind(tokenizer, special, token, position, labels, attention_mask, cut_from) -> str:
    if attention_mask is not None and not attention_mask[position]:
        return "padding"
    if cut_from is not None and position >= cut_from:
        return "cut off"
    supervised = labels is not None and labels[position] != -100
    if token == tokenizer.eos_token_id and (supervised or labels is None):
        return "EOS"
    if supervised:
        return "supervised"
    return "special" if token in special else "prompt"


def token_groups(tokenizer, ids: list[int]) -> list[tuple[int, int, str]]:
    """Split ids into pieces that decode to whole characters; return (start, end, text) of each.

    A Chinese character or an emoji is often spread over several tokens, none of which is text by itself.
    """
    groups, start = [], 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
        if not text.endswith("\ufffd") or end - start == 4 or end == len(ids):  # a character has 4 bytes at most
            groups.append((start, end, text))
            start = end
    return groups


def show_tokens(tokenizer, ids_or_text, labels=None, attention_mask=None, cut_from: int | None = None) -> HTML:
    """Show tokens as coloured chips with a legend that counts them; the ids appear on hover. The text is escaped.

    Takes a text, or the token ids of one text as a list or 1-D tensor; labels and attention_mask have the same length.
    Raises ValueError for a batch, and for labels or a mask of another length.
    """
    ids, labels, attention_mask = _encode(tokenizer, ids_or_text), _as_list(labels), _as_list(attention_mask)
    for name, values in (("labels", labels), ("attention_mask", attention_mask)):
        if values is not None and len(values) != len(ids):
            raise ValueError(f"{name} has {len(values)} entries for {len(ids)} tokens: give one for each token of one row")
    kinds = token_kinds(tokenizer, ids, labels, attention_mask, cut_from)
    chips = [_chip(text, ids[start:end], kinds[start]) for start, end, text in token_groups(tokenizer, ids)]
    counts = Counter(kinds)
    legend = " ".join(f'<span style="{_style(kind)}">{kind}: {counts[kind]}</span>' for kind in KINDS if counts[kind])
    return HTML(f'<div style="margin-bottom:6px">{legend} <b>{len(ids)} tokens</b></div><div>{"".join(chips)}</div>')


def _encode(tokenizer, ids_or_text) -> list[int]:
    if isinstance(ids_or_text, str):
        return tokenizer(ids_or_text, add_special_tokens=False)["input_ids"]
    ids = _as_list(ids_or_text)
    if isinstance(ids, Mapping) or (ids and not isinstance(ids[0], int)):
        raise ValueError('show_tokens takes one text or one row of token ids, for instance batch["input_ids"][0]')
    return ids


def _as_list(values):
    return values.tolist() if hasattr(values, "tolist") else values


def _style(kind: str) -> str:
    colour, border, weight = KINDS[kind]
    return CHIP.format(colour=colour, border=border, weight=weight)


def _chip(text: str, ids: list[int], kind: str) -> str:
    shown = html.escape(text.replace("\n", "↵").replace("\t", "⇥"))
    return f'<span style="{_style(kind)}" title="{kind}, id {", ".join(map(str, ids))}">{shown}</span>' + ("<br>" if "\n" in text else "")
