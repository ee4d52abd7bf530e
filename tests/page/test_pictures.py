import base64
import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from helpers.ask import right_of
from helpers.page import Picture, explore, show_plot, write_report

ALT = 'A line that rises from 1 to 2, "steep" & <straight>.'


def line(inches=3):
    figure, axes = plt.subplots(figsize=(inches, 2))
    axes.plot([1, 2])
    return figure


def width(data) -> int:
    """Return the width of the PNG in a displayed picture, from its head."""
    return int.from_bytes(base64.b64decode(re.search(r'base64,([^"]+)', data)[1])[16:20])


def test_a_plot_is_shown_once_and_says_what_it_shows(capsys):
    show_plot(line(), ALT)  # outside a notebook the words are what is shown
    assert capsys.readouterr().out == f"{ALT}\n" and not plt.get_fignums()
    shown = Picture(line(), ALT)
    assert shown.html.startswith('<img alt="A line that rises from 1 to 2, &quot;steep&quot; &amp; &lt;straight&gt;." ')
    assert set(DisplayFormatter().format(shown)[0]) == {"text/html", "text/plain"} and repr(shown) == ALT and not plt.get_fignums()


@pytest.mark.parametrize("alt", ["", " \n"])
def test_a_plot_without_words_is_refused(alt):
    figure = line()
    with pytest.raises(ValueError, match="^alt is empty; say in a sentence"):
        show_plot(figure, alt)
    plt.close(figure)


def test_margins_go_unless_they_are_to_stay():
    trimmed, whole = (Picture(line(), ALT, trim=trim).html for trim in (True, False))
    assert width(trimmed) < width(whole) == 300


def test_a_sentence_or_a_table_stands_above_a_picture():
    sentence, table = (Picture(line(), ALT, above=above).html for above in ("1 < 2", pd.DataFrame({"rank": [8]})))
    assert sentence.startswith("<p>1 &lt; 2</p><img ") and "<th>rank</th>" in table.partition("<img ")[0]


def test_an_explorer_shows_one_plot_a_move():
    panel = explore(lambda inches: Picture(line(inches), f"{inches} inches"), inches=(1, 5))
    control, place = panel.children
    seen = [place.outputs]
    control.value = 4
    seen.append(place.outputs)
    assert [(width(one["data"]["text/html"]), one["data"]["text/plain"]) for [one] in seen] == [(300, "3 inches"), (400, "4 inches")]
    assert not plt.get_fignums()


def test_a_count_in_a_report_is_one_thing(tmp_path):
    page = write_report(tmp_path / "report.html", "t", {"score": right_of([True] * 29 + [False] * 7)}).read_text(encoding="utf-8")
    assert "<p>29 of 36 (65% to 90%)</p>" in page


def test_a_report_holds_a_picture_and_any_heading(tmp_path):
    page = write_report(tmp_path / "report.html", "t", {1: Picture(line(), ALT), "odd": "half a pair: \ud800"}).read_text(encoding="utf-8")
    assert "<h2>1</h2>" in page and '<img alt="A line that rises' in page and "half a pair: ?" in page
