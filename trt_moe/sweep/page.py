"""A sweep as one HTML file that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trt_moe.sweep.tables import Table

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding: 1.5rem 0 0.5rem; }
th, td { padding: 0.2rem 0.8rem; text-align: left; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; }
"""


def page(title: str, svg: str, remarks: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the whole document.

    Args:
        title: plain text.
        svg: an <svg> element, used as it is.
        remarks: plain text, a paragraph each.
        tables: plain text in every cell.
    """
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>",
        f"<body><h1>{escape(title)}</h1>",
        svg,
        *(f"<p>{escape(remark)}</p>" for remark in remarks),
        *(_table(table) for table in tables),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="wide"><table>{caption}<tr>{head}</tr>\n{rows}</table></div>'
