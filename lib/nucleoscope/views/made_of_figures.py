"""The figures of the page "What it is made of": coefficients over top_p, null models, explained variance, all variants.

Contract: tables as returned by `specification`, `null_models` and `explained`; nothing is computed here and no file
is read. Figures look like those of `figures`; a menu selects the run.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown
from plotly.subplots import make_subplots

from nucleoscope.names import escape_plotly
from nucleoscope.settings import Settings
from nucleoscope.stats.explained import LADDER, LEAST
from nucleoscope.stats.null_models import GAUSSIAN, NULLS, OBSERVED, POOLED, SAME_K
from nucleoscope.stats.specification import CHOICES, NEGATIVE, POSITIVE, STATISTICS, UNDECIDED
from nucleoscope.store.run_settings import Head, describe_head, describe_head_settings, list_heads, select_head
from nucleoscope.variants import CANDIDATE_SETS, GEOMETRIES, SETS_BY_NAME
from nucleoscope.views.figures import build_layout, describe, round_values
from nucleoscope.views.numbers import format_points
from nucleoscope.views.palette import (
    BLUE,
    BUTTON,
    BUTTON_TEXT,
    FAINT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    fade,
)
from nucleoscope.wording import join_names

LOOKS = {  # of each geometry: colour, symbol of a point
    "raw": (BLUE, "circle"),
    "centred": (GREEN, "square"),
    "usage_centred": (PURPLE, "diamond"),
    "all_but_top_3": (VERMILLION, "triangle-up"),
    "all_but_top_d100": (ORANGE, "triangle-down"),
    "whitened": (SKY, "cross"),
    "output": (GREY, "x"),
}
SIGNS = {NEGATIVE: (VERMILLION, "circle"), UNDECIDED: (GREY, "circle-open"), POSITIVE: (BLUE, "diamond")}
BAND = 0.16  # opacity
BANDS = "bands: expected from the number of candidates alone"
FRONT = {  # the geometries of the front page, as its legend calls them
    "raw": "embeddings as they are (raw)",
    "all_but_top_3": "without mean and top 3 directions (all_but_top_3)",
}
USUAL = Settings.top_p  # of a nucleus where nothing else is known
NULL_TITLES = {
    OBSERVED: "measured",
    SAME_K: "sets exchanged, equal k",
    "other_step": "likeliest of another step",
    "random": "random tokens",
    "frequency_matched": "same frequency",
    "norm_matched": "same norm",
    GAUSSIAN: "no text: Gaussian states",
}
ZERO = {"showline": False, "zeroline": True, "zerolinewidth": 2}


def list_groups(table: pd.DataFrame) -> list[Head]:
    """The heads of a table's rows: means over runs first, if there are any."""
    return sorted(list_heads(table), key=lambda head: not is_pooled(head))


def is_pooled(head: Head) -> bool:
    """Whether a head is that of a mean over runs."""
    return (head["Model"], head["Dataset"]) == (POOLED, POOLED)


def name_group(head: Head) -> str:
    """How a menu calls a run, or a mean over runs."""
    name = describe_head(head, ", ")
    if is_pooled(head):
        name = ", ".join(filter(None, ("mean over runs", describe_head_settings(head))))
    return escape_plotly(name)


def plot_over_top_p(
    specifications: pd.DataFrame,
    geometries: Mapping[str, str] | None = None,
    statistics: Sequence[str] = ("Spearman", "Pearson"),
    csv: str = "",
) -> go.Figure | Markdown:
    """The coefficient over top_p, a line per geometry; a band is what exchanging sets of equal k leaves of it.

    ``geometries``: those to draw, each with its name in the legend; by default all, by
    their own names. A menu selects the run and the coefficient, if there are several; ``csv`` is the file with the
    data, if any.
    """
    rows = specifications[specifications["candidates"].isin(list(_list_top_p()))]
    rows = rows[rows["statistic"].isin(list(statistics))]
    names = [each.name for each in GEOMETRIES if each.name in set(rows["geometry"])]
    names = [name for name in names if geometries is None or name in geometries]
    figure = go.Figure(layout=build_layout("", height=480))
    contents = {}
    for group in list_groups(rows):
        own = select_head(rows, group)
        for statistic in statistics:
            part = own[own["statistic"] == statistic]
            if len(part):
                lines = [_build_line(part[part["geometry"] == name]) for name in names]
                contents[f"{name_group(group)}: {statistic}"] = list(chain.from_iterable(lines))
    for name in names:
        color, symbol = LOOKS[name]
        band = go.Scatter(mode="lines", fill="toself", fillcolor=fade(BAND, color), line={"width": 0}, hoverinfo="skip")
        figure.add_trace(band.update(legendgroup=BANDS, legendrank=2000, showlegend=not figure.data, name=BANDS))
        hover = f"{name}, top_p %{{x}}: %{{customdata}}<extra></extra>"
        line = go.Scatter(mode="lines+markers", line={"color": color, "width": 2.5}, hovertemplate=hover)
        title = geometries[name] if geometries else name
        figure.add_trace(line.update(marker={"size": 9, "symbol": symbol}, legendgroup=name, name=title))
    if is_empty(contents):
        return Markdown(_say_missing("a coefficient for any `top_p`"))
    fill_traces(figure, contents)
    figure.update_xaxes(title="top_p of the nucleus", tickvals=list(_list_top_p().values()), type="linear")
    figure.update_xaxes(autotickangles=[0, 90])  # on a phone, 0.95 and 0.99 are too close to be aslant
    figure.update_yaxes(title="correlation between entropy and cosine similarity", rangemode="tozero", **ZERO)
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"}  # covers no line there
    figure.update_layout(legend=legend, margin={"b": 90})
    if geometries:  # few: there is room between menu and lines, where a reader sees the legend first
        figure.update_layout(legend={"y": 1.0, "yanchor": "bottom"}, margin={"b": 50, "t": 100}, height=380)
        figure.update_layout(updatemenus=[{"pad": {"b": 40}} for _ in figure.layout.updatemenus])
    kinds = join_names(f"{name}'s" for name in statistics)
    text = (
        f"{kinds} correlation between entropy and cosine similarity against "
        "top_p: a line for each geometry and, where they could be computed, 95% intervals and bands that show the "
        "correlation after candidate sets were exchanged among tokens with equally many candidates"
    )
    return describe(figure, text, csv)


def _list_top_p() -> dict[str, float]:
    return {each.name: each.value for each in CANDIDATE_SETS if each.rule == "top_p"}


def _build_line(rows: pd.DataFrame) -> list[dict]:
    """The content of a geometry's band and line."""
    rows = rows.assign(top_p=rows["candidates"].map(_list_top_p())).sort_values("top_p")
    known = rows[rows[f"{SAME_K} low"].notna()]
    x = known["top_p"].tolist()
    edges = [*known[f"{SAME_K} low"], *known[f"{SAME_K} high"].iloc[::-1]]
    band = {"x": [*x, *x[::-1]], "y": round_values(np.array(edges, dtype=float))}
    return [band, build_points(rows, rows["top_p"].tolist(), "y")]


def build_points(rows: pd.DataFrame, others: list, axis: str, value: str = "r", bounds: str = "") -> dict:
    """Points with their intervals along ``axis``; ``others`` are their places on the other axis."""
    low, high = rows[f"{bounds}low"], rows[f"{bounds}high"]
    found = {axis: round_values(rows[value]), "y" if axis == "x" else "x": others}
    found[f"error_{axis}.array"] = round_values(high - rows[value])
    found[f"error_{axis}.arrayminus"] = round_values(rows[value] - low)
    return found | {"customdata": format_points(rows[value], low, high)}


def is_empty(contents: Mapping[str, Sequence[Mapping]]) -> bool:
    """Whether no trace of any of the contents has a point."""
    return not any(_has_points(part) for content in contents.values() for part in content)


def _has_points(part: Mapping) -> bool:
    return any(x is not None and y is not None for x, y in zip(part["x"], part["y"], strict=True))


def fill_traces(figure: go.Figure, contents: Mapping[str, Sequence[Mapping]]) -> None:
    """Gives the traces the first of the contents that have points, and a menu that selects one, if there are several.

    A trace without a point is hidden, with its entry in the legend.
    """
    contents = {label: content for label, content in contents.items() if not is_empty({label: content})}
    contents = {
        label: [{**part, "visible": seen, "showlegend": shown} for part, seen, shown in _list_shown(figure, content)]
        for label, content in contents.items()
    }
    for trace, content in zip(figure.data, next(iter(contents.values())), strict=True):
        for name, values in content.items():
            outer, _, inner = name.partition(".")
            if inner:
                trace.update({outer: {"type": "data", "symmetric": False, "thickness": 1.5, inner: values}})
            else:
                trace.update({name: values})
    if len(contents) > 1:
        keys = list(dict.fromkeys(key for content in contents.values() for part in content for key in part))
        buttons = [
            {
                "label": label,
                "method": "restyle",
                "args": [{key: [part.get(key) for part in content] for key in keys}],
            }
            for label, content in contents.items()
        ]
        look = {"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "bgcolor": BUTTON, "pad": {"b": 12}}
        look |= {"font": {"color": BUTTON_TEXT}}
        figure.update_layout(updatemenus=[{"buttons": buttons, **look}], margin={"t": 70})


def _list_shown(figure: go.Figure, content: Sequence[Mapping]) -> Iterator[tuple[Mapping, bool, bool]]:
    """The contents of the traces, each with whether it has points and whether the legend has an entry for it.

    Several traces of one name have one entry, that of the first with points.
    """
    named = {trace.name for trace in figure.data if trace.showlegend is not False}
    for trace, part in zip(figure.data, content, strict=True):
        seen = _has_points(part)
        yield part, seen, seen and trace.name in named
        named -= {trace.name} if seen else set()


def choose_nucleus(head: Head, names: Collection[str], usual: float = USUAL) -> str:
    """Of the candidate sets ``names``, the top_p set that is nearest to the nucleus of runs with this head; "" if none.

    That makes one number for a run: the coefficient of its own nucleus, which tables of runs have too. ``usual`` is
    the top_p of the nucleus where the head does not say it, because it does not differ.
    """
    top_p = head.get("top_p", np.nan)
    wanted = usual if np.isnan(top_p) else top_p
    sets = [each for each in CANDIDATE_SETS if each.rule == "top_p" and each.name in names]
    return min(sets, key=lambda each: abs(each.value - wanted)).name if sets else ""


def plot_nulls(
    null_statistics: pd.DataFrame,
    statistics: Sequence[str] = ("Spearman", "Pearson", "given k"),
    csv: str = "",
    usual: float = USUAL,
) -> go.Figure | Markdown:
    """The forest of null models for the nucleus: coefficients with intervals, that of the measurements first.

    A colour is a geometry, and a menu selects the run and the coefficient. The candidate set of a run is that of
    `choose_nucleus`.
    """
    rows = _select_nuclei(null_statistics, usual)
    nulls = [name for name in (OBSERVED, *NULLS) if name in set(rows["null"])]
    stored = set(rows.loc[~rows["null"].isin([OBSERVED, SAME_K]), "geometry"]) or {"raw", "all_but_top_3"}
    names = [each.name for each in GEOMETRIES if each.name in set(rows["geometry"]) & stored]
    figure = go.Figure(layout=build_layout("", height=170 + 46 * len(nulls)))
    contents = {}
    for group in list_groups(rows):
        own = select_head(rows, group)
        for statistic in statistics:
            contents[f"{name_group(group)}: {statistic}"] = [
                _build_nulls(own[own["geometry"] == name], nulls, statistic, shift(place, len(names)))
                for place, name in enumerate(names)
            ]
    for name in names:
        color, symbol = LOOKS[name]
        hover = f"{name}: %{{customdata}}<extra></extra>"
        trace = go.Scatter(mode="markers", name=name, hovertemplate=hover)
        figure.add_trace(trace.update(marker={"size": 9, "color": color, "symbol": symbol}))
    if is_empty(contents):
        return Markdown(_say_missing("a coefficient for its nucleus"))
    fill_traces(figure, contents)
    ticks = {"tickvals": list(range(len(nulls))), "ticktext": [NULL_TITLES[name] for name in nulls]}
    figure.update_yaxes(autorange="reversed", automargin=True, zeroline=False, **ticks)
    figure.update_xaxes(title="correlation between entropy and cosine similarity", **ZERO)
    put_legend_above(figure)
    text = "Coefficients of the measurements and of null models with their intervals"
    return describe(figure, ", ".join([text, *rows["candidates"].unique()]), csv)


def _select_nuclei(table: pd.DataFrame, usual: float) -> pd.DataFrame:
    """The rows of each run and mean over runs that are about its `choose_nucleus`."""
    parts = [table[:0]]
    for head in list_heads(table):
        own = select_head(table, head)
        parts.append(own[own["candidates"] == choose_nucleus(head, set(own["candidates"]), usual)])
    return pd.concat(parts)


def shift(place: int, count: int) -> float:
    """Where a geometry's points are beside the middle of their line."""
    return 0.18 * (place - (count - 1) / 2)


def _build_nulls(rows: pd.DataFrame, nulls: Iterable[str], statistic: str, shift: float) -> dict:
    places = {name: place for place, name in enumerate(nulls)}
    rows = rows[rows[f"{statistic} r"].notna()]
    others = [round(places[name] + shift, 2) for name in rows["null"]]
    return build_points(rows, others, "x", f"{statistic} r", f"{statistic} ")


def _say_missing(what: str) -> str:
    return f"There is no figure here, because no run has {what}: raise `n_prompts` or `max_tokens`."


def put_legend_above(figure: go.Figure) -> None:
    """Shows the legend above the plot, at the right."""
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"}
    figure.update_layout(legend=legend, margin={"t": 70}, showlegend=True)


def plot_ladder(explained: pd.DataFrame, csv: str = "") -> go.Figure | Markdown:
    """The share of the variance of cosine similarity that each set of predictors explains on prompts it has not seen.

    A colour is a geometry, and a menu selects the run.
    """
    rows = explained[explained["R2"].notna()]
    ladder = list(LADDER)
    names = [each.name for each in GEOMETRIES if each.name in set(rows["geometry"])]
    figure = go.Figure(layout=build_layout("", height=180 + 46 * len(ladder)))
    contents = {}
    for group in list_groups(rows):
        own, content = select_head(rows, group), []
        for place, name in enumerate(names):
            part = own[own["geometry"] == name]
            others = [round(ladder.index(each) + shift(place, len(names)), 2) for each in part["predictors"]]
            content.append(build_points(part, others, "x", "R2", "R2 "))
        contents[name_group(group)] = content
    for name in names:
        color, symbol = LOOKS[name]
        trace = go.Scatter(mode="markers", name=name, hovertemplate=f"{name}: %{{customdata}}<extra></extra>")
        figure.add_trace(trace.update(marker={"size": 9, "color": color, "symbol": symbol}))
    if is_empty(contents):
        why = f"the {LEAST} tokens with more than one candidate, of several prompts, that predicting takes"
        return Markdown(_say_missing(why))
    fill_traces(figure, contents)
    ticks = {"tickvals": list(range(len(ladder))), "ticktext": ladder}
    figure.update_yaxes(autorange="reversed", automargin=True, zeroline=False, **ticks)
    figure.update_xaxes(
        title="explained share of the variance of held-out cosine similarity", rangemode="tozero", **ZERO
    )
    put_legend_above(figure)
    return describe(figure, "Explained variance of cosine similarity on held-out prompts, by predictors", csv)


def plot_specifications(specifications: pd.DataFrame, csv: str = "") -> go.Figure | Markdown:
    """The specification curve: coefficients with their intervals, sorted, and below each the choices it is made of.

    A colour is the sign of an interval; small dots are what exchanging sets of equal k leaves. Pointing at a
    coefficient names its choices. A menu selects the run.
    """
    rows = specifications[specifications["r"].notna()]
    orders = [
        [name for name in SETS_BY_NAME if name in set(rows["candidates"])],
        [each.name for each in GEOMETRIES if each.name in set(rows["geometry"])],
        [name for name in STATISTICS if name in set(rows["statistic"])],
    ]
    labels = list(chain.from_iterable(orders))
    figure = make_subplots(2, 1, shared_xaxes=True, row_heights=[0.42, 0.58], vertical_spacing=0.02)
    figure.update_layout(build_layout("", height=420 + 17 * len(labels)))
    contents = {name_group(group): _build_curve(select_head(rows, group), orders) for group in list_groups(rows)}
    exchanged = go.Scattergl(
        mode="markers", marker={"size": 3, "color": FAINT}, hoverinfo="skip", name="equal k exchanged"
    )
    figure.add_trace(exchanged, row=1, col=1)
    hover = "%{text}<br>%{customdata}<extra></extra>"
    for sign, (color, symbol) in SIGNS.items():
        marker = {"size": 5, "color": color, "symbol": symbol}
        trace = go.Scatter(mode="markers", name=sign, marker=marker, hovertemplate=hover)
        figure.add_trace(trace.update(error_y={"width": 0, "thickness": 1}), row=1, col=1)
    dots = go.Scattergl(
        mode="markers", marker={"size": 3, "color": GREY}, hoverinfo="skip", showlegend=False, name="choice"
    )
    figure.add_trace(dots, row=2, col=1)
    if is_empty(contents):
        return Markdown(_say_missing("a coefficient for any candidate set"))
    fill_traces(figure, contents)
    figure.update_traces(error_y_thickness=1, selector={"type": "scatter"})
    figure.update_yaxes(title="coefficient", row=1, col=1, **ZERO)
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "tickfont": {"size": 10}, "showgrid": False}
    figure.update_yaxes(autorange="reversed", automargin=True, zeroline=False, row=2, col=1, **ticks)
    figure.update_xaxes(showticklabels=False, zeroline=False)
    figure.update_xaxes(title="specifications, sorted by their coefficient", row=2, col=1)
    put_legend_above(figure)
    return describe(figure, "All coefficients with their intervals, sorted, and the choices that each is made of", csv)


def _build_curve(rows: pd.DataFrame, orders: Sequence[Sequence[str]]) -> list[dict]:
    """The contents of the traces of `plot_specifications` for one run."""
    rows = rows.sort_values("r", kind="stable")
    rows = rows.assign(rank=np.arange(len(rows)))
    null = {"x": rows["rank"].tolist(), "y": round_values(rows[SAME_K])}
    parts = [null]
    for sign in SIGNS:
        own = rows[(rows["sign"] == sign) | ((rows["sign"] == "") & (sign == UNDECIDED))]
        texts = own[CHOICES].agg(", ".join, axis=1).tolist() if len(own) else []
        parts.append(build_points(own, own["rank"].tolist(), "y") | {"text": texts})
    starts = np.cumsum([0, *map(len, orders)])
    places = [
        rows[choice].map({name: int(start) + place for place, name in enumerate(order)})
        for choice, order, start in zip(CHOICES, orders, starts, strict=False)
    ]
    parts.append({"x": rows["rank"].tolist() * len(places), "y": [int(value) for each in places for value in each]})
    return parts
