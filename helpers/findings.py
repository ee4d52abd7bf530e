"""What was looked at, a line for each thing, as text and as a table: for check_laptop, supervision_report and diagnose_adapter."""
import html
from typing import NamedTuple


class Check(NamedTuple):
    """One thing examined: ok is True, False or None (not examined); mend says why and what to do if it is not well."""

    name: str
    ok: bool | None
    measured: str
    mend: str = ""


def sign(ok: bool | None, bad: str = "!") -> str:
    """Return a tick for what is well, a dash for what was not examined."""
    return {True: "✓", False: bad, None: "–"}[ok]


def table(rows) -> str:
    """Return rows of texts as an HTML table; the texts are escaped."""
    cells = ("".join(f'<td style="text-align:left;vertical-align:top">{html.escape(text)}</td>' for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
