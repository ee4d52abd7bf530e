"""Say in a line what is no fault of a file, and good to know: what is ignored, what is learned, what a score would say."""
import re
from collections import Counter

from helpers.data.phrases import holds_phrase, phrases_of
from helpers.data.wording import beginnings, reply_places

MARKS = re.compile(r"\[/?INST\]|<\|(?!(?:begin|end)_of_(?:thought|solution))\w+\|>|<(?:start|end)_of_turn>|^### ?(?:Instruction|Input|Response):|^(?:Human|Assistant):", re.MULTILINE)


MOST_NAMED = 20  # keys that are named


def learned_note(records: list[dict]) -> str:
    """Say how many answers are learned, where some are not: of a record, training learns the last one."""
    if sum(message["role"] == "assistant" for record in records for message in record["messages"]) == len(records):
        return ""
    begun = beginnings(records)
    learned = {places[-1] for places in begun}
    answers = learned | reply_places(records, begun)
    return "" if answers == learned else (f"{len(learned):,} of {len(answers):,} answers {'is' if len(learned) == 1 else 'are'} learned, "
                                          "the last of each record; one_row_a_reply(records) makes a record of each answer.")


def ignored_note(ignored: Counter) -> str:
    """Name the keys that nothing reads; ignored: counts of (what becomes of the key, key)."""
    named = {fate: [f"{key!r:.40}" for other, key in ignored if other == fate] for fate in ("kept in the record", "left out of the messages")}
    return "ignored: " + "; ".join(f"{', '.join(keys[:MOST_NAMED])}{f' and {len(keys) - MOST_NAMED:,} more' * (len(keys) > MOST_NAMED)} ({fate})"
                                       for fate, keys in named.items() if keys) if ignored else ""


def phrases_note(records: list[dict], numbers: list[int]) -> str:
    """Say how many records hold no answer that would be right by their own key_phrase or accept."""
    wrong = [number for record, number in zip(records, numbers, strict=True) if (phrases := phrases_of(record))
             and not any(holds_phrase(record["messages"][-1]["content"], phrase) for phrase in phrases)]
    return f"answers without their own key_phrase or accept: {len(wrong):,}, the first in line {wrong[0]}; by it they would count as wrong" if wrong else ""


def marks_note(records: list[dict], numbers: list[int]) -> str:
    """Say how many records hold the marks that a chat template writes."""
    found = [(number, mark[0].strip()) for record, number in zip(records, numbers, strict=True)
             if (mark := next(filter(None, (MARKS.search(message["content"]) for message in record["messages"])), None))]
    return (f"records with the marks of a chat template in their text: {len(found):,}, the first in line {found[0][0]} ({found[0][1]:.20}); "
            "the template writes its own, so remove them") if found else ""
