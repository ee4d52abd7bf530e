"""What all checks share: a check prints one line, "Not yet", "✓" or "✗", and never stops the notebook."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps
from numbers import Real


class Right(str):
    """The sentence for an answer that is accepted."""


class NotYet(Exception):
    """There is no answer so far."""


class Unfit(Exception):
    """The answer is of another kind than was asked for; the message says what it is."""


def exercise(asked: str, kind: Callable) -> Callable:
    """Make a check out of a function that judges an answer and returns a sentence, a Right one if it accepts.

    asked names what is to be given. kind turns the answer into what the function expects, or raises Unfit.
    """
    def make(judge: Callable) -> Callable:
        @wraps(judge)
        def check(answer, *context) -> None:
            print(_line(asked, kind, judge, answer, context))
        return check
    return make


def _line(asked: str, kind: Callable, judge: Callable, answer, context: tuple) -> str:
    try:
        if answer is ... or isinstance(answer, dict) and ... in answer.values():
            raise NotYet
        said = judge(kind(answer), *context)
    except NotYet:
        return f"Not yet: give {asked}."
    except Unfit as error:
        return f"✗ {error}. Give {asked}."
    except Exception as error:  # an answer of the right kind that the judge can't use, such as a tensor of another dtype
        return f"✗ The check can't use this answer ({type(error).__name__}). Give {asked}."
    return f"{'✓' if isinstance(said, Right) else '✗'} {said}"


def explain(answer, right, well: str, mistakes: Iterable[tuple[object, str]], otherwise: str, tolerance: float = 1e-9) -> str:
    """Return the sentence for an answer: Right(well), that of the first mistake which leads to it, or `otherwise`.

    mistakes: (the answer to which it leads, what to say). Numbers may differ by the relative tolerance.
    """
    if _same(answer, right, tolerance):
        return Right(well)
    return next((sentence for value, sentence in mistakes if _same(answer, value, tolerance)), otherwise)


def _same(one, other, tolerance: float) -> bool:
    if isinstance(one, Real) and isinstance(other, Real):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-12)
    return one == other


def number(answer) -> float:
    """Return a number, also one that NumPy or PyTorch wrapped."""
    if hasattr(answer, "item") and getattr(answer, "size", 1) != 0 and math.prod(getattr(answer, "shape", ())) == 1:
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, Real) or not math.isfinite(answer):
        raise Unfit(f"A number is asked for, and this is {_called(answer)}")
    return answer


def choice(letters: str) -> Callable:
    """Return the kind "one of these letters"."""
    def one_letter(answer) -> str:
        letter = answer.strip().lower() if isinstance(answer, str) else ""
        if len(letter) != 1 or letter not in letters:
            raise Unfit(f"One of the letters {', '.join(letters)} is asked for, and this is {_called(answer)}")
        return letter
    return one_letter


def some_of(*options) -> Callable:
    """Return the kind "a set with some of these options, or none"."""
    def subset(answer) -> set:
        if not isinstance(answer, set | frozenset | list | tuple) or any(one not in options for one in answer):
            raise Unfit(f"A set with some of {', '.join(map(repr, options))} is asked for, and this is "
                        f"{_called(answer)}")
        return set(answer)
    return subset


def instance(cls: type) -> Callable:
    """Return the kind "an object of this class"."""
    def one(answer):
        if not isinstance(answer, cls):
            raise Unfit(f"A {cls.__name__} is asked for, and this is {_called(answer)}")
        return answer
    return one


def function(answer) -> Callable:
    """Return the learner's function, which raises NotYet where it returns nothing and Unfit where it fails."""
    if not callable(answer):
        raise Unfit(f"A function is asked for, and this is {_called(answer)}")

    def called(*arguments):
        try:
            result = answer(*arguments)
        except Exception as error:
            raise Unfit(f"The function stopped with {type(error).__name__}: "
                        f"{str(error).splitlines()[0] if str(error) else 'no text'}") from error
        if result is None or result is ...:
            raise NotYet
        return result
    return called


def _called(answer) -> str:
    text = repr(answer).splitlines()[0]
    return text if len(text) <= 30 else f"a {type(answer).__name__}"
