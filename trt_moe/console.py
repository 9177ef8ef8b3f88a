"""What commands print: tables and JSON to stdout, messages and progress to stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ProgressCallback = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""

# Piped output is read by programs and log viewers: a table must not be squeezed into 80 columns there.
_PIPED_WIDTH = 240
_REDRAW_S = 0.2
_BETWEEN = 2
"""Characters that a table has from one column to the next, and at its ends together."""


def stdout() -> Console:
    """Console for results. Markup is off: names and paths may hold square brackets."""
    return _console(stderr=False)


def stderr() -> Console:
    """Console for messages and progress."""
    return _console(stderr=True)


def clean(text: object) -> str:
    """Text without control characters, which file names may hold and terminals obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def routing_rule(latency_weight: float, verify_below: float, verify_by: str) -> str:
    """How a router decides, for headings."""
    rule = f"latency weight {latency_weight:.3g}"
    return rule + (f", verified{by_mirror(verify_by)} below {verify_below:.3g}" if verify_below else "")


def by_mirror(verify_by: str) -> str:
    """What tells second looks by mirror from the dearest expert's, after a verb or a name."""
    return " by mirror" if verify_by == "mirror" else ""


def note(message: str) -> None:
    """Print one message to stderr, unwrapped."""
    stderr().print(clean(message), soft_wrap=True)


def print_json(data: Any) -> None:
    """Print one JSON document to stdout, in ASCII: file names may be in no encoding. NaN raises ValueError."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False, default=_plain) + "\n")
    sys.stdout.flush()  # At exit nobody would answer for what cannot be written.


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column and those with text are flush left, numbers flush right."""
    out = stdout()
    if title:
        out.print(clean(title), style="bold")
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    numeric = [index > 0 and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    longest = [max((len(str(row[index])) for row in rows), default=0) for index in range(len(columns))]
    # Narrow terminals break headers and text, never the numbers: those at the right would be cut off. Where there is
    # room for it, headers of numbers break between words and at hyphens only.
    least = [
        min(width, 40) if numbers else min(width if index == 0 else 8, 20)
        for index, (width, numbers) in enumerate(zip(longest, numeric, strict=True))
    ]
    words = [max(width, *map(len, _broken(column, 1))) for width, column in zip(least, columns, strict=True)]
    whole = [max(width, len(column)) for width, column in zip(longest, columns, strict=True)]
    room = out.width - _BETWEEN * len(columns)
    # Beside text rich breaks no word of a header, and leaves out what stands at the right.
    text = [0 if numbers else min(width, 20) for width, numbers in zip(longest, numeric, strict=True)]
    if sum(map(max, words, text) if any(text[1:]) else least) > room:
        _print_list(columns, rows)
        return
    between_words = sum(whole) > room >= sum(words)
    for column, numbers, width, word in zip(columns, numeric, least, words, strict=True):
        broken = between_words and numbers
        table.add_column(
            "\n".join(_broken(column, word)) if broken else column,
            justify="right" if numbers else "left",
            overflow="fold",
            min_width=width,
            width=word if broken else None,
        )
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    out.print(table)


def _print_list(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """What fits into no table: each row's first cell, and the others below it."""
    out = stdout()
    for row in rows:
        out.print(clean(row[0]), style="bold")
        for column, cell in zip(columns[1:], row[1:], strict=True):
            out.print(f"  {clean(column)}: {clean(cell)}")


def _broken(header: str, width: int) -> list[str]:
    """Lines of a header, no wider than `width` where words allow it."""
    return wrap(header, width, break_long_words=False) or [header]


@contextmanager
def progress(show: bool = True) -> Iterator[ProgressCallback]:
    """Progress bars on stderr, one per `what`; none where stderr is no terminal or `show` is False."""
    console = stderr()
    if not show or not console.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Drawn by the caller, not by a thread of its own, which would disturb what is being measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars:
        tasks: dict[str, Any] = {}
        drawn = 0.0

        def update(what: str, done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if done < total and now - drawn < _REDRAW_S:
                return
            drawn = now
            if what not in tasks:
                tasks[what] = bars.add_task(clean(what), total=total)
            bars.update(tasks[what], completed=done, total=total)
            bars.refresh()
            if done >= total:
                bars.remove_task(tasks.pop(what))

        yield update


def percent(fraction: float) -> str:
    """A fraction as percent with one decimal, such as "93.1 %"."""
    return f"{100 * fraction:.1f} %"


def points(fraction: float) -> str:
    """A fraction as percent for tables whose title or header says so, such as "93.1"."""
    return f"{100 * fraction:.1f}"


def milliseconds(value: float) -> str:
    """A latency with three significant digits, such as "0.812" or "14.3"."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    return console


def _is_number(cell: object) -> bool:
    text = str(cell).replace("%", "").replace(",", "").replace("x", "").strip()
    if text in ("", "-"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
