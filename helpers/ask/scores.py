"""Is an answer right, how many are, and how sure can one be of that."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest

NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.category(char).startswith("M") and not re.match(f"[{NO_SPACES}]", char))
LETTER = rf"(?:[^\W{NO_SPACES}]|[{MARKS}])"  # a letter or digit of a script that has spaces between words, or a vowel sign
IN_WORD = re.compile(LETTER)  # compiled once: it takes ten milliseconds
DECIMAL = re.compile(r"(?<![\d.,])(\d+)[.,](\d+)(?![.,]?\d)")  # 31.5 or 31,5, and neither a date nor a list of numbers


class Count(NamedTuple):
    """How many of a list are right, with the ends of the 95 % Wilson interval as shares between 0 and 1."""

    right: int
    of: int
    low: float
    high: float

    def __repr__(self) -> str:
        """Write "35 of 36 (86% to 100%)"."""
        return f"{self.right} of {self.of} ({self.low:.0%} to {self.high:.0%})"


class Comparison(NamedTuple):
    """Two systems on the same questions: who alone was right how often, and the p-value of McNemar's exact test."""

    only_first: int
    only_second: int
    p: float

    def __repr__(self) -> str:
        """Write the three numbers as a sentence."""
        return f"only the first is right: {self.only_first}, only the second: {self.only_second}, p = {self.p:.2g}"


def score_answers(answers: Sequence, expected: Sequence) -> list[bool]:
    """Say for each answer whether it holds what is expected as whole words, ignoring upper and lower case.

    Expected is for each answer a phrase, a list of phrases of which one will do, or a record of the exam (`key_phrase` or
    `accept`). Answers are Answer or plain text. Raises ValueError when the two lists differ in length.
    """
    pairs = zip(answers, expected, strict=True)
    return [any(holds_phrase(getattr(answer, "text", answer), phrase) for phrase in _phrases(right)) for answer, right in pairs]


def _phrases(right) -> list[str]:
    if isinstance(right, dict):
        right = right["accept"] if "accept" in right else right["key_phrase"]
    return list(map(str, right)) if isinstance(right, list | tuple | set) else [str(right)]


def holds_phrase(text: str, phrase: str) -> bool:
    """Say whether the text holds the phrase as whole words: "Au" is not in "because".

    In Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese it may stand anywhere: they write words, or words and
    their endings, without spaces. Case, white space and how a character is written make no difference; 31 is not in 31.5.
    """
    text, phrase = _plain(text), _plain(phrase)
    starts = (found.start() for found in re.finditer(f"(?={re.escape(phrase)})", text))
    return any(not (start and IN_WORD.match(text, start - 1)) and not IN_WORD.match(text, start + len(phrase)) for start in starts)


def _plain(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).replace("’", "'").casefold().split())
    return DECIMAL.sub(r"\1_\2", text)  # one word, whichever sign it is written with


def right_of(scores: Sequence[bool]) -> Count:
    """Count the right ones, with the 95 % Wilson interval: where the share would lie on many more questions of the same kind.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927). Raises ValueError for
    an empty list.
    """
    if not len(scores):
        raise ValueError("there are no scores to count")
    right = int(sum(map(bool, scores)))
    interval = binomtest(right, len(scores)).proportion_ci(method="wilson")
    return Count(right, len(scores), float(interval.low), float(interval.high))


def compare_scores(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Compare two systems on the same questions with McNemar's exact test, two-sided: only where they differ counts.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions (1947). Raises ValueError
    when the lists differ in length.
    """
    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    differ = only_first + only_second
    return Comparison(only_first, only_second, float(binomtest(only_first, differ).pvalue) if differ else 1.0)
