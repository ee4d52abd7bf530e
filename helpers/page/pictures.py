"""Show a plot with a text alternative, for readers who do not see it."""
import base64
import html
from io import BytesIO

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure


class Picture:
    """A figure with a sentence for those who cannot see it, and what stands above it: a cell or an explorer shows it as HTML.

    above: a text, or a table (what has _repr_html_). trim: cut the empty margins off; without, all pictures of one size
    stay so, and drawing takes half as long. Raises ValueError if alt is empty. (Neither JupyterLab nor nbconvert's page
    gives an alt to a PNG.) The figure is closed, for else its cell would show it once more.
    """

    def __init__(self, figure: Figure, alt: str, above=None, trim: bool = False) -> None:
        if not alt.strip():
            raise ValueError("alt is empty; say in a sentence what the plot shows, for those who cannot see it")
        self.alt, self.html = alt, ("" if above is None else as_html(above)) + picture_html(figure, alt, trim)
        plt.close(figure)

    def __repr__(self) -> str:
        return self.alt

    def _repr_html_(self) -> str:
        return self.html


def show_plot(figure: Figure, alt: str) -> None:
    """Show a figure once, and to those who cannot see it the sentence `alt`; see Picture."""
    display(Picture(figure, alt, trim=True))


def as_html(part) -> str:
    """Return what a notebook shows of an object; a text is escaped."""
    return part._repr_html_() if hasattr(part, "_repr_html_") else f"<p>{html.escape(str(part))}</p>"


def picture_html(figure: Figure, alt: str, trim: bool = True) -> str:
    """Return the figure as an <img> that holds its PNG."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100, bbox_inches="tight" if trim else None)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
