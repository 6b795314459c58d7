"""The page of the report that tells what each step of the selection leaves."""

import html
from collections.abc import Mapping
from pathlib import Path

from darkroom.tables.yields import Yield
from darkroom.views.plots import PAGE_CSS, name_of


def write_steps(path: Path, yields: Mapping[str, Yield]) -> None:
    """Write the page. yields: kind -> its steps, as yield.csv has them."""
    out = [
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Selection in steps</title><style>{PAGE_CSS}</style>"
    ]
    out.append(
        "<style>td{text-align:right}</style><p>Images that are left after each of the steps of the selection.</p>"
    )
    for kind, found in yields.items():
        out.append(f"<h2>{html.escape(name_of(kind))}</h2><table><tr><th>step</th><th>images</th><th>of all</th></tr>")
        for step, left in zip(found.steps, found.left, strict=True):
            share = f"{left / found.left[0]:.1%}" if found.left[0] else "-"
            out.append(f"<tr><th>{html.escape(step)}</th><td>{left:,}</td><td>{share}</td></tr>")
        out.append("</table>")
        if found.by:
            heads = "".join(f"<th>{html.escape(step)}</th>" for step in found.steps)
            out.append(f"<table><tr><th>{html.escape(found.field or '')}</th>{heads}</tr>")
            for value, numbers in found.by.items():
                cells = "".join(f"<td>{number:,}</td>" for number in numbers)
                out.append(f"<tr><th>{html.escape(value) or '(none)'}</th>{cells}</tr>")
            out.append("</table>")
    path.write_text("".join(out) + "</html>\n", encoding="utf-8")
