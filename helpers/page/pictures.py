"""Show a plot with a text alternative, for readers who do not see it."""
from __future__ import annotations

import base64
import html
from io import BytesIO

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure


def show_plot(figure: Figure, alt: str, trim: bool = True) -> None:
    """Show a figure once, and to those who cannot see it the sentence `alt`.

    trim: cut the empty margins off; without, all pictures of one size stay so, and drawing takes half as long. Raises
    ValueError if `alt` is empty. The output is HTML, for neither JupyterLab nor nbconvert's page gives an alt to a PNG.
    """
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence what the plot shows, for those who cannot see it")
    display({"text/html": picture_html(figure, alt, trim), "text/plain": alt}, raw=True)
    plt.close(figure)  # else the cell would show it again when it ends


def picture_html(figure: Figure, alt: str, trim: bool = True) -> str:
    """Return the figure as an <img> that holds its PNG."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight" if trim else None)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
