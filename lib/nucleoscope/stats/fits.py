"""Fits curves of cosine over entropy to a table of tokens, and reports how much they explain.

Contract: tables as returned by `results.load_table`; no files, no figures. Tokens with k = 1 are
left out. Curves (`curves`) are fitted to the medians of 50 equal-width bins, weighted by their tokens;
empty bins are left out. Intervals come from resampled prompts: same bins, same fit (`sample`).
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from nucleoscope.stats import bootstrap, curves
from nucleoscope.stats.curve_statistics import Sample, compute_explainable, find_shortage
from nucleoscope.store.results import count_tokens, select, select_choices

POOLED = "(all)"  # replaces the model or data set in the rows of a pool; not a valid name of either
PARAMETERS = ("a", "b", "c", "s", "m")
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
    """Every curve on every run and pool of runs: one row each, from {(model, dataset): tokens}.

    See `fit` for the columns; ``Model`` and ``Dataset`` come first. A pool contains the runs of one
    model or of one data set, with "(all)" for the other; a pool of a single run would equal that run and has
    no rows. Prompts of one data set are assumed to be the same for every model, number by number, so a
    resample draws a prompt with all its continuations.

    The 15 runs of the study and their 8 pools take about 35 s on two cores (``jobs`` are processes;
    None means one per core): the medians of a resample cost one running sum and one search
    (`bootstrap.Bins`), and a fit that starts from the fit to the data takes a fraction of a millisecond.
    From `results.StoredTables`, each process reads the runs of one pool at a time.
    """
    groups = _list_groups(tables)
    parts = [select(tables, keys, {"prompt", "k", x, y}) for keys in groups.values()]
    sizes = list(map(count_tokens, parts))
    order = sorted(range(len(parts)), key=lambda i: -sizes[i])  # long ones first, to keep the cores busy
    work = partial(_fit_group, x=x, y=y, resamples=resamples, seed=seed)
    done = bootstrap.map_parallel(work, [parts[i] for i in order], jobs, NEED * max(sizes, default=0))
    parts = [part for _, part in sorted(zip(order, done, strict=True), key=lambda pair: pair[0])]
    for (model, dataset), part in zip(groups, parts, strict=True):
        part.insert(0, "Model", model)
        part.insert(1, "Dataset", dataset)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["Model", "Dataset", "Curve"])


def compute_lines(tables: Tables, x: str = "entropy", y: str = "cosine", points: int = 80) -> pd.DataFrame:
    """The fitted curves of `fit_all` as points to draw: Model, Dataset, Curve, x, y, tokens.

    The medians they are fitted to come first, as a curve of that name, with their tokens.
    """
    parts = []
    for (model, dataset), group in _list_groups(tables).items():
        *columns, _ = _collect_sample(select(tables, group, {"prompt", "k", x, y}), x, y)
        if find_shortage(*columns):
            continue
        bins = bootstrap.Bins(*columns)
        used = bins.count > 0
        center, median, count = bins.centers[used], bins.compute_medians()[used], bins.count[used]
        at, head = np.linspace(center[0], center[-1], points), {"Model": model, "Dataset": dataset}
        parts.append(pd.DataFrame({**head, "Curve": "medians", "x": center, "y": median, "tokens": count}))
        for kind in curves.FORMULAS:
            curve = curves.fit(kind, center, median, count)
            parts.append(pd.DataFrame({**head, "Curve": kind, "x": at, "y": curve(at), "tokens": np.nan}))
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["Model", "Dataset", "Curve", "x", "y", "tokens"])
    )


def _fit_group(runs: Tables, x: str, y: str, resamples: int, seed: int) -> pd.DataFrame:
    return fit(*_collect_sample(runs, x, y), resamples=resamples, seed=seed)


def _list_groups(tables: Tables) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The runs, then the pools of several runs of one model, then of one data set; each with its runs' names."""
    groups = {key: [key] for key in sorted(tables)}
    if any(POOLED in key for key in groups):
        raise ValueError(f"a model or data set is named '{POOLED}', which is reserved for pools: rename its folder")
    for place in (0, 1):
        for name in sorted({key[place] for key in tables}):
            runs = [key for key in sorted(tables) if key[place] == name]
            if len(runs) > 1:
                groups[(name, POOLED) if place == 0 else (POOLED, name)] = runs
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
    note = f"{lost} tokens left out: {x} or {y} is not finite" if lost else ""
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
    """Fits every curve to one sample of tokens: x, y, prompt (n,) -> one row per curve.

    Columns, besides the counts:

    * a, b, c, s, m: the parameters of the formula (`curves.FORMULAS`), and peak, where the curve is
      highest, each with the bounds of its 95 % interval (low, high); before peak, the share of the
      tokens left of it;
    * R2 (medians): the explained share of the medians' variance, weighted like the fit; delta AICc: AICc of the
      fit, for Gaussian errors, minus that of the best curve (Hurvich and Tsai 1989);
    * held-out error: mean |y - f(x)| over tokens of prompts that the curve was not fitted to, in ten
      folds; the median minimises the absolute error;
    * alpha, beta: y = alpha + beta f(x) by least squares over tokens, with 95 % intervals from
      standard errors clustered by prompt, treating the curve as given; R2 and RMSE of that;
      of free: that R2 divided by the free curve's; of spline: that R2 divided by that of a cubic spline
      fitted to the tokens themselves, which is about what any smooth function of x can explain;
    * note: ``note``, and why something is missing. A curve that is no better than a constant is
      refused: it has no parameters and no peak. It must have the smaller AICc (the free curve, whose
      levels all count as parameters, need not), and its error on held-out prompts must be smaller by
      more than two standard errors, clustered by prompt.

    AICc assumes independent medians with variances proportional to 1 / n. Bins share prompts,
    and cosines scatter more if entropy is small, so it ranks curves only roughly: if it and the
    held-out error disagree, trust the latter. The free curve is not an upper limit: it cannot rise again. The
    interval of its peak is a rough guide, because the position of a maximum is not a smooth statistic.
    """
    head = {"tokens": len(x), "prompts": len(np.unique(prompt))}
    why = find_shortage(x, y, prompt)
    if why:
        rows, smooth = [{"Curve": kind, "note": why} for kind in curves.FORMULAS], np.nan
    else:
        sample, smooth = Sample(x, y, prompt, resamples, seed), compute_explainable(x, y)
        rows = [sample.compute_row(kind) for kind in curves.FORMULAS]
    frame = pd.DataFrame([{"Curve": row["Curve"], **head, **_build_blank(), **row} for row in rows])
    if note:
        frame["note"] = [
            note if note.startswith("no ") else "; ".join(filter(None, [note, row])) for row in frame["note"]
        ]
    return _compare(frame, smooth)


def _build_blank() -> dict[str, object]:
    """The columns of a row in their order, empty."""
    bounded = [f"{name}{part}" for name in (*PARAMETERS, "peak") for part in ("", " low", " high")]
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
