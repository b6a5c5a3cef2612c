"""Null models: what the coefficients would be if the candidates did not matter, or not in some respect.

Contract: a run's variants.parquet and nulls.parquet in, a table of coefficients out; no figures. Every null model
has the same entropies and numbers of candidates k as the measurements, and other cosines:

* `SAME_K`: the cosines are exchanged among tokens of equal k. Nothing is left but what entropy and cosine share with k.
  The coefficient is the mean over all exchanges, which is exact (`replicates.compute_parts`).
* The others were measured with the model (nulls.parquet): other_step takes the k likeliest candidates of another
  step, random k tokens of the vocabulary, frequency_matched and norm_matched replace each candidate by a token of
  similar mean probability or norm, and gaussian_states has no text at all: its hidden states are drawn.

If a null model has the coefficient of the measurements, that coefficient does not show that a model which is unsure
chooses among other *kinds* of tokens: what the null model keeps is enough to produce it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.stats import candidate_tables, parallel, replicates
from nucleoscope.stats.candidate_tables import Runs
from nucleoscope.stats.replicates import Estimate
from nucleoscope.store import nulls, results
from nucleoscope.store.run_names import order_run
from nucleoscope.store.run_settings import Head, build_frame, find_heads, group_comparable, merge_heads
from nucleoscope.variants import SETS_BY_NAME

OBSERVED, SAME_K, GAUSSIAN = "observed", "same_k", "gaussian_states"
NULLS = (SAME_K, "other_step", "random", "frequency_matched", "norm_matched", GAUSSIAN)
STATISTICS = ("Pearson", "Spearman", "given k")
POOLED = "(all)"  # replaces model and data set in the rows of all runs
NEED = 900  # maximum bytes per token of a candidate set in `compute_run`
STORED = ["prompt", "step", "candidates", "geometry", "null", "draw", "k", "entropy", "cosine"]  # in nulls.parquet
KEY = ["Model", "Dataset", "candidates", "geometry", "null"]


class NullEstimates(NamedTuple):
    """One null model in one variant of one run: {statistic: estimate} of it, and of the measurements on its tokens."""

    candidates: str
    geometry: str
    null: str
    tokens: int
    draws: int
    found: dict[str, Estimate]
    observed: dict[str, Estimate]


def compute_null_statistics(runs: Runs, jobs: int | None = 1) -> pd.DataFrame:
    """The table of null models, from {(model, dataset): folder}: one row per run, variant and null model.

    Columns: Model, Dataset, runs (1, or how many are pooled), candidates, geometry, null, tokens, draws; then for each
    of `STATISTICS` its r with the bounds of its 95% interval (low, high), observed (the coefficient of the
    measurements on the same tokens), ratio (r divided by observed), and difference (observed minus r), with bounds.
    Rows with the null "observed" are the measurements on all tokens. Intervals are jackknife-t over prompts
    (`replicates`); what the two coefficients of a difference have in common cancels. With several runs, rows of the
    model and data set "(all)" are means over the runs: their intervals say nothing of another model or data set. If a
    setting has several values for one model on one data set, there is such a mean for each of its values.
    """
    items = sorted(runs.items(), key=lambda item: order_run(item[0]))
    done = parallel.map_parallel(_compute_item, items, jobs, estimate_need(runs))
    heads, by_key = find_heads(runs), {key: found for (key, _), found in zip(items, done, strict=True)}
    rows = [_build_row(heads[key], 1, each) for key, found in by_key.items() for each in found]
    for keys in group_comparable({key: heads[key] for key in by_key}):
        of: dict[tuple, list[NullEstimates]] = {}
        for each in (each for key in keys for each in by_key[key]):
            of.setdefault((each.candidates, each.geometry, each.null), []).append(each)
        for several in of.values() if len(keys) > 1 else ():
            head = merge_heads([heads[key] for key in keys], Model=POOLED, Dataset=POOLED)
            rows.append(_build_row(head, len(several), _pool(several)))
    return build_frame(rows, list_columns())


def list_columns() -> list[str]:
    """The columns of `compute_null_statistics`."""
    parts = ("r", "low", "high", "observed", "ratio", "difference", "difference low", "difference high")
    return [*KEY[:2], "runs", *KEY[2:], "tokens", "draws", *(f"{kind} {part}" for kind in STATISTICS for part in parts)]


def estimate_need(runs: Runs) -> int:
    """Bytes that the largest of the runs may take."""
    from pyarrow import parquet

    sizes = [parquet.read_metadata(folder / results.VARIANT_FILES[0]).num_rows for folder in runs.values()]
    return NEED * max(sizes, default=0) // len(SETS_BY_NAME)


def _compute_item(item: tuple[tuple[str, str], Path]) -> list[NullEstimates]:
    (model, dataset), folder = item
    return compute_run(folder, model, dataset)


def compute_run(folder: Path, model: str, dataset: str) -> list[NullEstimates]:
    """All null models of one run, in the order of its candidate sets; without nulls.parquet, only `SAME_K`."""
    try:
        stored = nulls.load(folder)
    except (OSError, ValueError):
        stored = pd.DataFrame(columns=STORED)
    names = [name for name, each in SETS_BY_NAME.items() if each.rule == "top_p"]
    names += [str(name) for name in stored["candidates"].unique() if name not in names]
    stored = stored[(stored["k"] > 1) & np.isfinite(stored[["entropy", "cosine"]].astype(float)).all(axis=1)]
    parts = dict(iter(stored.groupby(["candidates", "geometry", "null"], observed=True)))
    kind, found = ("prompts of", dataset), []
    for name in names:
        table = candidate_tables.load_set(folder, name)
        if table is not None and table.geometries:
            observed, exchanged = compute_coefficients(table.entropy, table.cosines, table.k, table.prompt, kind)
            found += _list_same_k(name, table, observed, exchanged)
            for geometry, own in zip(table.geometries, observed, strict=True):
                rows = {null: parts[name, geometry, null] for null in NULLS[1:] if (name, geometry, null) in parts}
                found += _compare_stored(name, geometry, rows, table, own, (kind, (model, dataset)))
    return found


def _list_same_k(
    candidates: str, table: candidate_tables.CandidateTable, observed: list[dict], exchanged: list[dict]
) -> list[NullEstimates]:
    """The measurements, and `SAME_K`, in each geometry."""
    n, parts = len(table.k), []
    for geometry, own, other in zip(table.geometries, observed, exchanged, strict=True):
        parts.append(NullEstimates(candidates, geometry, OBSERVED, n, 0, own, own))
        parts.append(NullEstimates(candidates, geometry, SAME_K, n, 0, other, own))
    return parts


def compute_coefficients(
    x: np.ndarray, y: np.ndarray, k: np.ndarray, prompt: np.ndarray, kind: tuple
) -> tuple[list[dict[str, Estimate]], list[dict[str, Estimate]]]:
    """For each column of y (n, v), its coefficients with x (n,), and those with its values exchanged within equal k.

    ``kind`` are the groups that the prompts (n,) belong to. Exchanged within k, the coefficient given k is 0.
    """
    group, values = replicates.number_groups(prompt), np.column_stack([x, y])
    stratum = replicates.join_rare(k)
    parts = {kind: replicates.compute_parts(values, group, stratum, kind == "Spearman") for kind in STATISTICS[:2]}
    within = replicates.compute_within_k(values, group, k)
    parts["given k"] = within, np.where(np.isinf(within) | np.isnan(within), within, 0)
    return tuple(
        [
            {name: replicates.create_estimate(both[side][:, place], kind) for name, both in parts.items()}
            for place in range(y.shape[1])
        ]
        for side in (0, 1)
    )


def _compare_stored(
    candidates: str,
    geometry: str,
    rows: dict[str, pd.DataFrame],
    table: candidate_tables.CandidateTable,
    observed: dict[str, Estimate],
    kinds: tuple,
) -> list[NullEstimates]:
    """The null models of nulls.parquet in one variant, from their rows and what was ``observed`` of all tokens."""
    found: dict[str, NullEstimates] = {}
    drawn = _compute_drawn(rows[GAUSSIAN], (GAUSSIAN, *kinds[1])) if GAUSSIAN in rows else {}
    if drawn:
        found[GAUSSIAN] = NullEstimates(candidates, geometry, GAUSSIAN, len(rows[GAUSSIAN]), 1, drawn, observed)
    # those that were measured on the same tokens are compared at once
    groups: dict[bytes, tuple[np.ndarray, dict[str, np.ndarray]]] = {}
    for null, part in rows.items():
        if null != GAUSSIAN:
            places, cosines = _align(part, table)
            groups.setdefault(places.tobytes(), (places, {}))[1][null] = cosines
    cosine = table.cosines[:, table.geometries.index(geometry)]
    for places, nulls_of in groups.values():
        if len(places) < replicates.FEWEST:
            continue
        values = np.column_stack([cosine[places], *nulls_of.values()])
        x, k, prompt = table.entropy[places], table.k[places], table.prompt[places]
        own, *estimates = compute_coefficients(x, values, k, prompt, kinds[0])[0]
        for null, cosines in nulls_of.items():
            draws, estimates = estimates[: cosines.shape[1]], estimates[cosines.shape[1] :]
            mean = {name: replicates.compute_mean([each[name] for each in draws]) for name in STATISTICS}
            found[null] = NullEstimates(candidates, geometry, null, len(places), len(draws), mean, own)
    return [found[null] for null in NULLS if null in found]


def _align(part: pd.DataFrame, table: candidate_tables.CandidateTable) -> tuple[np.ndarray, np.ndarray]:
    """The places (m,) in the table of tokens that have rows of all draws, and their cosines (m, draws)."""
    prompt, step, draw = (part[name].to_numpy(np.int64) for name in ("prompt", "step", "draw"))
    width = 1 + max(step.max(initial=0), table.step.max(initial=0))
    keys, wanted = table.prompt * width + table.step, prompt * width + step  # the table's tokens are in this order
    known = np.isin(wanted, keys)
    draws, column = np.unique(draw, return_inverse=True)
    cosines = np.full((len(keys), len(draws)), np.nan)
    place = np.searchsorted(keys, wanted[known])
    cosines[place, column[known]] = part["cosine"].to_numpy(np.float64)[known]
    places = np.flatnonzero(np.isfinite(cosines).all(axis=1))
    return places, cosines[places]


def _compute_drawn(part: pd.DataFrame, kind: tuple) -> dict[str, Estimate]:
    """The coefficients of hidden states that were drawn, which depend on no prompt: each is a unit of its own."""
    if len(part) < replicates.FEWEST:
        return {}
    x, y, k = (part[name].to_numpy(np.float64) for name in ("entropy", "cosine", "k"))
    return compute_coefficients(x, y[:, None], k, np.arange(len(part)), kind)[0][0]


def _pool(several: Sequence[NullEstimates]) -> NullEstimates:
    """The means over runs, of those that have the coefficient of the null model and that of the measurements."""
    parts: dict[str, dict[str, Estimate]] = {"found": {}, "observed": {}}
    for name in STATISTICS:
        usable = [
            each for each in several if np.isfinite(each.found[name].value) and np.isfinite(each.observed[name].value)
        ]
        for side, pooled in parts.items():
            undefined = Estimate(np.nan, {}, False)
            pooled[name] = replicates.pool([getattr(each, side)[name] for each in usable]) if usable else undefined
    return several[0]._replace(tokens=sum(each.tokens for each in several), **parts)


def _build_row(head: Head, runs: int, each: NullEstimates) -> dict[str, Any]:
    row: dict[str, Any] = {**head, "runs": runs}
    row |= {name: getattr(each, name) for name in ("candidates", "geometry", "null", "tokens", "draws")}
    for name in STATISTICS:
        found, observed = each.found[name], each.observed[name]
        fixed = each.null == SAME_K and name == "given k"  # 0 by construction, whatever the prompts
        low, high = (np.nan, np.nan) if fixed else found.compute_bounds()
        row |= {f"{name} r": found.value, f"{name} low": low, f"{name} high": high, f"{name} observed": observed.value}
        if each.null != OBSERVED:
            difference = observed - found
            low, high = difference.bound_difference()
            row |= {f"{name} ratio": found.value / observed.value if observed.value else np.nan}
            row |= {f"{name} difference": difference.value, f"{name} difference low": low}
            row |= {f"{name} difference high": high}
    return row
