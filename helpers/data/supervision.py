"""Report what a trainer will really learn from: the tokens that carry loss, after tokenizing, cutting and collating."""
from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import NamedTuple

from helpers.data.chat import encode_chat, end_ids

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
    rows_without_eos: int  # rows whose last supervised token, white space apart, is not one that stops generation
    masked_eos_rows: int  # those of them in which such a token is there, but hidden from the loss
    learned: int = 0  # answers that carry loss
    trainable: int | None = None  # numbers of the model that training changes
    largest_id: int = 0
    table: int | None = None  # rows of the model's embedding table
    dropped_rows: int | None = None
    cut_answers: int | None = None
    prefix_mismatches: int | None = None  # rows that begin otherwise than each prompt that is sent when the model is asked
    control_token_rows: int | None = None
    replies: int | None = None  # different answers in the records
    mends: dict[str, str] = field(default_factory=dict)  # advice that is followed already -> what to do instead

    @property
    def supervised_share(self) -> float:
        """Return the share of tokens that carry loss, from 0 to 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0

    @property
    def ok(self) -> bool:
        """Say whether no line shows a fault."""
        return all(line.ok for line in self.lines())

    def check(self) -> SupervisionReport:
        """Return the report; raise SupervisionError if nothing can be learned, or no end that stops an answer."""
        stops = [
            (not self.supervised_tokens, f"No token of {self.rows} rows carries loss, so nothing can be learned: {NOTHING}."),
            (self.masked_eos_rows, f"EOS is hidden from the loss in {self.masked_eos_rows} of {self.rows} rows, so the model would not learn to "
                                   f"stop: {self.mends.get(MASKED, MASKED)}."),
            (self.rows_without_eos == self.rows, f"None of {self.rows} rows ends with a token that stops generation, so the model would not learn "
                                                 f"to stop: {NO_EOS}."),
            (self.trainable == 0, f"No number of the model is trained: {FROZEN}."),
            (self.table and self.largest_id >= self.table, f"Token {self.largest_id:,} has no row in a table of {self.table} rows: {BEYOND}."),
        ]
        for fault, sentence in stops:
            if fault:
                raise SupervisionError(sentence)
        return self

    def lines(self) -> list[Line]:
        """Return the report line by line; what is not known is left out."""
        lines = [
            Line(self.rows > 0, "rows", f"{self.rows:,}", NOTHING),
            Line(self.tokens > 0, "tokens", f"{self.tokens:,}", NOTHING),
            Line(0 < self.supervised_share < 1, "supervised tokens", f"{self.supervised_tokens:,} ({self.supervised_share:.0%})",
                 self.mends.get(EVERYTHING, EVERYTHING) if self.supervised_tokens else NOTHING),
        ]
        faults = [
            (self.dropped_rows, "rows dropped", DROPPED),
            (self.cut_answers, "answers cut by max_length", CUT),
            (self.rows_without_eos, "rows whose answer does not end in EOS", self.mends.get(MASKED, MASKED) if self.masked_eos_rows else NO_EOS),
            (self.prefix_mismatches, "rows that do not begin with the prompt that is sent later", self.mends.get(MISMATCH, MISMATCH)),
            (self.control_token_rows, "records with a control token in their text", CONTROL),
        ]
        lines += [Line(not count, what, f"{count:,}", advice) for count, what, advice in faults if count is not None]
        learned = self.learned if self.supervised_share < 1 else self.replies
        if self.replies and self.replies > self.rows + (self.dropped_rows or 0):
            lines.append(Line(learned >= self.replies, "answers learned", f"{learned:,} of {self.replies:,}", ONE_REPLY))
        if self.table is not None:
            lines.append(Line(self.largest_id < self.table, "largest token id", f"{self.largest_id:,}, of a table of {self.table:,}", BEYOND))
            lines.append(Line(self.trainable > 0, "trainable numbers", f"{self.trainable:,}", FROZEN))
        return lines

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
MASKED = "usually the pad token is EOS and the collator hides every pad token; pass no data_collator (TRL has its own), or take another pad token"
NOT_PAD = "the pad token is not the reason: look at the labels of one row with show_tokens, and pass no data_collator"
COMPLETION = "the question is learned too, for completion_only_loss is False: leave that setting out"
NO_EOS = "usually answers were cut, or the chat template ends a turn with another token than tokenizer.eos_token"
MEND_TEMPLATE = "the chat template writes the prompt alone differently from the same prompt with its answer: mend the template"
MISMATCH = f'{MEND_TEMPLATE}, or give the records the column chat_template_kwargs with {{"enable_thinking": False}}'
OTHERWISE = "the rows are not what the chat template makes of the records (another form, or BOS twice): give prompt and completion as messages"
FROZEN = "usually an adapter was loaded without PeftModel.from_pretrained(base, folder, is_trainable=True)"
BEYOND = "the tokenizer has more tokens than the model has rows; call model.resize_token_embeddings(len(tokenizer)) before the adapter is made"
ONE_REPLY = "the last answer of a conversation alone carries loss; make a row of each with one_row_a_reply(records)"
CONTROL = "someone typed the mark of a turn or of an end; remove it, the model takes it for the real one"


def supervision_report(trainer, records: list[dict] | None = None) -> SupervisionReport:
    """Count what carries loss in the trainer's tokenized train_dataset, after its data_collator. Nothing is trained.

    records: the list of {"messages": [...]} from which train_dataset was made; without it, what needs the original text
    is None. The answer of a record is its last message. Faults do not raise: call `.check()` on the report for that.
    Raises ValueError for records that can't be those of the trainer, and where a row can't be traced back to its record.
    """
    if trainer.args.packing or trainer.args.truncation_mode != "keep_start":
        raise ValueError('rows can be traced only with packing=False and truncation_mode="keep_start" (both are the default)')
    ends, model = {trainer.processing_class.eos_token_id} | end_ids(getattr(trainer.model, "generation_config", None)), trainer.model
    counts = [_count_row(trainer, row, ends) for row in trainer.train_dataset]
    totals = [sum(column) for column in zip(*counts, strict=True)] or [0] * 5
    known = {} if records is None else _compare_with_records(trainer, records, len(counts))
    return SupervisionReport(
        len(counts), *totals, mends=_mends(trainer, known.pop("by_template", True)),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        largest_id=max((max(row["input_ids"]) for row in trainer.train_dataset), default=0),
        table=model.get_input_embeddings().weight.shape[0], **known)


def _mends(trainer, by_template: bool) -> dict[str, str]:
    """Return what to do instead of advice that is followed already or does not fit."""
    row, tokenizer = next(iter(trainer.train_dataset), {}), trainer.processing_class
    instead = {EVERYTHING: (COMPLETION, "completion_mask" in row), MASKED: (NOT_PAD, tokenizer.pad_token_id != tokenizer.eos_token_id),
               MISMATCH: (MEND_TEMPLATE if by_template else OTHERWISE, "chat_template_kwargs" in row or not by_template)}
    return {advice: other for advice, (other, fits) in instead.items() if fits}


def _count_row(trainer, row: dict, ends: set[int]) -> tuple[int, int, bool, bool, int]:
    """Collate one row; return its tokens, its supervised tokens, whether it lacks an end, whether one is there but hidden, and its answers.

    The end is judged after the collator, for that is where a pad token that is also EOS gets hidden.
    """
    batch = trainer.data_collator([{key: row[key] for key in ("input_ids", "labels") if key in row}])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    length = len(row["input_ids"])  # a collator may pad even a single row
    places = [place for place in range(length) if labels[place] != IGNORED]
    # Many templates write a line break after EOS; it carries loss as well, and does no harm.
    last = next((place for place in reversed(places) if trainer.processing_class.decode(ids[place]).strip()), None)
    ends_well = last is not None and ids[last] in ends
    hidden = last is not None and not ends_well and not ends.isdisjoint(ids[last + 1:length])
    return length, len(places), not ends_well, hidden, sum(place == 0 or labels[place - 1] == IGNORED for place in places)


def _compare_with_records(trainer, records: list[dict], rows: int) -> dict[str, int]:
    if len(records) < rows:
        raise ValueError(f"the trainer has {rows} rows and records has {len(records)}: give the records that train_dataset was made from")
    template_kwargs = next(iter(trainer.train_dataset), {}).get("chat_template_kwargs") or {}  # TRL keeps its column
    traced = [_trace(trainer, record["messages"], template_kwargs) for record in records]
    dropped, whole = len(records) - rows, sum(lost == "whole" for lost, _ in traced)
    return {
        "dropped_rows": dropped,
        "replies": len({str(messages[:end]) for record in records if (messages := record["messages"])
                        for end, message in enumerate(messages, start=1) if message["role"] == "assistant"}),
        # an answer lost as a whole is a dropped row, unless the question carries loss too and keeps the row alive
        "cut_answers": sum(lost == "part" for lost, _ in traced) + max(0, whole - dropped),
        "prefix_mismatches": _begin_otherwise(trainer, records),
        "by_template": any(mismatch for _, mismatch in traced),
        "control_token_rows": sum(_has_control_token(trainer.processing_class, record["messages"]) for record in records),
    }


def _begin_otherwise(trainer, records: list[dict]) -> int:
    """Count the rows, in whatever order, that begin with no prompt which generate_answers would send for a record; a cut row may end in it."""
    prompts = {tuple(encode_chat(trainer.processing_class, record["messages"][:-1], add_generation_prompt=True)["input_ids"]) for record in records}
    lengths, rows = {len(prompt) for prompt in prompts}, [tuple(row["input_ids"]) for row in trainer.train_dataset]
    other = [row for row in rows if not any(row[:length] in prompts for length in lengths)]
    return sum(len(row) >= max(lengths) or not any(prompt[:len(row)] == row for prompt in prompts) for row in other)


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
    return "" if limit >= end else "part" if limit > start else "whole", start < len(prompt)


def _has_control_token(tokenizer, messages: list[dict]) -> bool:
    marks = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return any(mark in message["content"] for message in messages for mark in marks)
