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


def table(checks, bad: str = "!", head=()) -> str:
    """Return checks as an HTML table, with what to do where it is not well, below the rows of its head; texts are escaped."""
    rows = [*head, *((sign(each.ok, bad), each.name, each.measured, "" if each.ok else each.mend) for each in checks)]
    cells = ("".join(f'<td style="text-align:left;vertical-align:top">{html.escape(text)}</td>' for text in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
