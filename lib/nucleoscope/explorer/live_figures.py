"""The live notebook's two figures: the scatter plot of one text, and the matrix of one token's candidates.

Contract: these are plotly figures that a kernel can keep changing. Plotly interprets some HTML in its
texts, so text from a model goes through `names.escape_plotly`.
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
HINT = "How similar the candidates of a token are, first of the one where the model was least sure, is shown here."
NO_POINTS = "The text has no token with more than one candidate so far."


def build_scatter(name: str, tokens: list[cards.Token]) -> go.FigureWidget:
    """The scatter plot of one text: a trace of its tokens, which can be selected, and a trace for one mark.

    The tokens are there from the beginning: a browser that is slow shows no empty axes first.

    ``name`` is the layout's meta, by which `controls.TokenText` recognises its figure.
    """
    figure = go.Figure(layout=build_layout("Tokens with more than one candidate", 380))
    hover = "token %{text}: entropy %{x}, cosine similarity %{y}<extra></extra>"
    dot = {"size": 7, "color": BLUE, "opacity": 0.7}
    chosen = {"marker": {"color": ORANGE, "opacity": 1}}
    figure.add_scatter(mode="markers", marker=dot, selected=chosen, hovertemplate=hover, name="token", **HOVER)
    ring = {"size": 15, "symbol": "circle-open", "color": VERMILLION, "line": {"width": 3}}
    figure.add_scatter(mode="markers", marker=ring, hoverinfo="skip", name="the token pointed at")
    figure.update_layout(dragmode="select", showlegend=False, margin={"t": 40, "b": 40}, uirevision="text", meta=name)
    figure.update_xaxes(title=quantities.find_title(AXES["x"]), rangemode="tozero")
    figure.update_yaxes(title=quantities.find_title(AXES["y"]))
    figure.add_annotation(text=NO_POINTS, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    show_points(figure, tokens)
    return _fit_width(go.FigureWidget(figure))


def show_points(figure: go.Figure, tokens: list[cards.Token]) -> None:
    """Draws the tokens with more than one candidate into `build_scatter`; each point's customdata is its step.

    Without any, the figure is a sentence that says so, and has no axes.
    """
    steps = [step for step, token in enumerate(tokens) if len(token.ids) > 1]
    values = {axis: [tokens[step].values[name] for step in steps] for axis, name in AXES.items()}
    with figure.batch_update():
        figure.data[0].update(values, customdata=steps, text=[str(step) for step in steps])
        figure.layout.annotations[0].visible = not steps
        # axes without points would show plotly's range of its own choosing, -1 to 4 or 6
        figure.layout.xaxis.visible = figure.layout.yaxis.visible = bool(steps)


def show_mark(figure: go.FigureWidget, token: cards.Token) -> None:
    """Puts the mark of `build_scatter` on a token; on none if it has a single candidate."""
    values = {axis: [token.values[name]] if len(token.ids) > 1 else [] for axis, name in AXES.items()}
    with figure.batch_update():
        figure.data[1].update(values)


def build_heat() -> go.FigureWidget:
    """The figure for `build_heatmap`, empty, with a hint on how to fill it."""
    return _fit_width(go.FigureWidget(layout=build_layout("", 90)).update_layout(**build_heat_layout(HINT, [], 90)))


def _fit_width(figure: go.FigureWidget) -> go.FigureWidget:
    """Fits the figure to the width of its container: plotly follows resize events, which ``explorer.js`` sends."""
    figure._config = {"responsive": True, "displaylogo": False}
    return figure


def show_matrix(
    figure: go.FigureWidget,
    step: int,
    ids: torch.Tensor,
    matrix: tuple[np.ndarray, np.ndarray] | None,
    reader: Reader,
) -> None:
    """Draws the matrix of the candidates of token ``step`` into `build_heat`, or says why there is none.

    ``matrix`` is a `cards.order_matrix`; None if the cosines are not known.
    """
    title, words, cosines = f"Token {step} had only one candidate: nothing to compare", [], None
    if len(ids) > 1 and matrix is None:
        title = "The files of this run have no similarities: press Run to measure them"
    elif len(ids) > 1:
        cosines, order = matrix
        words = [reader.show(int(ids[place])) for place in order]
        title = f"Cosine similarity of the candidates of token {step}"
        if len(order) < len(ids):
            title += f"<br>(the {len(order)} likeliest of {len(ids):,})"
    # Plotly keeps the width that a figure has when its height is set, perhaps the one from before it was in the page,
    # unless autosize is set with it; and what is set already is not sent again.
    figure.layout.autosize = None
    with figure.batch_update():
        figure.data = []
        figure.update_layout(
            **build_heat_layout(title, words, 90 if cosines is None else 200 + 14 * max(len(words), 10))
        )
    if cosines is not None:
        figure.add_trace(build_heatmap(cosines, words))


def build_heatmap(cosines, words: list[str]) -> go.Heatmap:
    """A matrix of cosines (n, n) with a word for each row, as a plotly trace."""
    shown = [escape_plotly(word) for word in words]
    pairs = [[f"{left} and {right}" for right in shown] for left in shown]
    hover = "%{text}: %{z}<extra></extra>"
    low = min(0.0, float(cosines.min()))
    bar = {"thickness": 14, "tickformat": ".1f", "title": {"text": quantities.find_title("cosine"), "side": "right"}}
    colors = {"zmin": low, "zmax": 1, "colorscale": MATRIX, "colorbar": bar}
    return go.Heatmap(z=cosines, text=pairs, hovertemplate=hover, zhoverformat=".3f", name="cosine", **colors)


def build_heat_layout(title: str, words: list[str], height: int) -> dict[str, Any]:
    """The layout around `build_heatmap`; without words, that of an empty figure."""
    shown = [escape_plotly(word if len(word) <= 12 else word[:11] + "…") for word in words]
    axis = {"tickvals": list(range(len(words))), "ticktext": shown, "visible": bool(words), "showgrid": False}
    return {
        "title_text": title,
        "height": height,
        "autosize": True,
        "margin": {"t": 60 if "<br>" in title else 40, "b": 80, "l": 90, "r": 70},
        "xaxis": axis | {"tickangle": -60},
        "yaxis": axis | {"autorange": "reversed"},
    }
