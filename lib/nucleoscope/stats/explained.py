"""How much of the variance of cosine similarity entropy explains beside k and the candidates' kind.

Contract: a run's measurements, tokens.parquet, variants.parquet and vocabulary.parquet in, tables out; no figures.

Cosine similarity is predicted for prompts that the predictor has not seen (scikit-learn's GroupKFold), from the
`LADDER` of predictors. If entropy adds nothing to k and to what the candidates are, its correlation with cosine
similarity comes from them. The regressor is ridge regression on cubic splines of every predictor, and, beside k, on
the predictors' products with log k, because what a predictor means depends on how many candidates there are. Its one
parameter is chosen by leave-one-out on the prompts it learns from (scikit-learn's RidgeCV), for each set of predictors.
So the same curves are available to all of them, and useless predictors cost little: boosted trees, which were tried,
lose up to half of R2 to them in runs of a thousand tokens.

R2 is 1 - sum (y - f(x))^2 / sum (y - mean)^2 over held-out tokens, where the mean is that of the tokens that the
predictor has seen; below 0 it is worse than that mean. Intervals come from resampling prompts of the held-out
residuals; the predictors are not fitted again, so the intervals do not contain what another fit would change. That is
why a gain counts only from `NOTICEABLE` on: entropy is nearly a function of k, and ridge regression gains a little from
having the same predictor twice.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nucleoscope.stats import bootstrap, candidate_tables, parallel
from nucleoscope.stats.candidate_tables import Runs
from nucleoscope.stats.specification import NEGATIVE, POSITIVE, classify
from nucleoscope.store import results, vocabulary
from nucleoscope.store.run_names import order_run
from nucleoscope.store.run_settings import build_frame, find_heads
from nucleoscope.wording import MEASURE_AGAIN, count

CLASSES = ("word_start", "word_piece", "digit", "punctuation", "whitespace", "capitalised", "other_script", "special")
KIND = (*CLASSES, "log frequency", "norm")  # of the candidates: shares of their classes, and means
LADDER = {  # name: (columns, the name of what it adds entropy to)
    "entropy": (("entropy",), ""),
    "k": (("log k",), ""),
    "k + entropy": (("log k", "entropy"), "k"),
    "k + kind": (("log k", *KIND), ""),
    "k + kind + entropy": (("log k", *KIND, "entropy"), "k + kind"),
}
GEOMETRIES = ("raw", "all_but_top_3")
FOLDS = 5
MOST = 20_000  # tokens of a run that are used, as whole prompts: more would take minutes and change no second digit
LEAST = 200  # tokens
NOTICEABLE = 0.01  # of R2: in synthetic runs of 1,500 tokens, entropy added up to 0.007 that was only another k
KNOTS = 6  # of each spline, at equal distances
PENALTIES = tuple(10.0**power for power in range(-4, 5))  # that ridge regression chooses from


def compute_explained(
    runs: Runs, resamples: int = bootstrap.RESAMPLES, seed: int = 0, jobs: int | None = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ladder, and the covariance by pairs of classes, from {(model, dataset): folder}.

    The first table has a row per run, geometry and predictor of the `LADDER`: Model, Dataset, geometry, predictors,
    tokens, prompts, R2 with its 95% interval; added (what entropy adds to the R2 of the same predictors without it)
    with its interval; interval (its kind), and note. Settings that differ between the runs are after Dataset, in all
    tables. The candidate set is that of the run's own top_p. The second
    is described in `split_covariance`.
    """
    items = sorted(runs.items(), key=lambda item: order_run(item[0]))
    done = parallel.map_parallel(partial(_compute_item, resamples=resamples, seed=seed), items, jobs)
    heads = find_heads(runs)
    ladders = [heads[key] | row for (key, _), (rows, _) in zip(items, done, strict=True) for row in rows]
    shares = [heads[key] | row for (key, _), (_, rows) in zip(items, done, strict=True) for row in rows]
    return build_frame(ladders, list_columns()), build_frame(shares, list_share_columns())


def list_columns() -> list[str]:
    """The columns of the ladder."""
    numbers = [f"{name}{part}" for name in ("R2", "added") for part in ("", " low", " high")]
    return ["Model", "Dataset", "geometry", "predictors", "tokens", "prompts", *numbers, "interval", "note"]


def list_share_columns() -> list[str]:
    """The columns of `split_covariance`, for several runs."""
    numbers = ["tokens", "share of tokens", "mean entropy", "mean cosine", "share of covariance"]
    return ["Model", "Dataset", "classes", *numbers]


def _compute_item(
    item: tuple[tuple[str, str], Path], resamples: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    (model, dataset), folder = item
    try:
        table, pairs = collect_features(folder, model, dataset)
    except (OSError, ValueError) as error:
        note = {"predictors": next(iter(LADDER)), "note": str(error)}
        return [{"geometry": GEOMETRIES[0], "interval": ""} | note], []
    cosines = {name: table[name].to_numpy(np.float64) for name in GEOMETRIES if name in table}
    rows = [
        {"geometry": name} | row
        for name, found in climb_ladders(table, cosines, resamples, seed).items()
        for row in found
    ]
    clear = classify(*_bound_pearson(table, resamples, seed)) in (NEGATIVE, POSITIVE)
    return rows, split_covariance(table["entropy"], table["raw"], pairs, clear)


def _bound_pearson(table: pd.DataFrame, resamples: int, seed: int) -> tuple[float, float]:
    """The interval of Pearson's coefficient of entropy and raw cosine, as in `correlation.compute_coefficients`.

    That would compute all its other coefficients too, which takes ten times as long.
    """
    prompt, labels = pd.factorize(table["prompt"])
    values = table[["entropy", "raw"]].to_numpy(np.float64)
    if len(values) < 3 or len(labels) < 2 or any(map(bootstrap.is_constant, values.T)):
        return np.nan, np.nan
    kind, counts = bootstrap.create_counts(len(labels), resamples, seed)
    return bootstrap.bound(bootstrap.compute_pearson(values, prompt, counts)[:, 0, 1], kind)


def collect_features(folder: Path, model: str, dataset: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The tokens of a run with a pair: prompt, entropy, log k, the candidates' `KIND`, cosine in each of `GEOMETRIES`.

    Also an array (n, 2) of class numbers, of the two likeliest candidates. Candidates are read a prompt at a time. A
    class share is the share of the candidates of that class; log frequency is the mean of log10 of their mean
    probability over the run; norm is that of their rows in the input embedding. ValueError, in one line, for a file
    that is missing or belongs to other measurements.
    """
    words = vocabulary.load(folder).set_index("id").sort_index()
    size = int(words.index.max()) + 1 if len(words) else 0
    number = np.full(size, -1)
    number[words.index] = pd.Categorical(words["class"].astype(str), CLASSES).codes
    frequency, norm = np.full(size, np.nan), np.full(size, np.nan)
    probability = words["mean_probability"].to_numpy(np.float64)
    least = probability[probability > 0].min(initial=1.0)
    frequency[words.index] = np.log10(np.maximum(probability, least))  # 0 in float32 is below the least number
    norm[words.index] = words["norm"].to_numpy(np.float64)
    table = results.load_run(
        results.find_measurements(folder), model, dataset, {"prompt", "step", "k", "entropy", "cosine"}
    )
    parts, pairs = [], []
    for sizes, ids in _iterate_candidates(folder):
        if len(ids) and (ids.max() >= size or (number[ids] < 0).any()):
            raise ValueError(f"'{folder}' has a candidate that {vocabulary.VOCABULARY} does not list: {MEASURE_AGAIN}")
        of, starts = np.repeat(np.arange(len(sizes)), sizes), np.cumsum(sizes) - sizes
        counts = np.bincount(of * len(CLASSES) + number[ids], minlength=len(sizes) * len(CLASSES))
        shares = counts.reshape(len(sizes), -1) / sizes[:, None]
        means = [np.bincount(of, column[ids], len(sizes)) / sizes for column in (frequency, norm)]
        parts.append(np.column_stack([shares, *means]))
        second = np.minimum(starts + 1, max(len(ids) - 1, 0))
        pairs.append(np.stack([number[ids[starts]], number[ids[second]]], axis=1))
    kind = np.concatenate(parts) if parts else np.empty((0, len(KIND)))
    if len(kind) != len(table):
        raise ValueError(
            f"'{folder}' has {count(len(table), 'token')}, but candidates for {len(kind):,}: {MEASURE_AGAIN}"
        )
    table = pd.concat([table, pd.DataFrame(kind, columns=list(KIND), index=table.index)], axis=1)
    table["log k"] = np.log(table["k"])
    table = table.rename(columns={"cosine": "raw"})
    kept = (table["k"] > 1) & np.isfinite(table[["entropy", "raw"]]).all(axis=1)
    both = np.concatenate(pairs)[kept.to_numpy()] if pairs else np.empty((0, 2), int)
    table = table[kept].reset_index(drop=True)
    other = candidate_tables.load_set(folder, candidate_tables.find_top_p(folder))
    if other is not None and GEOMETRIES[1] in other.geometries:
        cosine = other.cosines[:, other.geometries.index(GEOMETRIES[1])]
        wanted = pd.DataFrame({"prompt": other.prompt, "step": other.step, GEOMETRIES[1]: cosine})
        table = table.merge(wanted, on=["prompt", "step"], how="left")
    return table, both


def _iterate_candidates(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The sizes of the candidate sets of each prompt's tokens, and their ids, all sets' in a row."""
    for _, record in results.stream_arrays(folder, fields=("top_p_tokens",)):
        if steps := record["top_p_tokens"]:
            yield np.array(list(map(len, steps))), np.concatenate(steps).astype(np.int64)


def climb_ladders(
    table: pd.DataFrame, cosines: dict[str, np.ndarray], resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """A row for each predictor of the `LADDER`, from the columns of `collect_features`, for each of some cosines (n,).

    Those that the same tokens have are predicted at once, which takes as long as one.
    """
    groups: dict[bytes, list[str]] = {}
    for name, values in cosines.items():
        groups.setdefault(np.isfinite(values).tobytes(), []).append(name)
    found = {}
    for names in groups.values():
        columns = np.column_stack([cosines[name] for name in names])
        found |= dict(zip(names, _climb(table, columns, resamples, seed), strict=True))
    return {name: found[name] for name in cosines}


def _climb(table: pd.DataFrame, y: np.ndarray, resamples: int, seed: int) -> list[list[dict[str, Any]]]:
    """The rows of each column of y (n, g), in which the same tokens are finite."""
    table, y, note = _choose_tokens(table, y, seed)
    prompt, labels = pd.factorize(table["prompt"])
    base = {"tokens": len(y), "prompts": len(labels), "interval": "", "note": note}
    shortages = [_find_shortage(column, len(labels)) for column in y.T]
    if all(shortages):
        return [[base | {"predictors": name, "note": why} for name in LADDER] for why in shortages]
    errors = {name: _predict_held_out(table[list(columns)], y, prompt) for name, (columns, _) in LADDER.items()}
    kind, counts = bootstrap.create_counts(len(labels), resamples, seed)
    found = []
    for place, why in enumerate(shortages):
        if why:
            found.append([base | {"predictors": name, "note": why} for name in LADDER])
            continue
        own, means = y[:, place], next(iter(errors.values()))[1][:, place]
        residuals = {name: np.bincount(prompt, (own - part[:, place]) ** 2) for name, (part, _) in errors.items()}
        spread = np.bincount(prompt, (own - means) ** 2)
        explained = {name: 1 - counts @ sums / (counts @ spread) for name, sums in residuals.items()}
        rows = []
        for name, (_, without) in LADDER.items():
            row = base | {"predictors": name, "interval": kind} | _bound("R2", explained[name], kind)
            rows.append(row | (_bound("added", explained[name] - explained[without], kind) if without else {}))
        found.append(rows)
    return found


def _choose_tokens(table: pd.DataFrame, y: np.ndarray, seed: int) -> tuple[pd.DataFrame, np.ndarray, str]:
    """At most about `MOST` tokens, of whole prompts drawn at random, and a note if they are not all."""
    finite = np.isfinite(y[:, 0])
    table, y = table[finite].reset_index(drop=True), y[finite]
    if len(y) <= MOST:
        return table, y, ""
    codes, _ = pd.factorize(table["prompt"])
    sizes = np.bincount(codes)
    order = np.random.default_rng(seed).permutation(len(sizes))
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[np.cumsum(sizes[order]) <= MOST]] = True
    kept = chosen[codes] if chosen.sum() >= FOLDS else np.ones(len(y), dtype=bool)
    note = f"{kept.sum():,} of {len(y):,} tokens" if not kept.all() else ""
    return table[kept].reset_index(drop=True), y[kept], note


def _find_shortage(y: np.ndarray, prompts: int) -> str:
    if len(y) < LEAST:
        return f"fewer than {LEAST} tokens with k > 1"
    if prompts < FOLDS:
        return f"fewer than {FOLDS} prompts"
    return "cosine is constant" if bootstrap.is_constant(y) else ""


def _predict_held_out(columns: pd.DataFrame, y: np.ndarray, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (n, g) for each token from the prompts of other folds, and the means of these folds' tokens (n, g).

    The parameter of ridge regression is chosen for each of the columns of y (n, g).
    """
    from sklearn.linear_model import RidgeCV  # a second to import
    from sklearn.model_selection import GroupKFold

    predicted, mean = np.empty(y.shape), np.empty(y.shape)
    for seen, held_out in GroupKFold(FOLDS).split(columns, y, prompt):
        x = _expand(columns.iloc[seen], columns.iloc[held_out])
        mean[held_out] = predicted[held_out] = y[seen].mean(axis=0)
        if x[0].shape[1]:
            found = RidgeCV(PENALTIES, alpha_per_target=True).fit(x[0], y[seen]).predict(x[1])
            predicted[held_out] = found.reshape(mean[held_out].shape)  # of one column, it is a vector
    return predicted, mean


def _expand(seen: pd.DataFrame, held_out: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Splines of the predictors, with the knots and scale of the tokens seen, and the predictors times log k.

    A predictor that is constant among the tokens seen is left out. Beyond the values that were seen, all is as at the
    last of them. Predictors are scaled by their range, so that no feature exceeds 1. Scaled by the standard deviation,
    what only one or two tokens have would be as large for them as a common value is for thousands, and one such token
    among those held out, with another k, could outweigh all others.
    """
    from sklearn.preprocessing import MinMaxScaler, SplineTransformer

    seen = seen.loc[:, [not bootstrap.is_constant(seen[name].to_numpy()) for name in seen]]
    if not len(seen.columns):
        return np.empty((len(seen), 0)), np.empty((len(held_out), 0))
    scaler = MinMaxScaler(clip=True).fit(seen.to_numpy())
    inside = [scaler.transform(frame[seen.columns].to_numpy()) for frame in (seen, held_out)]
    splines = SplineTransformer(n_knots=KNOTS, extrapolation="constant", include_bias=False).fit(inside[0])
    features = [splines.transform(values) for values in inside]
    if "log k" in seen and len(seen.columns) > 1:
        sizes = [values[:, [seen.columns.get_loc("log k")]] for values in inside]
        middle = sizes[0].mean()
        features = [
            np.hstack([part, values * (size - middle)])
            for part, values, size in zip(features, inside, sizes, strict=True)
        ]
    return features[0], features[1]


def _bound(name: str, values: np.ndarray, kind: str) -> dict[str, float]:
    """A number, an R^2 or the difference of two, and its interval, from its values in the data and in resamples."""
    low, high = bootstrap.bound(values, kind, correlation=False)
    low, high = np.clip((low, high), None, 1) if name == "R2" else (low, high)  # a jackknife's margins know no range
    return {name: float(values[0]), f"{name} low": float(low), f"{name} high": float(high)}


def split_covariance(entropy: pd.Series, cosine: pd.Series, pairs: np.ndarray, clear: bool) -> list[dict[str, Any]]:
    """The covariance of entropy and cosine by the classes of the two likeliest candidates: pairs (n, 2) -> rows.

    A token belongs to the unordered pair of classes of its two likeliest candidates. The covariance is a mean over
    tokens of (entropy - mean) (cosine - mean), so the share of a pair of classes is the sum of these products over
    its tokens, divided by the sum over all; shares add up to 1, and one is negative if its tokens go against the
    whole. It says which tokens the covariance is made of. It does not split a token's cosine by the pairs of its
    candidates: that needs the embedding, which the files do not contain. Columns: classes, tokens, share of
    tokens, mean entropy, mean cosine, share of covariance; largest share of tokens first. ``clear``: whether the
    interval of Pearson's coefficient excludes 0; if not, shares would be quotients by almost 0, and are NaN.
    """
    x, y = entropy.to_numpy(np.float64), cosine.to_numpy(np.float64)
    if len(x) < 3 or bootstrap.is_constant(x) or bootstrap.is_constant(y):
        return []
    products = (x - x.mean()) * (y - y.mean())
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    frame = pd.DataFrame({"pair": low * len(CLASSES) + high, "x": x, "y": y, "product": products})
    found = frame.groupby("pair").agg(tokens=("x", "size"), x=("x", "mean"), y=("y", "mean"), sum=("product", "sum"))
    total = products.sum() if clear else np.nan
    rows = []
    for pair, row in found.sort_values(["tokens"], ascending=False, kind="stable").iterrows():
        first, second = divmod(int(pair), len(CLASSES))
        rows.append(
            {
                "classes": f"{CLASSES[first]}, {CLASSES[second]}",
                "tokens": int(row["tokens"]),
                "share of tokens": row["tokens"] / len(x),
                "mean entropy": row["x"],
                "mean cosine": row["y"],
                "share of covariance": row["sum"] / total,
            }
        )
    return rows
