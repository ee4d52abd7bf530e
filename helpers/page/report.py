"""Write what a training run did as one HTML file, with the plots inside: it opens anywhere, without a network."""
import html
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from helpers import at_home
from helpers.data.chat import prompt_text
from helpers.page.pictures import as_html, picture_html
from helpers.training.saving import written_whole

# The policy makes a browser refuse scripts and anything from outside, even if a text were not escaped.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; line-height: 1.5; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ border: 1px solid #bbb; padding: 4px 8px; text-align: left; vertical-align: top; unicode-bidi: plaintext; }}
p {{ white-space: pre-wrap; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_report(path: str | Path, title: str, parts: dict[str, object]) -> Path:
    """Write a page with a heading for each of `parts`; return its path.

    A part is a text, a prompt (a list of messages), a matplotlib figure, a table of pandas, anything that a notebook
    shows as HTML, such as the results of compare_answers and diagnose_adapter, or a list of these. Texts are escaped. A part that is no list and
    none of these is written as str() gives it.
    """
    body = "\n".join(f"<h2>{html.escape(str(heading))}</h2>\n{_as_html(part, str(heading))}" for heading, part in parts.items())
    with written_whole(path) as file:
        file.write_text(PAGE.format(title=html.escape(title), body=body), encoding="utf-8", errors="replace")
    return at_home(path)


def _as_html(part: object, heading: str) -> str:
    if isinstance(part, list) and part and all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in part):
        part = prompt_text(part)
    if type(part) in (list, tuple):  # a named tuple, such as a count, is one thing
        return "\n".join(_as_html(each, heading) for each in part)
    if isinstance(part, Figure):
        return picture_html(part, heading)
    if isinstance(part, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):  # else long texts end in dots
            return part.to_html(escape=True, index_names=False)
    return as_html(part)

