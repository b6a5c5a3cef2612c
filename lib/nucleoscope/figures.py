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

from nucleoscope.correlation import binned, choices

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
        medians = binned(pairs[x], pairs[y])
        point = {"size": 3, "color": BLUE, "opacity": 0.25}
        figure.add_trace(
            go.Scattergl(x=pairs[x], y=pairs[y], mode="markers", marker=point, name="token", hoverinfo="x+y")
        )
        figure.add_trace(
            go.Scatter(
                x=medians["center"],
                y=medians["median"],
                customdata=medians["count"],
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
    """What all figures share; no background, so that they suit a light and a dark page."""
    return {
        "title": {"text": title, "font": {"size": 15}},
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"orientation": "h", "y": 1.02, "x": 1, "xanchor": "right", "yanchor": "bottom"},
    }


def tinted_text(pieces: list[str], values: list[float], name: str = "entropy") -> str:
    """A text as HTML, each piece shaded by its value, with a legend; the value shows on pointing at it.

    ``pieces`` and ``values`` run in parallel, one a token (see `pieces_of`). What the pieces hold
    is escaped.
    """
    if not pieces:
        return "<p><em>The model ended this text at once: there is no token to show.</em></p>"
    high = max(values) or 1
    spans = "".join(
        f'<span title="{NAMES[name]}: {value:.3f}" style="{_tint(value / high)}">{html.escape(piece)}</span>'
        for piece, value in zip(pieces, values, strict=True)
    )
    steps = "".join(f'<span style="{_tint(i / 8)};padding:0 0.7em">&nbsp;</span>' for i in range(9))
    legend = f'<p style="font-size:0.9em">{NAMES[name]}: 0 {steps} {high:.2f}</p>'
    return f'{legend}<div dir="auto" style="white-space:pre-wrap;line-height:1.8;max-width:46em">{spans}</div>'


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
