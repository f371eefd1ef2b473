"""Checks for the exercises: they say what is right, and name the mistake where it is a known one.

A placeholder is `...` (for a number) or a function whose body is `...`; a check answers "not tried yet" to both, so
that a notebook runs from top to bottom before any exercise is solved.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The outcome of a check; shows as its message.

    >>> Check(True, "Right.")
    Right.
    """

    passed: bool
    message: str

    def __repr__(self):
        return self.message


NOT_TRIED = Check(False, "Not tried yet: replace the ... above, run that cell, then this one.")


def number(answer, expected, *, tolerance=0.01, mistakes=None):
    """Whether a number is right, within a relative tolerance.

    `mistakes` maps wrong values that people arrive at to a sentence that names how.

    >>> number(..., 96)
    Not tried yet: replace the ... above, run that cell, then this one.
    >>> number(32, 96, mistakes={32: "That is one epoch; training runs three."})
    Not yet: 32. That is one epoch; training runs three.
    >>> number(96, 96).passed
    True
    >>> number("96 steps", 96)
    Not yet: "96 steps" is a str; it should be a plain number.

    Taught in notebooks/00_start_here.ipynb, "How an exercise works".
    """
    if answer is ... or answer is None:
        return NOT_TRIED
    if isinstance(answer, bool) or not _is_number(answer):
        return Check(False, f'Not yet: "{answer}" is a {type(answer).__name__}; it should be a plain number.')
    if math.isclose(answer, expected, rel_tol=tolerance, abs_tol=1e-9):
        return Check(True, f"Right: {answer:g}.")
    for wrong, why in (mistakes or {}).items():
        if math.isclose(answer, wrong, rel_tol=tolerance, abs_tol=1e-9):
            return Check(False, f"Not yet: {answer:g}. {why}")
    return Check(False, f"Not yet: {answer:g} is too {'high' if answer > expected else 'low'}. Unfold the help below.")


def _is_number(value):
    try:
        return math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError):
        return False


def function(answer, cases):
    """Whether a function gives what it should; stops at the first case that it gets wrong and says what it is about.

    `cases` is a list of `(arguments, expected, what this case is about)`; arguments a tuple.

    >>> def double(x): ...
    >>> cases = [((2,), 4, "a small number"), ((-1,), -2, "a negative number")]
    >>> function(double, cases)
    Not tried yet: replace the ... above, run that cell, then this one.
    >>> function(lambda x: x * x, cases)
    Not yet, on a negative number: for (-1,) it gave 1, expected -2.
    >>> function(lambda x: x + x, cases)
    Right: all 2 cases.

    Taught in notebooks/01_classification.ipynb, "Exercises".
    """
    if answer is ...:
        return NOT_TRIED
    for arguments, expected, about in cases:
        try:
            result = answer(*arguments)
        except Exception as error:  # the reader's code: whatever it raises is their message
            return Check(False, f"Not yet, on {about}: {_call(arguments)} raised {type(error).__name__}: {error}.")
        if (result is None or result is ...) and arguments is cases[0][0]:  # the body is still ...
            return NOT_TRIED
        if not _same(result, expected):
            return Check(
                False, f"Not yet, on {about}: for {_call(arguments)} it gave {result!r}, expected {expected!r}."
            )
    return Check(True, f"Right: all {len(cases)} cases.")


def _call(arguments):
    text = repr(arguments)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _same(result, expected):
    if _is_number(result) and _is_number(expected):
        return math.isclose(result, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, (list, tuple)) and isinstance(result, Iterable) and not isinstance(result, str):
        items = list(result)
        return len(items) == len(expected) and all(map(_same, items, expected))
    return result == expected


def reached(answer, least, *, what="validation accuracy", mistakes=()):
    """Whether a measured score is high enough; `mistakes` is a list of `(condition, sentence)` that rule it out.

    >>> reached(0.83, 0.80)
    Right: validation accuracy 0.830, at least 0.800 was wanted.
    >>> reached(0.99, 0.80, mistakes=[(True, "You trained on the validation rows.")])
    Not yet: You trained on the validation rows.

    Taught in notebooks/01_classification.ipynb, "Exercises".
    """
    if answer is ... or answer is None:
        return NOT_TRIED
    for applies, why in mistakes:
        if applies:
            return Check(False, f"Not yet: {why}")
    enough = answer >= least
    return Check(enough, f"{'Right' if enough else 'Not yet'}: {what} {answer:.3f}, at least {least:.3f} was wanted.")
