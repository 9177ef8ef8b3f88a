"""Tables on narrow terminals."""

import pytest
from rich.console import Console

from trt_moe import console

COLUMNS = ["severity", "share squeezenet %", "share resnet %", "mixture right %", "squeezenet right %", "p99 ms"]
ROW = ["0", "95.0", "5.0", "89.2", "88.3", "0.736"]


def lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, columns: list[str] = COLUMNS
) -> list[str]:
    monkeypatch.setattr(console, "stdout", lambda: Console(width=width, markup=False, highlight=False))
    console.print_table("", columns, [ROW])
    return capsys.readouterr().out.splitlines()


def test_headers_break_between_words_where_there_is_room(monkeypatch, capsys):
    # 8 + 10 + 6 + 7 + 10 + 5 for the longest words, and two more a column.
    printed = lines(monkeypatch, capsys, 58)
    assert [line.split() for line in printed[1:4]] == [
        ["share", "share"],
        ["squeezenet", "resnet", "mixture", "squeezenet", "p99"],
        ["severity", "%", "%", "right", "%", "right", "%", "ms"],
    ]
    assert printed[5].split() == ROW


def test_headers_break_at_hyphens_too(monkeypatch, capsys):
    columns = [column.replace("squeezenet", "light-clean") for column in COLUMNS]
    printed = lines(monkeypatch, capsys, 8 + 6 + 6 + 7 + 6 + 5 + 2 * 6, columns)
    assert [line.split() for line in printed[1:5]] == [
        ["share", "light-"],
        ["light-", "share", "clean"],
        ["clean", "resnet", "mixture", "right", "p99"],
        ["severity", "%", "%", "right", "%", "%", "ms"],
    ]


def test_what_fits_into_no_table_is_a_list(monkeypatch, capsys):
    assert [line.rstrip() for line in lines(monkeypatch, capsys, 20)] == [
        "0",
        "  share squeezenet",
        "%: 95.0",
        "  share resnet %:",
        "5.0",
        "  mixture right %:",
        "89.2",
        "  squeezenet right",
        "%: 88.3",
        "  p99 ms: 0.736",
    ]


def test_no_column_is_left_out_at_any_width(monkeypatch, capsys):
    for width in range(30, 100):
        monkeypatch.setattr(console, "stdout", lambda width=width: Console(width=width, markup=False, highlight=False))
        row = ["a/folder/of/images/Ankle-boot/00000.png", "Ankle-boot", "99.8 %", "squeezenet", "1.455"]
        console.print_table("", ["image", "label", "probability", "expert", "ms"], [row])
        printed = capsys.readouterr().out
        assert all(cell in printed for cell in row[1:]), width


def test_numbers_are_never_cut_off(monkeypatch, capsys):
    for width in (120, 57, 50):
        assert ROW in [line.split() for line in lines(monkeypatch, capsys, width)]
