"""Make matplotlib write labels in any script that an installed font has."""
from __future__ import annotations

import unicodedata

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font


def plot_labels(texts: list[str]) -> tuple[list[str], str]:
    """Return the texts as labels for a plot, and a sentence on what no installed font can write, or "".

    Adds fonts to matplotlib's setting `font.family`, which are tried in order for each character. A text that can't
    be written is replaced by its number in the list, counted from 0, so that no plot shows empty boxes.
    """
    missing = _without_font({char for text in texts for char in text if not char.isspace()})
    lost = {char for char in missing if not _invisible(char)}
    labels = [f"record {place}" if lost & set(text) else _plain(text, missing) for place, text in enumerate(texts)]
    if not lost:
        return labels, ""
    some = " ".join(sorted(lost)[:5]) + (" ..." if len(lost) > 5 else "")
    return labels, (f"No installed font has {some}: in plots a number takes the place of such a text. Install a font "
                    "that has them, for instance Noto Sans CJK for Chinese, and start the kernel again.")


def _plain(text: str, missing: set[str]) -> str:
    """Return the text on one line; a dollar sign would begin a formula."""
    return " ".join("".join(char for char in text if char not in missing).split()).replace("$", r"\$")


def _without_font(chars: set[str]) -> set[str]:
    """Add fonts to `font.family` until all characters have one, as far as possible; return those that have none."""
    families = list(plt.rcParams["font.family"])
    chars = _not_in(font_manager.findfont(font_manager.FontProperties(family=families)), 0, chars)
    for font in font_manager.fontManager.ttflist if chars else []:
        if "lastresort" in font.name.lower().replace(" ", ""):  # this one has boxes for all
            continue
        left = _not_in(font.fname, font.index, chars)
        if len(left) < len(chars):
            families += [font.name] * (font.name not in families)
            chars = left
    plt.rcParams["font.family"] = families
    return chars


def _not_in(file: str, face: int, chars: set[str]) -> set[str]:
    try:
        font = FT2Font(file, face_index=face)
        return {char for char in chars if not font.get_char_index(ord(char))}
    except (OSError, RuntimeError):  # a font that was removed, or one made of pictures
        return chars


def _invisible(char: str) -> bool:
    """Say whether a character only joins or changes its neighbours, as in emoji of several parts."""
    return unicodedata.category(char) in ("Cf", "Cc") or "\ufe00" <= char <= "\ufe0f"
