"""Report what a trainer will really learn from: the tokens that carry loss, after tokenizing, cutting and collating."""
from dataclasses import dataclass, field

from helpers.data.chat import end_ids
from helpers.data.rows import IGNORED, compare_with_records, count_row, labels_of, plain_ids
from helpers.findings import Check, sign, table


class SupervisionError(ValueError):
    """Training on this data would teach nothing, or would teach the model not to stop; the message says why."""


@dataclass(frozen=True)
class SupervisionReport:
    """What carries loss. Counts of rows and tokens, padding not counted; None where the records were not given."""

    rows: int
    tokens: int
    supervised_tokens: int
    rows_without_eos: int  # rows whose last supervised token, white space apart, is not one that stops generation
    masked_eos_rows: int  # those of them in which such a token is there, but hidden from the loss
    other_labels: int = 0  # rows with a label that is neither -100 nor the token at its place
    learned: int = 0  # answers that carry loss, in rows that differ
    trainable: int | None = None  # numbers of the model that training changes
    largest_id: int = 0
    table: int | None = None  # rows of the model's embedding table
    dropped_rows: int | None = None
    cut_answers: int | None = None
    prefix_mismatches: int | None = None  # rows that begin otherwise than each prompt that is sent when the model is asked
    questions_learned: int = 0  # of rows that begin with a prompt, those in which it carries loss, but not everywhere
    answers_unknown: int = 0  # those that go on as no record with this prompt does
    control_token_rows: int | None = None
    empty_sets: int = 0  # sets to validate with in which no row is left
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

    def check(self) -> "SupervisionReport":
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

    def lines(self) -> list[Check]:
        """Return the report line by line; what is not known is left out."""
        lines = [
            Check("rows", self.rows > 0, f"{self.rows:,}", NOTHING),
            Check("tokens", self.tokens > 0, f"{self.tokens:,}", NOTHING),
            Check("supervised tokens", 0 < self.supervised_share < 1, f"{self.supervised_tokens:,} ({self.supervised_share:.0%})",
                 self.mends.get(EVERYTHING, EVERYTHING) if self.supervised_tokens else NOTHING),
        ]
        faults = [
            (self.dropped_rows, "rows dropped", self.mends.get(DROPPED, DROPPED)),
            (self.cut_answers, "answers cut by max_length", CUT),
            (self.rows_without_eos, "rows whose answer does not end in EOS", self.mends.get(MASKED, MASKED) if self.masked_eos_rows else NO_EOS),
            (self.prefix_mismatches, "rows that do not begin with the prompt that is sent later", self.mends.get(MISMATCH, MISMATCH)),
            (self.other_labels or None, "rows with a label that is not the token at its place", OTHER_LABELS),
            (self.questions_learned or None, "rows whose question carries loss", self.mends.get(QUESTION, QUESTION)),
            (self.answers_unknown or None, "rows whose answer is in no record with this question", UNKNOWN_ANSWER),
            (self.control_token_rows, "records with a control token in their text", CONTROL),
            (self.empty_sets or None, "sets to validate with that have no row left", DROPPED),
        ]
        lines += [Check(what, not count, f"{count:,}", advice) for count, what, advice in faults if count is not None]
        learned = self.learned if self.supervised_share < 1 else self.replies
        if self.replies and self.replies > min(learned, self.rows) + (self.dropped_rows or 0):
            lines.append(Check("answers learned", learned >= self.replies, f"{learned:,} of {self.replies:,}", ONE_REPLY))
        if self.table is not None:
            lines.append(Check("largest token id", self.largest_id < self.table, f"{self.largest_id:,}, of a table of {self.table:,}", BEYOND))
            lines.append(Check("trainable numbers", self.trainable > 0, f"{self.trainable:,}", FROZEN))
        return lines

    def __str__(self) -> str:
        return "\n".join(f"{sign(line.ok)} {line.name}: {line.measured}" + ("" if line.ok else f" ({line.mend})") for line in self.lines())

    def _repr_html_(self) -> str:
        return table(self.lines())


NOTHING = "usually max_length is shorter than every prompt; raise it above the longest record"
EVERYTHING = "the question is learned too; give the trainer the columns prompt and completion instead of messages"
DROPPED = "usually the prompt alone fills max_length, so that no answer is left; raise max_length or shorten the record"
CUT = "these answers lose their end, and with it EOS; raise max_length or shorten the answers"
MASKED = "usually the pad token is EOS and the collator hides every pad token; pass no data_collator (TRL has its own), or take another pad token"
NOT_PAD = "the pad token is not the reason: look at the labels of one row with show_tokens, and pass no data_collator"
COMPLETION = "the question is learned too, for completion_only_loss is False: leave that setting out"
NO_EOS = "usually answers were cut, or the chat template ends a turn with another token than tokenizer.eos_token"
MEND_TEMPLATE = "the chat template writes the prompt alone differently from the same prompt with its answer: mend the template"
BEGINS_BLANK = "the answers begin with white space, which makes one token with the template's before it: remove it from their beginning"
MISMATCH = f'{MEND_TEMPLATE}, or give the records the column chat_template_kwargs with {{"enable_thinking": False}}'
OTHERWISE = "the rows are not what the chat template makes of the records (another form, or BOS twice): give prompt and completion as messages"
FROZEN = "usually an adapter was loaded without PeftModel.from_pretrained(base, folder, is_trainable=True)"
BEYOND = "the tokenizer has more tokens than the model has rows; call model.resize_token_embeddings(len(tokenizer)) before the adapter is made"
OTHER_LABELS = "each label must be the id at its own place, or -100: the model itself compares it with the prediction one place earlier"
QUESTION = "give the trainer the columns prompt and completion in place of messages, and pass no data_collator"
COLLATOR = "the rows are right, the data_collator makes the labels anew: pass none (TRL has its own)"
UNKNOWN_ANSWER = "question and answer may have been joined in another order than in the records; look at such a row with show_tokens"
NOT_THERE = "max_length does not explain it: give the records that train_dataset was made from, and no others"
ONE_REPLY = "the last answer of a conversation alone carries loss; make a row of each with one_row_a_reply(records)"
CONTROL = "someone typed what is a control token (the mark of a turn or of an end, perhaps); remove it, the model takes it for the real one"


def supervision_report(trainer, records: list[dict] | None = None) -> SupervisionReport:
    """Count what carries loss in the trainer's tokenized train_dataset, after its data_collator. Nothing is trained.

    records: the list of {"messages": [...]} from which train_dataset was made; without it, what needs the original text
    is None. The answer of a record is its last message. Faults do not raise: call `.check()` on the report for that.
    Raises ValueError for records that can't be those of the trainer, and where a row can't be traced back to its record.
    """
    args = trainer.args
    if getattr(args, "packing", False) or getattr(args, "truncation_mode", "keep_start") != "keep_start":
        raise ValueError('rows can be traced only with packing=False and truncation_mode="keep_start" (both are the default)')
    ends, model = {trainer.processing_class.eos_token_id} | end_ids(getattr(trainer.model, "generation_config", None)), trainer.model
    rows = [plain_ids(row["input_ids"]) for row in trainer.train_dataset]
    counts, places, learned = [], [], {}
    for row, ids in zip(trainer.train_dataset, rows, strict=True):
        labels = labels_of(trainer, row, ids)
        places.append([place for place, label in enumerate(labels) if label != IGNORED])
        *count, learned[ids, labels] = count_row(trainer.processing_class, ids, labels, places[-1], ends)
        counts.append(count)
    totals = [sum(column) for column in zip(*counts, strict=True)] or [0] * 5
    known = {} if records is None else compare_with_records(trainer, records, rows, places)
    held_out = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    return SupervisionReport(
        len(counts), *totals, sum(learned.values()), empty_sets=sum(hasattr(each, "__len__") and len(each) == 0 for each in held_out.values()),
        mends=_mends(trainer, known.pop("other_beginnings", ["?"]), known.pop("too_long", None), known.get("dropped_rows")),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        largest_id=max(map(max, rows), default=0), table=model.get_input_embeddings().weight.shape[0], **known)


def _mends(trainer, beginnings: list[str], too_long: int | None, dropped: int | None) -> dict[str, str]:
    """Return what to do instead of advice that is followed already or does not fit."""
    row, tokenizer = next(iter(trainer.train_dataset), {}), trainer.processing_class
    blank = bool(beginnings) and all(map(str.isspace, beginnings))
    apart, only = "completion_mask" in row or IGNORED in plain_ids(row.get("labels", ())), getattr(trainer.args, "completion_only_loss", None) is not False
    instead = {EVERYTHING: (f"the question is learned too; {COLLATOR}" if only else COMPLETION, apart),
               QUESTION: (COLLATOR, apart), DROPPED: (NOT_THERE, too_long is not None and dropped > too_long),
               MASKED: (NOT_PAD, tokenizer.pad_token_id != tokenizer.eos_token_id),
               MISMATCH: (OTHERWISE if not beginnings else BEGINS_BLANK if blank else MEND_TEMPLATE, "chat_template_kwargs" in row or blank or not beginnings)}
    return {advice: other for advice, (other, fits) in instead.items() if fits}
