"""A table in, a figure out: plotly figures for the notebooks and the book.

Contract: figures carry no data of their own and read no files. Colours are Okabe and Ito's
("Color Universal Design", 2008), which colour-blind readers tell apart. Importing this module
makes notebooks store figures as plotly's JSON alone: JupyterLab draws that, and plotly.js is
not copied into every notebook.
"""

import html

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from plotly.subplots import make_subplots

from nucleoscope.bootstrap import Bins
from nucleoscope.correlation import choices

plotly.io.renderers.default = "plotly_mimetype"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
NAMES = {
    "entropy": "entropy (nats)",
    "full_entropy": "full entropy (nats)",
    "varentropy": "varentropy (nats²)",
    "surprisal": "surprisal (nats)",
    "cosine": "cosine similarity",
    "weighted_cosine": "weighted cosine similarity",
    "similarity_entropy": "similarity-sensitive entropy (nats)",
}


def scatter(table: pd.DataFrame, x: str = "entropy", y: str = "cosine") -> go.Figure:
    """Every token with k > 1 as a point, and the median of ``y`` in 50 equal-width bins of ``x``."""
    pairs = choices(table)
    figure = go.Figure(layout=_layout(f"{len(pairs):,} tokens with more than one candidate", height=460))
    if len(pairs):
        bins = Bins(pairs[x].to_numpy(), pairs[y].to_numpy(), pairs["prompt"].to_numpy())
        held = bins.count > 0
        point = {"size": 4, "color": BLUE, "opacity": 0.3}
        figure.add_trace(
            go.Scattergl(x=pairs[x], y=pairs[y], mode="markers", marker=point, name="token", hoverinfo="x+y")
        )
        figure.add_trace(
            go.Scattergl(  # as the points: what WebGL draws lies over what SVG draws
                x=bins.centers[held],
                y=bins.medians()[held],
                customdata=bins.count[held],
                mode="lines+markers",
                line={"color": ORANGE, "width": 3},
                name="median of a bin",
                hovertemplate="%{x:.2f}: median %{y:.3f} of %{customdata:,} tokens<extra></extra>",
            )
        )
    figure.update_xaxes(title=NAMES[x], rangemode="tozero")
    figure.update_yaxes(title=NAMES[y])
    return figure


def distributions(table: pd.DataFrame, left: str = "entropy", right: str = "cosine") -> go.Figure:
    """Histograms of two quantities over the tokens with k > 1."""
    pairs = choices(table)
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for column, (name, color) in enumerate(((left, BLUE), (right, GREEN)), 1):
        hover = "%{x}: %{y:,} tokens<extra></extra>"
        figure.add_trace(
            go.Histogram(x=pairs[name], nbinsx=50, marker_color=color, hovertemplate=hover), row=1, col=column
        )
        figure.update_xaxes(title=NAMES[name], row=1, col=column)
    figure.update_yaxes(title="tokens", col=1)
    return figure.update_layout(_layout(f"Distributions over {len(pairs):,} tokens", height=340), showlegend=False)


def _layout(title: str, height: int) -> dict:
    """What all figures share: see-through, in a grey that reads on a light and on a dark page."""
    axis = {"gridcolor": "rgba(128,128,128,0.25)", "zerolinecolor": "rgba(128,128,128,0.4)"}
    return {
        "title": {"text": title, "font": {"size": 15}},
        "template": {"layout": {"xaxis": axis, "yaxis": axis}},
        "font": {"color": "#777777"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)"},
    }


def tinted_text(prompt: str, pieces: list[str], values: list[float], name: str = "entropy") -> str:
    """A prompt and its continuation as HTML, each piece shaded by its value, with a legend.

    ``pieces`` and ``values`` run in parallel, one a token (see `pieces_of`); pointing at a piece
    shows its value. All text is escaped.
    """
    high = max(values, default=0) or 1
    spans = "".join(
        f'<span title="{NAMES[name]}: {value:.3f}" style="{_tint(value / high)}">{html.escape(piece)}</span>'
        for piece, value in zip(pieces, values, strict=True)
    )
    steps = "".join(f'<span style="{_tint(i / 8)};padding:0 0.7em">&nbsp;</span>' for i in range(9))
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8;max-width:46em"
    return (
        f'<p style="font-size:0.9em">{NAMES[name]}: 0 {steps} {high:.2f}</p>'
        f'<div dir="auto" style="{style};opacity:0.7">{html.escape(prompt)}</div>'
        f'<div dir="auto" style="{style}">{spans or "(the model ended this text at once)"}</div>'
    )


def _tint(share: float) -> str:
    return f"background-color:rgba(230,159,0,{0.85 * min(max(share, 0), 1):.3f})"


def pieces_of(tokenizer, tokens: list[int]) -> list[str]:
    """The text that each token adds: (n,) ids -> n strings, whose concatenation is the decoded text.

    A character made of several tokens belongs to the one that completes it.
    """
    pieces, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(tokens):
            text = done  # an unfinished character: the next token brings it
        pieces.append(text[len(done) :])
        done = text
    return pieces
