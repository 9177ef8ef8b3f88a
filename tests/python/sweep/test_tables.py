"""Tables, remarks, CSV, picture and page of a comparison known by heart."""

import csv
import dataclasses
import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("torch")  # trt_moe.training imports it

from trt_moe.sweep.compare import ONE, SEPARATE, Outcomes, Spread, compare
from trt_moe.sweep.page import page
from trt_moe.sweep.picture import Picture, _bars
from trt_moe.sweep.tables import Table, remarks, tables, to_csv
from trt_moe.training.routing import Frontier

SVG = "{http://www.w3.org/2000/svg}"


RIGHT = np.array([[True, True], [False, True], [False, True], [False, False]])
PERFECT = np.array([[0.0, 0.0], [0.0, 2.9], [0.0, 2.8], [0.0, 0.1]])
WRONG = -PERFECT
BLIND = np.array([[0.0, -9.0]] * 4)


def outcomes(*names):
    losses = np.where(RIGHT, 0.1, 3.0).astype(np.float32)
    confidence = np.array([[0.9, 0.5], [0.3, 0.5], [0.8, 0.5], [0.4, 0.5]], np.float32)
    return Outcomes(
        names,
        np.array([0.25, 1.0]),
        0.05,
        np.array([0, 0, 5, 5]),
        RIGHT,
        {"dearest": RIGHT[:, [1, 1]]},
        losses,
        confidence,
    )


@pytest.fixture(scope="module")
def comparison():
    return compare(outcomes("light", "heavy"), {1: PERFECT, 2: PERFECT}, {0.5: {1: PERFECT, 2: BLIND}})


@pytest.fixture(scope="module")
def picture(comparison):
    return Picture(comparison, "tiny <&> title")


def test_the_first_table_answers_the_question(comparison):
    weights, frontier, shares, without = tables(comparison)
    assert weights.rows == [
        (
            "0.5",
            "75.00 (75.00 to 75.00)",
            "0.675 (0.675 to 0.675)",
            "50.00 (25.00 to 75.00)",
            "0.488 (0.300 to 0.675)",
            "+0.00 (+0.00 to +0.00)",
            "none",
            "2",
        )
    ]
    assert frontier.rows[0][:2] == ("0.300", "25.00 (25.00 to 25.00)")
    assert shares.rows == [
        ("0.5", ONE, "light", "50.0", "50.0"),
        ("0.5", ONE, "heavy", "50.0", "50.0"),
        ("0.5", SEPARATE, "light", "75.0", "75.0"),
        ("0.5", SEPARATE, "heavy", "25.0", "25.0"),
    ]
    assert without.rows == [
        ("always light", "25.00", "0.250"),
        ("always heavy", "75.00", "1.000"),
        ("oracle", "75.00", "0.625"),
    ]
    for table in (weights, frontier, shares, without):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_remarks_name_every_collapse_and_the_worst_points(comparison):
    equal, cascade, one, separate, which = remarks(comparison)
    assert "+0.00 points, at latency weight 0.5" in equal
    ahead = [row for row in comparison.frontier if row.ahead.mean > 0]
    assert 0 < len(ahead) < len(comparison.frontier)
    assert f"at {len(ahead)} of 25 costs (from {ahead[0].cost:.3f} to {ahead[-1].cost:.3f})" in cascade
    assert "the smallest difference is -5.00 points, at cost 0.300" in cascade
    assert one == "Collapsed, one gater: 0 of 2."
    assert separate == "Collapsed, separate gaters: 1 of 2."
    assert which.startswith("  latency weight 0.5, seed 2: routing collapsed: 100.0% of the images go to light. Cause:")


def test_the_worst_latency_weight_is_the_one_remarked_on():
    both = compare(outcomes("light", "heavy"), {0: WRONG}, {0.5: {0: WRONG}, 1.0: {0: PERFECT}})
    assert "at worst -50.00 points, at latency weight 1." in remarks(both)[0]


def test_shares_are_those_of_each_latency_weight():
    both = compare(outcomes("light", "heavy"), {0: PERFECT}, {0.5: {0: PERFECT}, 4.0: {0: PERFECT}})
    shares = [(row[0], row[3:]) for row in tables(both)[2].rows if row[1:3] == (ONE, "heavy")]
    assert shares == [("0.5", ("50.0", "50.0")), ("4", ("0.0", "0.0"))]


def test_the_csv_has_a_row_for_every_severity(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == (4 + 3) * (1 + 2)
    (row,) = [r for r in rows if (r["strategy"], r["seed"], r["severity"]) == (SEPARATE, "1", "5")]
    assert float(row["accuracy"]) == 0.5
    assert float(row["cost"]) == pytest.approx(0.675)
    assert (row["latency_weight"], row["share_light"], row["share_heavy"]) == ("0.5", "0.5", "0.5")
    assert rows[-3]["strategy"] == "oracle"
    assert (rows[-3]["severity"], rows[-3]["seed"], rows[-3]["latency_weight"]) == ("all", "", "")


def test_the_picture_is_a_png(picture):
    assert picture.png().startswith(b"\x89PNG\r\n\x1a\n")


def test_every_mark_says_what_it_is_on_hovering(picture, comparison):
    notes = [title.text for title in ET.fromstring(picture.svg()).iter(f"{SVG}title")]
    assert "one gater, latency weight 0.5: 75.00% (75.00% to 75.00%) right at cost 0.675" in notes
    assert "separate gaters, latency weight 0.5: 50.00% (25.00% to 75.00%) right at cost 0.488" in notes
    assert "always heavy: 75.00% right at cost 1.000" in notes
    assert "cost 0.300: -5.00 points (-5.00 to -5.00)" in notes
    gaters, without, differences = 2, 3, 1
    assert len(notes) == gaters + without + differences + len(comparison.frontier)


def test_the_picture_shows_the_spread_and_the_best_of_the_cascade(comparison):
    assert np.allclose(_bars(Spread(0.5, 0.4, 0.8)), [[10], [30]])
    falling = Frontier(np.array([0.25, 0.5, 1.0]), np.array([0.5, 0.8, 0.6]))
    figure = Picture(dataclasses.replace(comparison, cascade=falling), "tiny").figure
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "confidence cascade"]
    assert np.allclose(line.get_ydata(), [50, 80, 80])


def test_names_are_text_in_the_picture_too():
    odd = compare(outcomes("a<b", "c&d"), {0: PERFECT}, {0.5: {0: PERFECT}})
    notes = [title.text for title in ET.fromstring(Picture(odd, "<&>").svg()).iter(f"{SVG}title")]
    assert "always a<b: 25.00% right at cost 0.250" in notes


def test_the_same_comparison_gives_the_same_bytes(comparison):
    assert Picture(comparison, "tiny").svg() == Picture(comparison, "tiny").svg()


def test_the_page_needs_nothing_else(picture):
    text = page("a <b> title", picture.svg(), ["x < y"], [Table("<t>", ["<c>"], [["<&>"]])])
    assert text.startswith("<!DOCTYPE html>")
    for needed in ("<h1>a &lt;b&gt; title</h1>", "<p>x &lt; y</p>", "<td>&lt;&amp;&gt;</td>", "<th>&lt;c&gt;</th>"):
        assert needed in text
    assert "&lt;t&gt;" in text
    assert text.count("<svg") == 1
    # Names of SVG's namespaces are the only addresses, and nothing runs.
    addresses = {part.split('"')[0] for part in text.split('"http')[1:]}
    assert addresses == {"://www.w3.org/1999/xlink", "://www.w3.org/2000/svg"}
    for outside in ("<script", "<link", "src=", "url(http", "@import", "<image"):
        assert outside not in text
