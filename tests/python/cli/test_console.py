"""Numbers, messages, JSON and progress as commands print them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from trt_moe import console


def test_numbers_have_the_digits_that_count():
    assert [console.milliseconds(value) for value in (0.8123, 9.9, 10.0, 14.26, 100.0, 812.3)] == [
        "0.812", "9.900", "10.0", "14.3", "100", "812"
    ]  # fmt: skip
    assert (console.percent(0.9312), console.points(0.9312)) == ("93.1 %", "93.1")


def test_a_rule_names_second_looks_only_where_there_are_any():
    assert console.routing_rule(0.70001, 0.0, "mirror") == "latency weight 0.7"
    assert console.routing_rule(0.7, 0.55, "dearest") == "latency weight 0.7, verified below 0.55"
    assert console.routing_rule(0.7, 0.55, "mirror") == "latency weight 0.7, verified by mirror below 0.55"


def test_a_message_is_one_line_without_control_characters_or_markup(capsys):
    console.note("a\x1b[31m [bold]:smile: " + "long " * 100)
    assert capsys.readouterr().err == "a\N{REPLACEMENT CHARACTER}[31m [bold]:smile: " + "long " * 100 + "\n"


def test_what_is_piped_is_not_squeezed_and_cells_are_clean(capsys):
    console.print_table("", ["name", "remark", "%"], [["a\x1b" + "n" * 80, "long " * 20, "-"]])
    printed = capsys.readouterr().out
    assert "a\N{REPLACEMENT CHARACTER}" + "n" * 80 in printed
    assert "long " * 20 in printed


def test_numbers_stand_right_and_text_left(capsys):
    console.print_table("", ["1", "text", "count"], [["1", "a", "7"], ["10", "1b", "-"], ["3", "2", "1,000 %"]])
    first, second, third = capsys.readouterr().out.splitlines()[3:6]
    assert first.index("1") == second.index("10") == third.index("3")
    assert first.index("a") == second.index("1b") == third.index("2")
    assert len(first.rstrip()) == len(second.rstrip()) == len(third.rstrip())


def test_json_is_plain_ascii_and_knows_no_nan(capsys):
    console.print_json({"a": np.float32(0.5), "b": np.arange(2), "c": Path("d/\udcff"), "e": "ü"})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"a": 0.5, "b": [0, 1], "c": "d/\udcff", "e": "ü"}
    assert printed.isascii()
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.print_json(float("nan"))


@pytest.mark.parametrize(
    ("show", "terminal", "drawn"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_progress_is_drawn_on_terminals_where_it_is_wanted_up_to_its_end(monkeypatch, show, terminal, drawn):
    out = io.StringIO()
    monkeypatch.setattr(console, "stderr", lambda: Console(file=out, force_terminal=terminal, width=80))
    with console.progress(show) as callback:
        for done in range(1, 4):
            callback("work", done, 3)  # too fast to be drawn every time, but for the last
    assert ("3/3" in out.getvalue()) is drawn
