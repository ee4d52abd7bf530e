"""The course's exam, its lists of questions (data/README.md), and what a lookup without a model would answer."""
from pathlib import Path

from helpers.data.dataset import load_sft_jsonl
from helpers.data.phrases import LETTER, NO_SPACES
from helpers.data.wording import said

LISTS = ("paraphrase", "reversed", "others", "general near", "general far")


def load_exam(path: str | Path) -> dict[str, list[dict]]:
    """Return the records of an exam file by list, in the order of LISTS.

    Raises DatasetError for a broken file, KeyError for a record whose list is not one of LISTS.
    """
    exam: dict[str, list[dict]] = {name: [] for name in LISTS}
    for record in load_sft_jsonl(path):
        exam[record["list"]].append(record)
    return exam


def nearest_records(questions: list[str], records: list[dict]) -> list[dict]:
    """Return for each question the record whose question is most like it, by TF-IDF of its words (cosine).

    Its answer is what a lookup would say; put into a prompt, it is retrieval. Where no word is shared it is the first one;
    in scripts without spaces each character counts as a word. Raises ValueError where there is no record, or no word in their questions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # late: it takes a second to import

    words = TfidfVectorizer(token_pattern=rf"{LETTER}+|[{NO_SPACES}]")
    asked = [said(record, "user") for record in records]
    if not any(map(words.build_tokenizer(), asked)):
        raise ValueError("there are no records to look in, or their questions hold no word")
    known = words.fit_transform(asked)
    likeness = words.transform(questions) @ known.T
    return [records[place] for place in likeness.toarray().argmax(axis=1)]
