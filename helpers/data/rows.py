"""Trace a trainer's tokenized rows back to the records that they were made from, and look at their labels."""
from bisect import bisect_left
from collections.abc import Iterable
from os.path import commonprefix

from helpers.data.chat import encode_chat
from helpers.data.wording import beginnings, conversations, reply_places

# What a collator turns into a batch: a row may have its texts beside it, which none can pad.
COLLATED = ("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks", "position_ids", "token_type_ids")
IGNORED = -100  # the label that carries no loss, in PyTorch's cross entropy and in every collator


def plain_ids(values) -> tuple[int, ...]:
    """Return a row's ids or labels, whatever kind of list or tensor holds them."""
    return tuple(values.tolist() if hasattr(values, "tolist") else values)


def collate(trainer, row: dict) -> dict:
    """Return the batch that the trainer's collator makes of one row."""
    return trainer.data_collator([{key: row[key] for key in COLLATED if row.get(key) is not None}])


def labels_of(trainer, row: dict, ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return the labels of a row after the collator: there a pad token that is also EOS gets hidden. Its padding is left out."""
    batch = collate(trainer, row)
    collated, labels = plain_ids(batch["input_ids"][0]), plain_ids(batch["labels"][0])
    start = 0 if collated[:len(ids)] == ids else len(collated) - len(ids)  # padded on the left
    return labels[start:start + len(ids)]


def count_row(tokenizer, ids: tuple[int, ...], labels: tuple[int, ...], places: list[int], ends: set[int]) -> tuple[int, int, bool, bool, bool, int]:
    """Return a row's tokens, its supervised tokens, whether it lacks an end, whether one is there but hidden, wrong labels, and its answers."""
    # Many templates write a line break after EOS; it carries loss as well, and does no harm.
    last = next((place for place in reversed(places) if tokenizer.decode(ids[place]).strip()), None)
    ends_well = last is not None and ids[last] in ends
    hidden = last is not None and not ends_well and not ends.isdisjoint(ids[last + 1:])
    answers = sum(place == 0 or labels[place - 1] == IGNORED for place in places)
    return len(ids), len(places), not ends_well, hidden, any(labels[place] != ids[place] for place in places), answers


def compare_with_records(trainer, records: list[dict], rows: list[tuple], places: list[list[int]]) -> dict:
    """Return what only the records tell, by the names of SupervisionReport; places: where each row carries loss.

    other_beginnings: with what the answers begin before which the template writes another prompt than it writes alone.

    Raises ValueError for records that can't be those of the rows.
    """
    records = conversations(records)
    if len(records) < len(rows):
        raise ValueError(f"the trainer has {len(rows)} rows and records has {len(records)}: give the records that train_dataset was made from")
    wrong = next((place for place, record in enumerate(records) if len(record["messages"]) < 2), None)
    if wrong is not None:
        raise ValueError(f"records[{wrong}] has no question and answer under messages; give what load_sft_jsonl returns")
    template_kwargs = next(iter(trainer.train_dataset), {}).get("chat_template_kwargs") or {}  # TRL keeps its column
    limit = getattr(trainer.args, "max_length", None)
    limit = limit and max(limit, *map(len, rows), 0)  # rows that were tokenized elsewhere may not have been cut
    traced = [_trace(trainer, record["messages"], template_kwargs, limit) for record in records]
    dropped, too_long = len(records) - len(rows), sum(lost == "whole" for _, _, lost, _ in traced)
    prompts, wholes = _Texts(prompt for prompt, *_ in traced), _Texts(whole for _, whole, *_ in traced)
    known = [(row, where, _length_of_prompt(row, prompts)) for row, where in zip(rows, places, strict=True)]
    single = {prompt for (prompt, *_), record in zip(traced, records, strict=True)
              if sum(message["role"] == "assistant" for message in record["messages"]) == 1}
    marks = {str(token) for token in trainer.processing_class.added_tokens_decoder.values() if token.special}
    return {
        "dropped_rows": dropped, "too_long": too_long,
        "replies": len(reply_places(records, beginnings(records))),
        # an answer lost as a whole is a dropped row, unless the question carries loss too and keeps the row alive
        "cut_answers": sum(lost == "part" for _, _, lost, _ in traced) + max(0, too_long - dropped),
        "prefix_mismatches": sum(length is None for _, _, length in known),
        "questions_learned": sum(len(where) < len(row) and row[:length] in single and bool(where) and where[0] < length
                                 for row, where, length in known if length),
        "answers_unknown": sum(row not in wholes for row, _, length in known if length),
        "other_beginnings": [record["messages"][-1]["content"][:1] for record, (*_, mismatch) in zip(records, traced, strict=True) if mismatch],
        "control_token_rows": sum(any(mark in message["content"] for message in record["messages"] for mark in marks) for record in records),
    }


class _Texts:
    """Tokenized texts, among which a row is found that is one of them or, cut, the beginning of one."""

    def __init__(self, texts: Iterable[tuple[int, ...]]) -> None:
        self.whole = set(texts)
        self.lengths = sorted(set(map(len, self.whole)), reverse=True)
        self._sorted = sorted(self.whole)

    def __contains__(self, row: tuple[int, ...]) -> bool:
        place = bisect_left(self._sorted, row)  # what begins with the row follows it
        return place < len(self._sorted) and self._sorted[place][:len(row)] == row


def _length_of_prompt(row: tuple[int, ...], prompts: _Texts) -> int | None:
    """Return the length of the prompt that a row begins with, 0 for a row that ends within one, None for another beginning."""
    length = next((length for length in prompts.lengths if row[:length] in prompts.whole), None)
    return 0 if length is None and row in prompts else length


def _trace(trainer, messages: list[dict], template_kwargs: dict, limit: int | None) -> tuple[tuple, tuple, str, bool]:
    """Return prompt and whole record as ids, how much of the answer is cut ("", "part" or "whole"), whether the prompt is no prefix.

    The prompt is the one that is sent when the model is asked, the whole record is written as the trainer writes it.
    """
    prompt = encode_chat(trainer.processing_class, messages[:-1], add_generation_prompt=True)["input_ids"]
    template = getattr(trainer, "chat_template", None)  # TRL trains some models with a mended template of its own
    whole = encode_chat(trainer.processing_class, messages, template_kwargs, chat_template=template)["input_ids"]
    start = len(commonprefix([prompt, whole]))
    eos = trainer.processing_class.eos_token_id
    end = max((place + 1 for place in range(start, len(whole)) if whole[place] == eos), default=len(whole))
    lost = "" if limit is None or limit >= end else "part" if limit > start else "whole"
    return tuple(prompt), tuple(whole), lost, start < len(prompt)
