"""The live notebook's two figures: the scatter plot of one text, and the matrix of one token's candidates.

Contract: these are plotly figures that a kernel can keep changing, so that they are created once: the page needs more
than half a second for each. The page draws them before it has a place for them, so they are created as wide as their
place will be; later they follow it. Plotly interprets some HTML in its texts, so text from a model goes through
`names.escape_plotly`; and it does not wrap lines, so headings and sentences are for `controls.FigurePlace`.
"""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from nucleoscope import quantities
from nucleoscope.names import escape_plotly
from nucleoscope.views import cards
from nucleoscope.views.figures import HOVER, build_layout
from nucleoscope.views.palette import BLUE, MATRIX, ORANGE, VERMILLION
from nucleoscope.views.token_text import Reader

AXES = {"x": "entropy", "y": "cosine"}  # of the scatter plot
FEW = 12  # candidates whose names fit below the columns of a matrix; those of more are at its rows only
HEIGHT = 420  # of the matrix, which is the same for any number of candidates: nothing below it moves
BAR = 32  # pixels above a figure for plotly's tool bar, which is shown while a pointer is on it
# What is left of the bar fits into one line on a phone; a double click on the figure shows all again.
NO_BUTTONS = ["zoomIn2d", "zoomOut2d", "autoScale2d", "lasso2d"]


def build_scatter(name: str, tokens: list[cards.Token], width: int = 0) -> go.FigureWidget:
    """The scatter plot of one text: a trace of its tokens, which can be selected, and a trace for one mark.

    ``name`` is the layout's meta, by which `controls.TokenText` recognises its figure. ``width`` is that of its place
    in pixels, 0 if it is unknown.
    """
    figure = go.Figure(layout=build_layout("", 350))
    hover = "token %{text}: entropy %{x}, cosine similarity %{y}<extra></extra>"
    dot = {"size": 7, "color": BLUE, "opacity": 0.7}
    chosen = {"marker": {"color": ORANGE, "opacity": 1}}
    figure.add_scatter(mode="markers", marker=dot, selected=chosen, hovertemplate=hover, name="token", **HOVER)
    ring = {"size": 15, "symbol": "circle-open", "color": VERMILLION, "line": {"width": 3}}
    figure.add_scatter(mode="markers", marker=ring, hoverinfo="skip", name="the token pointed at")
    figure.update_layout(dragmode="select", showlegend=False, margin={"t": BAR, "b": 40}, meta=name)
    figure.update_xaxes(title=quantities.find_title(AXES["x"]), rangemode="tozero")
    figure.update_yaxes(title=quantities.find_title(AXES["y"]))
    show_points(figure, tokens)
    return _create_widget(figure, width)


def describe_points(tokens: list[cards.Token], complete: bool) -> str:
    """The heading of `build_scatter`, or what to say in its place if it has no point."""
    if any(len(token.ids) > 1 for token in tokens):
        return "Tokens with more than one candidate"
    end = ", so there is nothing to plot." if complete else " so far."
    return "No token of the text has more than one candidate" + end


def show_points(
    figure: go.Figure, tokens: list[cards.Token], mark: cards.Token | None = None, reset: bool = False
) -> bool:
    """Draws the tokens with more than one candidate into `build_scatter`, and says whether there are any.

    Each point's customdata is its step. ``mark`` is the token that has the mark. ``reset`` if it is another text, whose
    axes are not those that a reader chose for the text before. What is selected is known to the page alone.
    """
    steps = [step for step, token in enumerate(tokens) if len(token.ids) > 1]
    values = {axis: [tokens[step].values[name] for step in steps] for axis, name in AXES.items()}
    zoomed = [axis for axis in (figure.layout.xaxis, figure.layout.yaxis) if reset and axis.range is not None]
    for axis in zoomed:
        axis.autorange = None  # what is set already is not sent again
    with figure.batch_update():
        figure.data[0].update(values, customdata=steps, text=[str(step) for step in steps])
        figure.data[1].update(_locate_mark(mark))
        for axis in zoomed:
            axis.update(range=None, autorange=True)
    return bool(steps)


def _locate_mark(token: cards.Token | None) -> dict[str, list[float]]:
    marked = token is not None and len(token.ids) > 1
    return {axis: [token.values[name]] if marked else [] for axis, name in AXES.items()}


def show_mark(figure: go.FigureWidget, token: cards.Token) -> None:
    """Puts the mark of `build_scatter` on a token; on none if it has a single candidate."""
    with figure.batch_update():
        figure.data[1].update(_locate_mark(token))


def build_heat(width: int = 0) -> go.FigureWidget:
    """The figure for the matrix of one token's candidates, empty; ``width`` as in `build_scatter`."""
    figure = go.Figure(layout=build_layout("", HEIGHT))
    figure.add_trace(build_heatmap(np.eye(0), []))
    return _create_widget(figure.update_layout(**build_heat_layout([])), width)


def _create_widget(figure: go.Figure, width: int) -> go.FigureWidget:
    """The widget of a figure, with its tool bar and the ``width`` of its place, 0 if that is unknown.

    Later it follows resize events, which ``explorer.js`` sends. The first width is the template's, because a width in
    the layout would not follow.
    """
    if width:
        figure.layout.template.layout.width = width
    widget = go.FigureWidget(figure)
    widget._config = {
        "responsive": True,
        "displaylogo": False,
        "displayModeBar": "hover",
        "modeBarButtonsToRemove": NO_BUTTONS,
    }
    return widget


def describe_matrix(step: int, k: int, matrix: tuple[np.ndarray, np.ndarray] | None) -> str:
    """The heading of the matrix of token ``step``, which has ``k`` candidates, or why there is none."""
    if k == 1:
        return f"Token {step} had only one candidate: nothing to compare"
    if matrix is None:
        return "The files of this run have no similarities: press Run to measure them"
    title, shown = f"Cosine similarity of the candidates of token {step}", len(matrix[1])
    return f"{title} (the {shown} likeliest of {k:,})" if shown < k else title


def show_matrix(
    figure: go.FigureWidget, ids: torch.Tensor, matrix: tuple[np.ndarray, np.ndarray] | None, reader: Reader
) -> bool:
    """Draws the matrix of candidates ``ids`` into `build_heat`, and says whether there is one to draw.

    ``matrix`` is a `cards.order_matrix`; None if the cosines are not known.
    """
    if len(ids) == 1 or matrix is None:
        return False
    cosines, order = matrix
    words = [reader.show(int(ids[place])) for place in order]
    heatmap = build_heatmap(cosines, words)
    with figure.batch_update():
        figure.data[0].update(z=heatmap.z, text=heatmap.text, zmin=heatmap.zmin)
        figure.update_layout(**build_heat_layout(words))
    return True


def build_heatmap(cosines: np.ndarray, words: list[str]) -> go.Heatmap:
    """A matrix of cosines (n, n) with a word for each row, as a plotly trace."""
    shown = [escape_plotly(word) for word in words]
    pairs = [[f"{left} and {right}" for right in shown] for left in shown]
    hover = "%{text}: %{z}<extra></extra>"
    low = min(0.0, float(cosines.min(initial=0)))
    bar = {"thickness": 14, "tickformat": ".1f", "title": {"text": quantities.find_title("cosine"), "side": "right"}}
    colors = {"zmin": low, "zmax": 1, "colorscale": MATRIX, "colorbar": bar}
    return go.Heatmap(z=cosines, text=pairs, hovertemplate=hover, zhoverformat=".3f", name="cosine", **colors)


def build_heat_layout(words: list[str]) -> dict[str, Any]:
    """The layout around `build_heatmap`. Columns, which are in the order of the rows, have names if they are few."""
    shown = [escape_plotly(word if len(word) <= 12 else word[:11] + "…") for word in words]
    n = len(words)
    axis = {"tickvals": list(range(n)), "ticktext": shown, "showgrid": False, "range": [-0.5, n - 0.5]}
    named = n <= FEW
    return {
        "margin": {"t": BAR, "b": 80 if named else 10, "l": 90, "r": 70},
        "xaxis": axis | {"tickangle": -60, "showticklabels": named},
        "yaxis": axis | {"range": [n - 0.5, -0.5], "tickfont_size": 12 if n <= 20 else 10},
    }
