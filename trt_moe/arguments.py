"""Numbers, words and flags that users hand in, as the core takes them."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from trt_moe import _core
from trt_moe.errors import InputError

Word = TypeVar("Word", bound=str)

_SHOWN = 80


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number of any integer type.

    Raises:
        InputError: another type, bool included, or out of range.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise InputError(f"{name} is {_shown(value)}; expected a whole number from {least} to {most}")
    return number


def real(name: str, value: Any, most: float, least: float = 0.0) -> float:
    """A number of any real type.

    Raises:
        InputError: another type, bool included, or out of range.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not least <= number <= most:
        raise InputError(f"{name} is {_shown(value)}; expected a number from {least:g} to {most:g}")
    return number


def word(name: str, value: Any, known: tuple[Word, ...]) -> Word:
    """One of the words that are known.

    Raises:
        InputError: something else.
    """
    found = next((each for each in known if isinstance(value, str) and each == value), None)
    if found is None:
        raise InputError(f"{name} is {_shown(value)}; expected {', '.join(known[:-1])} or {known[-1]}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False, NumPy's too; the word "no" would count as true.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {_shown(value)}; expected True or False")
    return bool(value)


def call_times(deadline_ms: Any, name: str = "deadline_ms") -> _core.CallTimes | None:
    """Those of a call that is made now and due in so many milliseconds; None where it is due whenever it is answered.

    Raises:
        InputError: no number, or out of range.
    """
    if deadline_ms is None:
        return None
    return _core.CallTimes(real(name, deadline_ms, _core.MAX_DEADLINE_MS, _core.MIN_DEADLINE_MS))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits.
        return "a huge number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."
