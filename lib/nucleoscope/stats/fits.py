"""Fits curves of cosine over entropy to a table of tokens, and reports how much they explain.

Contract: tables as returned by `results.load_table`; no files, no figures. Tokens with k = 1 are
left out. Curves (`curves`) are fitted to the medians of bins, of equal width as in the study and with equally many
tokens, weighted by the inverse of the medians' variances; empty bins are left out. Intervals come from resampled
prompts: same bins, same fit (`curve_statistics`).
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from nucleoscope.stats import bootstrap, curves, parallel, random_effects
from nucleoscope.stats.curve_statistics import (
    FOLDS,
    Sample,
    compute_explainable,
    compute_token_variances,
    find_shortage,
)
from nucleoscope.stats.random_effects import RANDOM
from nucleoscope.store.results import count_tokens, select, select_choices
from nucleoscope.store.run_names import order_run
from nucleoscope.store.run_settings import (
    Head,
    find_heads,
    group_comparable,
    list_heads,
    list_run_columns,
    list_varied,
    merge_heads,
)
from nucleoscope.wording import count

POOLED = "(all)"  # replaces the model or data set in the rows of a pool; not a valid name of either
PARAMETERS = ("a", "b", "c")
ENDS = ("", " low", " high")  # of a column and the bounds of its interval
BINS = (bootstrap.WIDTH, bootstrap.TOKENS)  # what bins have in common
NEED = 160  # maximum bytes per token in `fit`, without the counts of the resamples
Tables = Mapping[tuple[str, str], pd.DataFrame]


def fit_all(
    tables: Tables,
    x: str = "entropy",
    y: str = "cosine",
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    jobs: int | None = 1,
) -> pd.DataFrame:
    """Every curve on every run and pool of runs, with both kinds of bins, from {(model, dataset): tokens}.

    See `fit` for the columns; ``Model``, ``Dataset`` and the settings that differ come first. A pool contains the runs
    of one model or of one data set, with "(all)" for the other; a pool of a single run would equal that run and has
    no rows. If a setting has several values for one model on one data set, each value has pools of its own. Prompts of
    one data set are assumed to be the same for every model, number by number, so a resample draws a prompt with all
    its continuations. Rows with the model "(random effects)" follow for data sets with several models: the parameters'
    means over models, with intervals that cover how much models differ (`random_effects`), of curves that at least two
    models accept.

    The 15 runs of the study and their 8 pools take about 20 s on two cores (``jobs`` are processes;
    None means one per core): the medians of a resample cost one running sum and one search
    (`bootstrap.Bins`), and curves are fitted to all resamples at once (`curves.fit_each`).
    From `results.StoredTables`, each process reads the runs of one pool at a time.
    """
    groups = _list_groups(tables)
    parts = [select(tables, keys, {"prompt", "k", x, y}) for _, keys in groups]
    sizes = list(map(count_tokens, parts))
    order = sorted(range(len(parts)), key=lambda i: -sizes[i])  # long ones first, to keep the cores busy
    work = partial(_fit_group, x=x, y=y, resamples=resamples, seed=seed)
    done = parallel.map_parallel(work, [parts[i] for i in order], jobs, NEED * max(sizes, default=0))
    parts = [part for _, part in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    for (head, _), part in zip(groups, parts, strict=True):
        for place, (name, value) in enumerate(head.items()):
            part.insert(place, name, value)
    if not parts:
        return pd.DataFrame(columns=["Model", "Dataset", "Bins", "Curve"])
    frame = pd.concat(parts, ignore_index=True)
    return pd.concat([frame, *_combine_models(frame)], ignore_index=True)


def compute_lines(tables: Tables, x: str = "entropy", y: str = "cosine", points: int = 80) -> pd.DataFrame:
    """The fitted curves of `fit_all` as points to draw: Model, Dataset, settings, Bins, Curve, x, y, tokens, weight.

    The medians they are fitted to come first, as a curve of that name, with their tokens and their share of the weight.
    """
    parts = []
    for label, group in _list_groups(tables):
        *columns, _ = _collect_sample(select(tables, group, {"prompt", "k", x, y}), x, y)
        for equal in BINS:
            if find_shortage(*columns, equal):
                continue
            bins = bootstrap.Bins(*columns, equal=equal)
            used = bins.count > 0
            weight = bins.count[used] / compute_token_variances(bins)[used]
            center, median, count = bins.centers[used], bins.compute_medians()[used], bins.count[used]
            at, head = np.linspace(center[0], center[-1], points), label | {"Bins": equal}
            medians = {"Curve": "medians", "x": center, "y": median, "tokens": count, "weight": weight / weight.sum()}
            parts.append(pd.DataFrame({**head, **medians}))
            for kind in curves.FORMULAS:
                curve = curves.fit(kind, center, median, weight)
                parts.append(pd.DataFrame({**head, "Curve": kind, "x": at, "y": curve(at), "tokens": np.nan}))
    names = ["Bins", "Curve", "x", "y", "tokens", "weight"]
    if not parts:
        return pd.DataFrame(columns=["Model", "Dataset", *names])
    frame = pd.concat(parts, ignore_index=True)
    return frame[[*list_run_columns(frame), *names]]


def _combine_models(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of random effects: one per data set, kind of bins and curve for which two models have a number."""
    rows, runs = [], frame[(frame["Model"] != POOLED) & (frame["Dataset"] != POOLED)]
    varied = list_varied(list_heads(runs))
    for (_, *_, equal, curve), part in runs.groupby(["Dataset", *varied, "Bins", "Curve"], sort=False, dropna=False):
        row = merge_heads(list_heads(part), Model=RANDOM) | {"Bins": equal, "Curve": curve, **_build_blank()}
        row |= {"formula": part["formula"].iloc[0], "tokens": part["tokens"].sum(), "prompts": part["prompts"].max()}
        # A model whose curve could be any of many would count by the parameters that happen to be known.
        open_ended = np.isinf(part[[f"{name}{end}" for name in (*PARAMETERS, "peak") for end in ENDS]]).any(axis=1)
        for name in (*PARAMETERS, "peak"):
            row |= _combine(name, part[~open_ended])
        unbounded = part["rise"].notna() & part["rise low"].isna()  # without those that do not rise, the mean would
        row |= {} if unbounded.any() else _combine("rise", part, FOLDS - 1)
        notes = []
        if open_ended.any():
            notes.append(f"without {count(open_ended.sum(), 'model')} whose parameters are not determined")
        if unbounded.any():
            notes.append(f"no mean rise: in {count(unbounded.sum(), 'model')} nothing rises")
        row |= {"note": "; ".join(notes)}
        if np.isfinite([row[name] for name in (*PARAMETERS, "peak", "rise")]).any():
            rows.append(row)
    return [pd.DataFrame(rows)[[*frame.columns]].astype(frame.dtypes)] if rows else []


def _combine(name: str, part: pd.DataFrame, degrees: float = np.inf) -> dict[str, float]:
    """The mean over models of one column, with its bounds; ``degrees`` of freedom of the models' intervals."""
    errors = random_effects.compute_errors(part[f"{name} low"], part[f"{name} high"], degrees)
    found = random_effects.combine(part[name], errors)
    return dict(zip((f"{name}{end}" for end in ENDS), (found.mean, found.low, found.high), strict=True))


def _fit_group(runs: Tables, x: str, y: str, resamples: int, seed: int) -> pd.DataFrame:
    return fit(*_collect_sample(runs, x, y), resamples=resamples, seed=seed)


def _list_groups(tables: Tables) -> list[tuple[Head, list[tuple[str, str]]]]:
    """The runs, then the pools of several runs of one model, then of one data set: the head of each, and its runs.

    A pool has runs with equal values of every setting that varies for one model on one data set.
    """
    found = find_heads(tables)
    heads = {key: found[key] for key in sorted(found, key=order_run)}
    groups = [(head, [key]) for key, head in heads.items()]
    for name in (POOLED, RANDOM):
        if any(name in (head["Model"], head["Dataset"]) for head in heads.values()):
            raise ValueError(
                f"a model or data set is named '{name}', which is reserved for results of several together: rename its "
                "folder"
            )
    comparable = group_comparable(heads)
    for place, other in (("Model", "Dataset"), ("Dataset", "Model")):
        for name in sorted({head[place] for head in heads.values()}):
            for keys in comparable:
                runs = [key for key in keys if heads[key][place] == name]
                if len(runs) > 1:
                    groups.append((merge_heads([heads[key] for key in runs], **{other: POOLED}), runs))
    return groups


def _collect_sample(runs: Tables, x: str, y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """x, y and the prompt's number for each token of some runs, and a note on tokens without x or y."""
    number = {dataset: place for place, dataset in enumerate(dict.fromkeys(dataset for _, dataset in runs))}
    parts, lost, has = [], 0, {x: False, y: False}
    for key in runs:  # one table at a time
        frame = select_choices(runs[key][["k", "prompt", x, y]])
        finite = np.isfinite(frame[[x, y]])
        has = {name: has[name] or bool(finite[name].any()) for name in has}
        kept = frame[finite.all(axis=1)]
        lost += len(frame) - len(kept)
        of = np.full(len(kept), number[key[1]])
        parts.append((kept[x].to_numpy(float), kept[y].to_numpy(float), kept["prompt"].to_numpy(np.int64), of))
    xs, ys, prompts, datasets = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    note = f"{count(lost, 'token')} left out: {x} or {y} is not finite" if lost else ""
    for name in (x, y):
        if len(xs) + lost and not has[name]:
            note = f"no {name} in the measurements"
    prompt, _ = pd.factorize(prompts * len(number) + datasets)
    return xs, ys, prompt, note


def fit(
    x: np.ndarray,
    y: np.ndarray,
    prompt: np.ndarray,
    note: str = "",
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Fits every curve to one sample of tokens: x, y, prompt (n,) -> one row per kind of bins and curve.

    Columns, besides the counts:

    * a, b, c: the parameters of the formula (`curves.FORMULAS`), and peak, where the curve is
      highest, each with the bounds of its 95% interval (low, high); before peak, the share of the
      tokens left of it; of the free curve, rise: how much it rises before the peak, on prompts that it was not
      fitted to (`Sample.compute_rise`);
    * R2 (medians): the explained share of the medians' variance, weighted like the fit; delta AICc: AICc of the
      fit, for Gaussian errors, minus that of the best curve (Hurvich and Tsai 1989);
    * held-out error: mean |y - f(x)| over tokens of prompts that the curve was not fitted to, in ten
      folds; the median minimises the absolute error;
    * alpha, beta: y = alpha + beta f(x) by least squares over tokens, with 95% intervals from
      standard errors clustered by prompt, treating the curve as given; R2 and RMSE of that;
      of free: that R2 divided by the free curve's; of spline: that R2 divided by that of a cubic spline
      fitted to the tokens themselves, which is about what any smooth function of x can explain;
    * note: ``note``, and why something is missing. A curve that is no better than a constant is
      refused: it has no parameters and no peak. It must have the smaller AICc (the free curve, whose
      levels all count as parameters, need not), and its error on held-out prompts must be smaller by
      more than two standard errors, clustered by prompt.

    AICc assumes independent medians with the variances that the weights imply. Bins share prompts, so it ranks curves
    only roughly, and only curves on the same bins: if it and the held-out error disagree, trust the latter. The free
    curve is not an upper limit: it cannot rise again. The interval of its peak is a rough guide, because the position
    of a maximum is not a smooth statistic.
    """
    parts = [_fit_bins(x, y, prompt, note, resamples, seed, equal) for equal in BINS]
    return pd.concat(parts, ignore_index=True)


def _fit_bins(
    x: np.ndarray, y: np.ndarray, prompt: np.ndarray, note: str, resamples: int, seed: int, equal: str
) -> pd.DataFrame:
    head = {"tokens": len(x), "prompts": len(np.unique(prompt))}
    why = find_shortage(x, y, prompt, equal)
    if why:
        rows, smooth = [{"Curve": kind, "note": why} for kind in curves.FORMULAS], np.nan
    else:
        sample, smooth = Sample(x, y, prompt, resamples, seed, equal), compute_explainable(x, y)
        rows = [sample.compute_row(kind) for kind in curves.FORMULAS]
    frame = pd.DataFrame([{"Bins": equal, "Curve": row["Curve"], **head, **_build_blank(), **row} for row in rows])
    if note:
        frame["note"] = [
            note if note.startswith("no ") else "; ".join(filter(None, [note, row])) for row in frame["note"]
        ]
    return _compare(frame, smooth)


def _build_blank() -> dict[str, object]:
    """The columns of a row in their order, empty."""
    bounded = [f"{name}{part}" for name in (*PARAMETERS, "peak", "rise") for part in ("", " low", " high")]
    linear = [f"{name}{part}" for name in ("alpha", "beta") for part in ("", " low", " high")]
    tokens = ["R2 (tokens)", "RMSE (tokens)", "of free", "of spline"]
    return {
        "bins": 0,
        "formula": "",
        **dict.fromkeys(
            [*bounded, "before peak", "R2 (medians)", "delta AICc", "held-out error", *linear, *tokens], np.nan
        ),
        "note": "",
    }


def _compare(frame: pd.DataFrame, smooth: float) -> pd.DataFrame:
    """Divides R2 by that of the free curve and of a spline, and subtracts the smallest AICc."""
    free = frame.set_index("Curve")["R2 (tokens)"]["free"]
    for name, reference in (("of free", free), ("of spline", smooth)):
        frame[name] = frame["R2 (tokens)"] / (reference if reference > 0 else np.nan)
    # An exact fit has an AICc of minus infinity: 0 for it, infinity for the others.
    least = frame["delta AICc"].min()
    frame["delta AICc"] = np.where(frame["delta AICc"] == least, 0.0, frame["delta AICc"] - least)
    return frame
