"""Is an answer right, how many are, and how sure can one be of that."""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest

from helpers.data.wording import HIDDEN

NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "".join(char for char in map(chr, range(0x300, 0x1F000)) if unicodedata.category(char).startswith("M") and not re.match(f"[{NO_SPACES}]", char))
LETTER = rf"(?:[^\W{NO_SPACES}]|[{MARKS}])"  # a letter or digit of a script that has spaces between words, or a vowel sign
INDENTED, LINE = re.compile(r"\n[ \t]+\S"), re.compile(r"\n([ \t]*)")
IN_WORD = re.compile(LETTER)  # compiled once: it takes ten milliseconds
TWINS = str.maketrans({**dict.fromkeys("’‘‚‛´`", "'"), **dict.fromkeys("“”„‟", '"'), **dict.fromkeys("‐‑‒–−", "-")})  # what keyboards and editors write for them
ONE_WORD = (  # what belongs to a number or a name, and how it is written so that it is one word
    (re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![.,]?\d)"), lambda found: found[0].replace(",", "")),  # 1,000
    (re.compile(r"(?<![\d.,])(\d+)[.,](\d+)(?![.,]?\d)"), r"\1_\2"),  # 31.5 or 31,5, and neither a date nor a list of numbers
    (re.compile(r"(?<![\d/])(\d{1,2})/(\d{1,2})(?![\d/])"), r"\1_of_\2"),  # 3/4
    (re.compile(r"(?<![\w)])-(?=\d)"), "_"),  # -5
    (re.compile(r"(?<=[^\W\d_])\++(?!\w)"), "_plus"),  # C++
    (re.compile(r"(?<=[^\W\d_])#(?!\w)"), "_sharp"),  # C#
)


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


def score_answers(answers: Sequence, expected: Sequence, whole: bool = False) -> list[bool]:
    """Say for each answer whether it holds what is expected as whole words, ignoring upper and lower case.

    Expected is for each answer a phrase, a list of phrases of which one will do, or a record of the exam (`key_phrase` or
    `accept`). whole: the answer must be the phrase and nothing more; a full stop at the end makes no difference. Answers are
    Answer or plain text. Raises ValueError when the two lists differ in length, and for a phrase in which nothing stands.
    """
    same = _is_phrase if whole else holds_phrase
    pairs = [(getattr(answer, "text", answer), _phrases(right)) for answer, right in zip(answers, expected, strict=True)]
    if blank := [place for place, (_, phrases) in enumerate(pairs) if not all(map(_plain, phrases))]:
        raise ValueError(f"expected[{blank[0]}] is blank: give what a right answer holds")
    return [any(same(answer, phrase) for phrase in phrases) for answer, phrases in pairs]


def _is_phrase(text: str, phrase: str) -> bool:
    return _plain(text, INDENTED.search(phrase)).rstrip(".") == _plain(phrase, INDENTED.search(phrase)).rstrip(".")


def _phrases(right) -> list[str]:
    if isinstance(right, dict):
        right = right["accept"] if "accept" in right else right["key_phrase"]
    return list(map(str, right)) if isinstance(right, list | tuple | set) else [str(right)]


def holds_phrase(text: str, phrase: str) -> bool:
    """Say whether the text holds the phrase as whole words: "Au" is not in "because".

    In Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese it may stand anywhere: they write words, or words and
    their endings, without spaces. Case, white space, signs that nobody sees, and how a character, a quotation mark or a
    thousand is written make no difference, but in a phrase that is indented, such as a program, its lines do.
    31 is not in 31.5, 5 not in -5, C not in C++.
    """
    text, phrase = _plain(text, INDENTED.search(phrase)), _plain(phrase, INDENTED.search(phrase))
    starts = (found.start() for found in re.finditer(f"(?={re.escape(phrase)})", text))
    return any(not (start and IN_WORD.match(text, start - 1)) and not IN_WORD.match(text, start + len(phrase)) for start in starts)


def _plain(text: str, indented: object = False) -> str:
    if indented:
        text = LINE.sub(lambda found: f" line_{len(found[1].expandtabs(4))} ", text)
    text = " ".join(HIDDEN.sub("", unicodedata.normalize("NFKC", text.translate(TWINS))).casefold().split())
    for pattern, written in ONE_WORD:
        text = pattern.sub(written, text)
    return text


def right_of(scores: Sequence[bool]) -> Count:
    """Count the right ones, with the 95 % Wilson interval: where the share would lie on many more questions of the same kind.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference (1927). Raises ValueError for
    an empty list, and for anything but what score_answers returns.
    """
    _check_scores(scores)
    if not len(scores):
        raise ValueError("there are no scores to count")
    right = int(sum(map(bool, scores)))
    interval = binomtest(right, len(scores)).proportion_ci(method="wilson")
    return Count(right, len(scores), float(interval.low), float(interval.high))


def _check_scores(scores: Sequence[bool]) -> None:
    if wrong := [score for score in scores if isinstance(score, str) or score not in (0, 1)]:
        raise ValueError(f"{wrong[0]!r:.40} is neither True nor False: give the list that score_answers returns")


def compare_scores(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Compare two systems on the same questions with McNemar's exact test, two-sided: only where they differ counts.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions (1947). Raises ValueError
    when the lists differ in length, and for anything but what score_answers returns.
    """
    _check_scores(first)
    _check_scores(second)
    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    differ = only_first + only_second
    return Comparison(only_first, only_second, float(binomtest(only_first, differ).pvalue) if differ else 1.0)
