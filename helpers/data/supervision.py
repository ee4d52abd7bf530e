"""Report what a trainer will really learn from: the tokens that carry loss, after tokenizing, cutting and collating."""
from __future__ import annotations

import html
from dataclasses import dataclass
from typing import NamedTuple

from helpers.data.chat import encode_chat

IGNORED = -100  # the label that carries no loss, in PyTorch's cross entropy and in every collator


class SupervisionError(ValueError):
    """Training on this data would teach nothing, or would teach the model not to stop; the message says why."""


class Line(NamedTuple):
    """One line of a report: is it well, what was counted, the count, and for a fault its usual cause and mend."""

    ok: bool
    what: str
    value: str
    advice: str


@dataclass(frozen=True)
class SupervisionReport:
    """What carries loss. Counts of rows and tokens, padding not counted; None where the records were not given."""

    rows: int
    tokens: int
    supervised_tokens: int
    rows_without_eos: int  # rows whose last supervised token, white space apart, is not EOS
    masked_eos_rows: int  # those of them in which EOS is there, but hidden from the loss
    dropped_rows: int | None = None
    cut_answers: int | None = None
    prefix_mismatches: int | None = None
    control_token_rows: int | None = None

    @property
    def supervised_share(self) -> float:
        """Return the share of tokens that carry loss, from 0 to 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    @property
    def ok(self) -> bool:
        """Say whether no line shows a fault."""
        return all(line.ok for line in self.lines())

    def check(self) -> SupervisionReport:
        """Return the report; raise SupervisionError if nothing carries loss or if EOS is hidden from it."""
        if not self.supervised_tokens:
            raise SupervisionError(f"No token of {self.rows} rows carries loss, so nothing can be learned: {NOTHING}.")
        if self.masked_eos_rows:
            raise SupervisionError(f"EOS is hidden from the loss in {self.masked_eos_rows} of {self.rows} rows, "
                                   f"so the model would not learn to stop: {MASKED}.")
        return self

    def lines(self) -> list[Line]:
        """Return the report line by line; what is not known is left out."""
        share = f"{self.supervised_tokens:,} ({self.supervised_share:.0%})"
        lines = [
            Line(self.rows > 0, "rows", f"{self.rows:,}", NOTHING),
            Line(self.tokens > 0, "tokens", f"{self.tokens:,}", NOTHING),
            Line(0 < self.supervised_share < 1, "supervised tokens", share, EVERYTHING if self.supervised_tokens else NOTHING),
        ]
        faults = [
            (self.dropped_rows, "rows dropped", DROPPED),
            (self.cut_answers, "answers cut by max_length", CUT),
            (self.rows_without_eos, "rows whose answer does not end in EOS", MASKED if self.masked_eos_rows else NO_EOS),
            (self.prefix_mismatches, "prompts that are not the beginning of their record", MISMATCH),
            (self.control_token_rows, "records with a control token in their text", CONTROL),
        ]
        return lines + [Line(not count, what, f"{count:,}", advice) for count, what, advice in faults if count is not None]

    def __str__(self) -> str:
        """Return the report as plain text."""
        return "\n".join(f"{'✓' if line.ok else '!'} {line.what}: {line.value}" + ("" if line.ok else f" ({line.advice})")
                         for line in self.lines())

    def _repr_html_(self) -> str:
        """Return the report as an HTML table; the text is escaped."""
        cells = [("✓" if line.ok else "<b>!</b>", *map(html.escape, (line.what, line.value, "" if line.ok else line.advice)))
                 for line in self.lines()]
        rows = "".join(f"<tr>{''.join(CELL.format(side, cell) for side, cell in zip(SIDES, row, strict=True))}</tr>" for row in cells)
        return f"<table>{rows}</table>"


CELL, SIDES = '<td style="text-align:{};vertical-align:top">{}</td>', ("center", "left", "right", "left")
NOTHING = "usually max_length is shorter than every prompt; raise it above the longest record"
EVERYTHING = "the question is learned too; give the trainer the columns prompt and completion instead of messages"
DROPPED = "usually the prompt alone fills max_length, so that no answer is left; raise max_length or shorten the record"
CUT = "these answers lose their end, and with it EOS; raise max_length or shorten the answers"
MASKED = ("usually the pad token is EOS and the collator hides every pad token; use TRL's own collator "
          "(pass no data_collator), or another pad token")
NO_EOS = "usually answers were cut, or the chat template ends a turn with another token than tokenizer.eos_token"
MISMATCH = ("the chat template writes the prompt alone differently from the same prompt with its answer; the model is "
            "trained on a prompt that it never sees later; give the records the column chat_template_kwargs with "
            '{"enable_thinking": False}, or mend the template')
CONTROL = "someone typed the mark of a turn or of an end; remove it, the model takes it for the real one"


def supervision_report(trainer, records: list[dict] | None = None) -> SupervisionReport:
    """Count what carries loss in the trainer's tokenized train_dataset, after its data_collator. Nothing is trained.

    records: the list of {"messages": [...]} from which train_dataset was made; without it, what needs the original text
    is None. The answer of a record is its last message. Faults do not raise: call `.check()` on the report for that.
    Raises ValueError for records that can't be those of the trainer, and where a row can't be traced back to its record.
    """
    if trainer.args.packing or trainer.args.truncation_mode != "keep_start":
        raise ValueError('rows can be traced only with packing=False and truncation_mode="keep_start" (both are the default)')
    counts = [_count_row(trainer, row) for row in trainer.train_dataset]
    totals = [sum(column) for column in zip(*counts, strict=True)] or [0, 0, 0, 0]
    known = {} if records is None else _compare_with_records(trainer, records, len(counts))
    return SupervisionReport(len(counts), *totals, **known)


def _count_row(trainer, row: dict) -> tuple[int, int, bool, bool]:
    """Collate one row; return its tokens, its supervised tokens, whether it lacks EOS, whether EOS is there but hidden.

    EOS is judged after the collator, for that is where a pad token that is also EOS gets hidden.
    """
    batch = trainer.data_collator([{key: row[key] for key in ("input_ids", "labels") if key in row}])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    length = len(row["input_ids"])  # a collator may pad even a single row
    tokenizer = trainer.processing_class
    places = [place for place in range(length) if labels[place] != IGNORED]
    # Many templates write a line break after EOS; it carries loss as well, and does no harm.
    last = next((place for place in reversed(places) if tokenizer.decode(ids[place]).strip()), None)
    ends = last is not None and ids[last] == tokenizer.eos_token_id
    hidden = last is not None and not ends and tokenizer.eos_token_id in ids[last + 1:length]
    return length, len(places), not ends, hidden


def _compare_with_records(trainer, records: list[dict], rows: int) -> dict[str, int]:
    if len(records) < rows:
        raise ValueError(f"the trainer has {rows} rows and records has {len(records)}: give the records that train_dataset was made from")
    template_kwargs = next(iter(trainer.train_dataset), {}).get("chat_template_kwargs") or {}  # TRL keeps its column
    traced = [_trace(trainer, record["messages"], template_kwargs) for record in records]
    dropped = len(records) - rows
    whole = sum(lost == "whole" for lost, _ in traced)
    return {
        "dropped_rows": dropped,
        # an answer lost as a whole is a dropped row, unless the question carries loss too and keeps the row alive
        "cut_answers": sum(lost == "part" for lost, _ in traced) + max(0, whole - dropped),
        "prefix_mismatches": sum(mismatch for _, mismatch in traced),
        "control_token_rows": sum(_has_control_token(trainer.processing_class, record["messages"]) for record in records),
    }


def _trace(trainer, messages: list[dict], template_kwargs: dict) -> tuple[str, bool]:
    """Return how much of the answer max_length cuts off ("", "part" or "whole"), and whether the prompt is no prefix.

    The prompt is the one that is sent when the model is asked, the whole record is written as the trainer writes it.
    """
    prompt = encode_chat(trainer.processing_class, messages[:-1], add_generation_prompt=True)["input_ids"]
    template = getattr(trainer, "chat_template", None)  # TRL trains some models with a mended template of its own
    whole = encode_chat(trainer.processing_class, messages, template_kwargs, chat_template=template)["input_ids"]
    start = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    eos = trainer.processing_class.eos_token_id
    end = max((place + 1 for place in range(start, len(whole)) if whole[place] == eos), default=len(whole))
    limit = len(whole) if trainer.args.max_length is None else trainer.args.max_length
    lost = "" if limit >= end else "part" if limit > start else "whole"
    return lost, start < len(prompt)


def _has_control_token(tokenizer, messages: list[dict]) -> bool:
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return any(mark in message["content"] for message in messages for mark in marks)
