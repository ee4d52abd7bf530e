"""Say in a line what is no fault of a file, and good to know: what is ignored, what is learned, what a score would say."""
import re
from collections import Counter

from helpers.data.phrases import is_right, phrases_of
from helpers.data.wording import beginnings, reply_places

MOST_NAMED = 20  # keys that are named
JOINED = "joined to the question"
KEPT, UNSEEN, LEFT = "kept in the record", "kept in the record; its text stands in no message: if the question needs it, write it there", "left out of the messages"
ANY, LAST = slice(None), slice(-1, None)  # messages of a record
NOTED = [(re.compile(pattern, re.MULTILINE), *said) for pattern, *said in (  # what is no fault, and seldom meant: the sign, where, what, what to do
    (r"\[/?INST\]|<<SYS>>|\[/?SYSTEM_PROMPT\]|\[\|\w+\|\]|<\|(?!(?:begin|end)_of_(?:thought|solution))\w+\|>|<｜[^｜\n]{1,40}｜>|<(?:start|end)_of_turn>|</s>\s*\Z"
     r"|^### ?(?:Instruction|Input|Response|Human|User|Assistant):|^(?:Human|Assistant|USER|ASSISTANT):",
     ANY, "the marks of a chat template in their text", "the template writes its own, so remove them"),
    (r"<(?:image|audio|video)>|<img\b", ANY, "a place for a picture or a sound in their text", "the model reads text only, so remove the records that need it"),
    (r"\A(?i:\s*(?:nan|none|null|undefined|<?no ?input>?)\s*)\Z", ANY, "a program's word for nothing in place of a text", "leave them out, unless the word is meant"),
    (r"[\0-\x08\x0b\x0c\x0e-\x1f]\w*", ANY, "a control character in their text",
     r"JSON reads \b, \f, \n, \r and \t as such, so double each backslash of LaTeX or of a path (\\frac), and remove any other"),
    (r"[\x80-\x9f\ufffd]", ANY, "a character that was lost in another encoding", "read its source in the encoding that it has, and write it again"),
    (r"\A\s+", LAST, "an answer that begins with white space", "it may become one token with the template's own, so remove it where it says nothing"),
)]


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
    unseen = {key for fate, key in ignored if fate == UNSEEN}
    named = {fate: [f"{key!r:.40}" for other, key in ignored if other == fate and (fate != KEPT or key not in unseen)] for fate in (KEPT, UNSEEN, LEFT)}
    return "ignored: " + "; ".join(f"{', '.join(keys[:MOST_NAMED])}{f' and {len(keys) - MOST_NAMED:,} more' * (len(keys) > MOST_NAMED)} ({fate})"
                                       for fate, keys in named.items() if keys) if any(named.values()) else ""


def joined_note(counts: Counter) -> str:
    """Say how often a program's word for nothing became a part of a question; counts: as in ignored_note."""
    found = [f'"{key}" ({count:,})' for (fate, key), count in counts.items() if fate == JOINED]
    return f"a program's word for nothing became a part of the question: {' and '.join(found)}; leave it out, unless the word is meant" if found else ""


def phrases_note(records: list[dict], numbers: list[int]) -> str:
    """Say how many records hold no answer that would be right by their own key_phrase, accept or wrong_phrase."""
    wrong = [number for record, number in zip(records, numbers, strict=True) if phrases_of(record) and not is_right(record["messages"][-1]["content"], record)]
    return f"answers without their own key_phrase or accept, or with their wrong_phrase: {len(wrong):,}, the first in line {wrong[0]}; they would count as wrong" if wrong else ""


def texts_notes(records: list[dict], numbers: list[int]) -> list[str]:
    """Say for each sign of NOTED how many records hold it, and which is the first."""
    notes = []
    for sign, where, what, mend in NOTED:
        hits = [(number, repr(found[0].strip(" \t\r\n"))[1:-1]) for record, number in zip(records, numbers, strict=True)
                if (found := next(filter(None, (sign.search(message["content"]) for message in record["messages"][where])), None))]
        if hits:
            notes.append(f"records with {what}: {len(hits):,}, the first in line {hits[0][0]}{f' ({hits[0][1]:.20})' * bool(hits[0][1])}; {mend}")
    return notes
