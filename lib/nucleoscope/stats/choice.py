"""Does the choice matter? What predicts how far the continuations of a token's candidates diverge.

Contract: `collect` reads the branches of runs; everything else is tables in, tables out. A branch point counts as one
observation; points of a prompt depend on each other, so intervals are the jackknife's over prompts (`replicates`).

Outcomes are turned so that a larger number means that the choice matters more. A predictor is compared with an outcome
in three ways: over all branch points; over these, given k and entropy; and, if it is one of pairs, within each branch
point, over the pairs of its candidates, which have k and entropy in common. The null model exchanges outcomes among
points of equal k: what remains of a coefficient is due to k alone.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.stats import replicates
from nucleoscope.stats.null_models import POOLED
from nucleoscope.stats.replicates import Estimate
from nucleoscope.store import branches, results
from nucleoscope.store.results import BRANCH_INFO, BRANCH_PAIRS, BRANCH_POINTS
from nucleoscope.store.run_names import describe_run, order_run
from nucleoscope.store.run_settings import (
    Head,
    build_frame,
    compare_settings,
    group_comparable,
    merge_heads,
    read_settings,
)

PREDICTORS = {  # name: (column, what the partial coefficient is given)
    "cosine of embeddings": ("candidate_cosine", ("k", "entropy")),
    "similarity in context": ("mean_similarity", ("k", "entropy")),
    "entropy": ("entropy", ("k",)),
    "number of candidates k": ("k", ("entropy",)),
}
PAIR_PREDICTORS = {"cosine of embeddings": "cosine", "similarity in context": "similarity"}
OUTCOMES = {  # name: what it is, in words
    "divergence": "mean Jensen-Shannon divergence of next-token distributions after the first, divided by log 2",
    "excess divergence": "divergence minus that of the same candidate with other random numbers",
    "different tokens": "share of tokens that differ",
    "never meet": "share of pairs of branches that do not meet again",
}
PAIR_OUTCOMES = ("divergence", "different tokens", "never meet")
ALL, GIVEN, WITHIN = STATISTICS = ("all points", "given k and entropy", "within points")
DRAWS = 1000  # of the null model
MEANS = ("divergence", "different tokens", "never meet")  # of which the page shows means, beside the baseline's


class BranchedRun(NamedTuple):
    """The branches of one run: ``points``, with the quantities of their tokens, ``pairs``, and branches.json.

    ``settings`` are those of the run by `run_settings.read_settings`.
    """

    points: pd.DataFrame
    pairs: pd.DataFrame
    about: Mapping[str, Any]
    settings: Mapping[str, Any] = {}


Runs = Mapping[tuple[str, str], BranchedRun]


def collect(results_dir: str | os.PathLike) -> tuple[dict[tuple[str, str], BranchedRun], dict[str, str]]:
    """The runs with branches below a results folder, by (model, data set), and why others cannot be read.

    Runs without branches are in neither.
    """
    found, problems = {}, {}
    for folder in results.list_runs(results_dir):
        if (folder / BRANCH_POINTS).is_file() or (folder / BRANCH_INFO).is_file():
            try:
                found[folder.name, folder.parent.name] = load(folder)
            except (OSError, ValueError) as error:
                problems[describe_run(folder.name, folder.parent.name)] = str(error)
    return found, problems


def load(folder: str | Path) -> BranchedRun:
    """The branches of one run. ValueError, in one line, if a file is missing, damaged or of other measurements."""
    folder = Path(folder)
    points, pairs = branches.load_rows(folder, BRANCH_POINTS), branches.load_rows(folder, BRANCH_PAIRS)
    path, columns = results.find_measurements(folder), {"prompt", "step", "k", "entropy", "cosine"}
    tokens = results.load_run(path, folder.name, folder.parent.name, columns)
    both = points.merge(tokens[sorted(columns)], on=["prompt", "step"], how="left", validate="one_to_one")
    if both["k"].isna().any():
        raise ValueError(
            f"'{folder / BRANCH_POINTS}' has a token that the measurements do not have: repeat the "
            "run's command with --only=branches --overwrite"
        )
    about = results.read_json(folder / BRANCH_INFO)
    turned = (turn(leave_out_first(table, about["branch_length"])) for table in (both, pairs))
    return BranchedRun(*turned, about, read_settings(folder))


def find_heads(runs: Runs) -> dict[tuple[str, str], Head]:
    """The heads of the rows of runs with branches; see `run_settings`."""
    return compare_settings(
        {key: run.settings for key, run in sorted(runs.items(), key=lambda item: order_run(item[0]))}
    )


def leave_out_first(table: pd.DataFrame, length: int) -> pd.DataFrame:
    """The table of points or pairs with the mean divergence of the steps after the first, of ``length`` in all.

    At the first step nothing is drawn yet: the divergence of two candidates is 1 minus their similarity in context,
    which must not predict itself, and that of the same candidate is 0. A single step stays as it is.
    """
    if length < 2:
        return table
    first = 1 - table["mean_similarity" if "mean_similarity" in table else "similarity"]
    later = {"divergence": ((table["divergence"] * length - first) / (length - 1)).clip(0, 1)}
    if "baseline_divergence" in table:
        later["baseline_divergence"] = table["baseline_divergence"] * length / (length - 1)
    return table.assign(**later)


def turn(table: pd.DataFrame) -> pd.DataFrame:
    """The table of points or pairs, with the `OUTCOMES` as columns, and ``baseline`` before their names if known."""
    turned = {"different tokens": 1 - table["equal_tokens"], "never meet": 1 - table["met"]}
    if "baseline_divergence" in table:
        turned |= {
            "excess divergence": table["divergence"] - table["baseline_divergence"],
            "baseline divergence": table["baseline_divergence"],
            "baseline different tokens": 1 - table["baseline_equal_tokens"],
            "baseline never meet": 1 - table["baseline_met"],
        }
    return table.assign(**turned)


def list_columns() -> list[str]:
    """The columns of `compute_coefficients`."""
    head = ["Model", "Dataset", "runs", "predictor", "outcome", "statistic", "given"]
    return [*head, "r", "low", "high", "null low", "null high", "observations", "prompts", "note"]


def compute_coefficients(runs: Runs, seed: int = 0, draws: int = DRAWS) -> pd.DataFrame:
    """A row per run, predictor, outcome and statistic, and with several runs their means, of equal weight per run.

    If a setting has several values for one model on one data set, there are such means for each of its values.

    Columns: Model, Dataset and runs (1, or how many are pooled); predictor, outcome, statistic, given (what is held
    fixed); r, Spearman's coefficient, with the bounds low and high of its 95% jackknife-t interval over prompts; null
    low and null high, the central 95% of r if outcomes are exchanged among points of equal k (of pairs, NaN);
    observations (points, or pairs in points with at least three) and prompts; note, why r is NaN.
    """
    heads, rows = find_heads(runs), []
    found: dict[tuple[str, str], list[tuple]] = {}
    for run, head in heads.items():
        found[run] = list(_compute_run(runs[run], run[1], seed, draws))
        rows += [head | {"runs": 1} | _build_row(*each) for each in found[run]]
    for together in group_comparable(heads):
        of: dict[tuple[str, ...], list[tuple[Estimate, np.ndarray, int, int]]] = {}
        for key, estimate, null, sizes in (each for run in together for each in found[run]):
            if np.isfinite(estimate.value):
                of.setdefault(key, []).append((estimate, null, *sizes))
        head = merge_heads([heads[run] for run in together], Model=POOLED, Dataset=POOLED)
        for key, several in of.items() if len(together) > 1 else ():
            rows.append(head | {"runs": len(several)} | _build_row(key, *_pool(several)))
    return build_frame(rows, list_columns())


def _pool(several: Sequence[tuple[Estimate, np.ndarray, int, int]]) -> tuple[Estimate, np.ndarray, tuple[int, ...]]:
    """The mean of some runs' estimates and of their null models on the scale of Fisher's z, and the sums of sizes."""
    pooled = replicates.pool([estimate for estimate, *_ in several])
    null = np.tanh(np.mean([np.arctanh(np.clip(each, -1 + 1e-12, 1 - 1e-12)) for _, each, *_ in several], axis=0))
    return pooled, null, tuple(sum(column) for column in zip(*(each[2:] for each in several), strict=True))


def _build_row(key: tuple[str, ...], estimate: Estimate, null: np.ndarray, sizes: tuple[int, ...]) -> dict[str, Any]:
    low, high = estimate.compute_bounds()
    bounds = np.quantile(null, [0.025, 0.975]) if len(null) and np.isfinite(null).all() else (np.nan, np.nan)
    row = dict(zip(("predictor", "outcome", "statistic", "given"), key, strict=True))
    row |= {"r": estimate.value, "low": low, "high": high, "null low": bounds[0], "null high": bounds[1]}
    note = "" if np.isfinite(estimate.value) else "too few branch points, or no variation"
    return row | {"observations": sizes[0], "prompts": sizes[1], "note": note}


def _compute_run(
    run: BranchedRun, dataset: str, seed: int, draws: int
) -> Iterator[tuple[tuple[str, ...], Estimate, np.ndarray, tuple[int, int]]]:
    """Each coefficient of a run: its names, the estimate, the null model's draws, observations and prompts."""
    columns = [column for column, _ in PREDICTORS.values()]
    for outcome in OUTCOMES:
        table = run.points[["prompt", outcome, *columns]].dropna()
        sizes = len(table), table["prompt"].nunique()
        values, group = table[[outcome, *columns]].to_numpy(float), replicates.number_groups(table["prompt"])
        matrices = replicates.compute_matrices(values, group)
        nulls = exchange_outcomes(values, table["k"].to_numpy(), draws, seed)
        for place, (name, (_, fixed)) in enumerate(PREDICTORS.items(), 1):
            known = [columns.index(each) + 1 for each in fixed]
            for statistic, given in ((ALL, []), (GIVEN, known)):
                found = replicates.create_estimate(compute_partial(matrices, place, given), dataset)
                null = compute_partial(nulls, place, given)
                yield (name, outcome, statistic, " and ".join(fixed) if given else ""), found, null, sizes
    for outcome in PAIR_OUTCOMES:
        table = run.pairs[["prompt", "step", outcome, *PAIR_PREDICTORS.values()]].dropna()
        table = table[table.groupby(["prompt", "step"])["step"].transform("size") >= replicates.FEWEST]
        point = table.groupby(["prompt", "step"]).ngroup().to_numpy()
        values, group = table[[outcome, *PAIR_PREDICTORS.values()]].to_numpy(float), table["prompt"].to_numpy()
        found = replicates.compute_within_prompts(values, replicates.number_groups(group), point)
        sizes = len(table), table["prompt"].nunique()
        for place, name in enumerate(PAIR_PREDICTORS):
            estimate = replicates.create_estimate(found[:, place], dataset)
            yield (name, outcome, WITHIN, "the branch point"), estimate, np.full(draws, np.nan), sizes


def compute_partial(matrices: np.ndarray, place: int, given: Sequence[int]) -> np.ndarray:
    """Coefficients (B,) of the columns 0 and ``place`` given others, from all coefficients (B, v, v).

    Of ranks, by the inverse of the matrix (Whittaker, "Graphical Models in Applied Multivariate Statistics", 1990); NaN
    where a column given determines another one. Infinite where a matrix is.
    """
    if not given:
        return matrices[:, 0, place]
    kept = [0, place, *given]
    chosen = matrices[:, kept][:, :, kept]
    unused = np.isinf(chosen).any(axis=(1, 2))
    usable = np.isfinite(chosen).all(axis=(1, 2))
    usable[usable] = np.linalg.det(chosen[usable]) > 1e-12
    found = np.where(unused, np.inf, np.nan)
    inverse = np.linalg.inv(chosen[usable])
    found[usable] = np.clip(-inverse[:, 0, 1] / np.sqrt(inverse[:, 0, 0] * inverse[:, 1, 1]), -1, 1)
    return found


def exchange_outcomes(values: np.ndarray, k: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Spearman's coefficients (draws, v, v) of columns (n, v) if the first is exchanged among rows of equal k (n,).

    A point that is alone with its k joins those of the nearest (`replicates.join_rare`).
    """
    n, generator = len(values), np.random.default_rng(seed)
    found = np.full((draws, values.shape[1], values.shape[1]), np.nan)
    if n < replicates.FEWEST:
        return found
    ranks = pd.DataFrame(values).rank().to_numpy()
    strata = replicates.join_rare(k)
    order = np.lexsort((np.arange(n), strata))
    for draw in range(draws):
        exchanged = ranks.copy()
        exchanged[order, 0] = ranks[np.lexsort((generator.random(n), strata)), 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            found[draw] = np.corrcoef(exchanged.T)
    return found


def summarise(runs: Runs) -> pd.DataFrame:
    """How much the choice matters in each run, and how far texts diverge anyway: a row per run and outcome of `MEANS`.

    Columns: Model, Dataset, outcome, points, prompts; candidates (the mean over points, of pairs of different
    candidates with the same random numbers) and same candidate (with other random numbers), and their difference, each
    with its 95% jackknife-t interval over prompts (low, high), which ends where the outcome's range does.
    """
    rows = []
    for key, head in find_heads(runs).items():
        for outcome in MEANS:
            table = runs[key].points[["prompt", outcome, f"baseline {outcome}"]].dropna(subset=[outcome])
            own, anyway = (_estimate_mean(table, name, key[1]) for name in (outcome, f"baseline {outcome}"))
            row = head | {"outcome": outcome, "points": len(table)}
            row["prompts"] = table["prompt"].nunique()
            for name, each, least in (
                ("candidates", own, 0),
                ("same candidate", anyway, 0),
                ("difference", own - anyway, -1),
            ):
                low, high = np.clip(each.compute_bounds(correlation=False), least, 1)  # every outcome is a share
                row |= {name: each.value, f"{name} low": low, f"{name} high": high}
            rows.append(row)
    parts = [f"{name}{end}" for name in ("candidates", "same candidate", "difference") for end in ("", " low", " high")]
    return build_frame(rows, ["outcome", "points", "prompts", *parts])


def _estimate_mean(table: pd.DataFrame, column: str, kind: str) -> Estimate:
    known = table[["prompt", column]].dropna()
    group, values = replicates.number_groups(known["prompt"]), known[column].to_numpy(float)
    sums = np.bincount(group, values, replicates.GROUPS)
    counts = np.bincount(group, minlength=replicates.GROUPS)
    left = np.append(counts.sum(), counts.sum() - counts)
    means = np.append(sums.sum(), sums.sum() - sums) / np.where(left, left, np.nan)
    means[1:][counts == 0] = np.inf
    return replicates.create_estimate(means, kind)


def choose_examples(points: pd.DataFrame, by: str = "divergence") -> dict[str, pd.Series]:
    """The branch points with the largest, the median and the smallest outcome: {which: row}.

    Of two there is no median, and a single one is the "only". Among ties, the first in the text; of an even number,
    the lower of the two in the middle is the median.
    """
    rows = points.dropna(subset=[by]).sort_values([by, "prompt", "step"], ascending=[False, True, True])
    if rows.empty:
        return {}
    places = {"most": 0, "median": len(rows) // 2, "least": len(rows) - 1}
    if len(rows) < len(places):
        places = {"only": 0} if len(rows) == 1 else {"most": 0, "least": 1}
    return {name: rows.iloc[place] for name, place in places.items()}
