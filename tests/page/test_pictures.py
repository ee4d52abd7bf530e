import base64
import re

import matplotlib.pyplot as plt
import pytest

from helpers.page import explore, pictures, show_plot

ALT = 'A line that rises from 1 to 2, "steep" & <straight>.'


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, instead of displaying it."""
    displayed = []
    monkeypatch.setattr(pictures, "display", lambda data, raw: displayed.append(data))
    return displayed


def line(inches=3):
    figure, axes = plt.subplots(figsize=(inches, 2))
    axes.plot([1, 2])
    return figure


def width(data) -> int:
    """Return the width of the PNG in a displayed picture, from its head."""
    return int.from_bytes(base64.b64decode(re.search(r'base64,([^"]+)', data["text/html"])[1])[16:20])


def test_a_plot_is_shown_once_and_says_what_it_shows(shown):
    show_plot(line(), ALT)
    [data] = shown
    assert data["text/html"].startswith('<img alt="A line that rises from 1 to 2, &quot;steep&quot; &amp; &lt;straight&gt;." ')
    assert data["text/plain"] == ALT and set(data) == {"text/html", "text/plain"}
    assert not plt.get_fignums()


@pytest.mark.parametrize("alt", ["", " \n"])
def test_a_plot_without_words_is_refused(shown, alt):
    with pytest.raises(ValueError, match="^alt is empty; say in a sentence"):
        show_plot(line(), alt)
    assert not shown
    plt.close("all")


def test_margins_go_unless_they_are_to_stay(shown):
    for trim in (True, False):
        show_plot(line(), ALT, trim)
    assert width(shown[0]) < width(shown[1]) == 300


def test_an_explorer_shows_one_plot_a_move(shown):
    panel = explore(lambda inches: show_plot(line(inches), f"{inches} inches", trim=False), inches=(1, 5))
    panel.children[0].value = 4
    assert [(width(data), data["text/plain"]) for data in shown] == [(300, "3 inches"), (400, "4 inches")]
    assert not plt.get_fignums()
