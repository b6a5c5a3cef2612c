"""The specification curve: every candidate set, in every geometry, by every coefficient, and what all say together.

Contract: runs' variants.parquet in, two tables out; no figures. A specification is one set of choices that an analyst
could defend: a candidate set, a geometry and a statistic. If the conclusion depends on them, the curve shows it
(Simonsohn, Simmons and Nelson, "Specification curve analysis", Nature Human Behaviour 4, 2020, 1208-1214).

Specifications share their tokens, so they cannot be counted as independent. As in that article, the median
coefficient and the share of specifications with the dominant sign are compared with those of tables in which there is
nothing to find: cosines are exchanged among tokens of equal k (`SAME_K`), or among all tokens (`ALL`), in all
specifications together. Exchanging treats the tokens of a prompt as independent. The interval of the difference
between the median and that of the null model does not: it leaves out prompts (`replicates`), and it is what decides.

The 15 runs of the study's size with 16 sets in 6 geometries are 14 million rows. Ranks are computed once per variant
and group of prompts left out, and a null table needs no new ranks: the order of the cosines is the same in all of them,
so an exchange is an index into the entropies, and ranks within prompts or strata follow from sorting small whole
numbers, which numpy does in linear time.
"""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.stats import bootstrap, candidate_tables, null_models, parallel, replicates
from nucleoscope.stats.candidate_tables import CandidateTable, Runs
from nucleoscope.stats.null_models import POOLED, SAME_K
from nucleoscope.stats.replicates import Estimate
from nucleoscope.store.run_names import order_run
from nucleoscope.store.run_settings import Head, build_frame, find_heads, group_comparable, merge_heads

STATISTICS = ("Pearson", "Spearman", "within prompts", "given k", "fixed k")
ALL = "all"  # the null model in which cosines are exchanged among all tokens
EXCHANGES = (SAME_K, ALL)
TABLES = 100  # null tables of each kind: the smallest p that they can give is 2 / 101
LARGEST = 1 - 1e-9  # coefficient of a null table whose Fisher's z is averaged
NEGATIVE, POSITIVE, UNDECIDED = "negative", "positive", "undecided"
CHOICES = ["candidates", "geometry", "statistic"]
Key = tuple[str, str, str]  # a specification, by its choices


class Found(NamedTuple):
    """The S specifications of a run: the coefficient and its mean under `SAME_K`, and both in null tables.

    coefficients, exchanged (S, GROUPS + 1): rows as in `replicates.create_estimate`; tables (2, B, S): the
    coefficients in the null tables of each of `EXCHANGES`; tokens (S,).
    """

    keys: list[Key]
    tokens: list[int]
    coefficients: np.ndarray
    exchanged: np.ndarray
    tables: np.ndarray


def compute_specifications(
    runs: Runs, seed: int = 0, tables: int = TABLES, jobs: int | None = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The specification curve and its tests, from {(model, dataset): folder}.

    The first table has a row per run and specification: Model, Dataset, runs, candidates, geometry, statistic, tokens,
    r with its 95% interval (low, high), sign (the interval's: "undecided" if it includes 0, empty without one), same_k
    (the mean coefficient if cosines are exchanged among tokens of equal k; with an interval, except where it is a mean
    over null tables or 0 by construction), and difference (r minus same_k) with its interval. Statistics are Pearson's
    coefficient of a set's own entropy and cosine, Spearman's, its mean within prompts, and given k by strata; and for
    sets of fixed size, Spearman's coefficient of the *full* entropy and the set's cosine ("fixed k"). Given k is left
    out where k is fixed, because it would be Spearman's coefficient once more.

    The second has a row per run and null model: how many specifications have an interval, and how many are negative,
    positive and undecided; their median coefficient, and the share whose coefficient has the dominant sign; the mean
    and the central 95% of both in null tables; two-sided p, with the data counted among the null tables; the
    reference, which is the median of the specifications' mean coefficients under the null model (0 if it exchanges
    among all tokens); and the median's difference from the reference, with an interval.

    Intervals are jackknife-t over prompts. With several runs, the model and data set "(all)" are means over the runs
    on the scale of Fisher's z, each of equal weight: of these runs, not of other models. If a setting has several
    values for one model on one data set, there is such a mean for each of its values.
    """
    items = sorted(runs.items(), key=lambda item: order_run(item[0]))
    work = partial(_compute_item, seed=seed, tables=tables)
    done = parallel.map_parallel(work, items, jobs, null_models.estimate_need(runs))
    rows, tests, parts, heads = [], [], {}, find_heads(runs)
    for (key, _), found in zip(items, done, strict=True):
        estimates = _create_estimates(found, ("prompts of", key[1]))
        parts[key], head = (found, estimates), {**heads[key], "runs": 1}
        rows += _list_rows(head, found.keys, found.tokens, estimates)
        tests += _test(head, found.keys, estimates, found.tables)
    for several in group_comparable({key: heads[key] for key in parts}):
        if len(several) > 1:
            keys, tokens, estimates, pooled = _pool([parts[key] for key in several])
            head = merge_heads([heads[key] for key in several], Model=POOLED, Dataset=POOLED) | {"runs": len(several)}
            rows += _list_rows(head, keys, tokens, estimates)
            tests += _test(head, keys, estimates, pooled)
    return build_frame(rows, list_columns()), build_frame(tests, list_test_columns())


def list_columns() -> list[str]:
    """The columns of the first table of `compute_specifications`."""
    null = [f"{name}{part}" for name in (SAME_K, "difference") for part in ("", " low", " high")]
    return ["Model", "Dataset", "runs", *CHOICES, "tokens", "r", "low", "high", "sign", *null]


def list_test_columns() -> list[str]:
    """The columns of the second table of `compute_specifications`."""
    counts = ["specifications", NEGATIVE, POSITIVE, UNDECIDED]
    parts = ("", " null", " null low", " null high", " p")
    statistics = [f"{name}{part}" for name in ("median", "share") for part in parts]
    return [
        "Model", "Dataset", "runs", *counts, "dominant sign", "null", *statistics,
        "reference", "difference", "difference low", "difference high",
    ]  # fmt: skip


def _compute_item(item: tuple[tuple[str, str], Path], seed: int, tables: int) -> Found:
    (model, dataset), folder = item
    return compute_run(folder, model, dataset, seed, tables)


def compute_run(folder: Path, model: str, dataset: str, seed: int = 0, tables: int = TABLES) -> Found:
    """All specifications of one run; the same ``seed`` gives each run, by its name, its own null tables."""
    parts = []
    for name in candidate_tables.list_sets(folder):
        table = candidate_tables.load_set(folder, name)
        if table is None or not table.geometries or len(table.k) < replicates.FEWEST:
            continue
        full = None
        if is_fixed(table):
            full = candidate_tables.find_values(folder, model, dataset, "full_entropy", table.prompt, table.step)
        generator = np.random.default_rng([seed, zlib.crc32(f"{model}/{dataset}".encode())])
        orders = (generator.permutation(table.tokens) for _ in range(tables))
        parts.append(_compute_set(name, table, full, orders, tables))
    if not parts:
        empty = np.empty((0, replicates.GROUPS + 1))
        return Found([], [], empty, empty, np.empty((2, tables, 0)))
    return Found(
        [key for part in parts for key in part.keys],
        [count for part in parts for count in part.tokens],
        np.concatenate([part.coefficients for part in parts]),
        np.concatenate([part.exchanged for part in parts]),
        np.concatenate([part.tables for part in parts], axis=2),
    )


def is_fixed(table: CandidateTable) -> bool:
    """Whether every token has the same number of candidates."""
    return len(table.k) > 0 and bool((table.k == table.k[0]).all())


def _compute_set(name: str, table: CandidateTable, full: np.ndarray | None, orders: Any, tables: int) -> Found:
    """All specifications of one candidate set. ``orders`` are permutations of the run's tokens."""
    k, prompt = table.k, table.prompt
    group, stratum = replicates.number_groups(prompt), replicates.join_rare(k)
    values = np.column_stack([table.entropy, table.cosines])
    pearson = replicates.compute_parts(values, group, stratum, ranked=False)
    spearman = replicates.compute_parts(values, group, stratum, ranked=True)
    within_prompts = replicates.compute_within_prompts(values, group, prompt)
    found = {"Pearson": pearson, "Spearman": spearman, "within prompts": (within_prompts, None)}
    if not is_fixed(table):
        found["given k"] = replicates.compute_within_k(values, group, k), None
    elif full is not None and np.isfinite(full).all():
        both = np.column_stack([full, table.cosines])
        found["fixed k"] = replicates.compute_parts(both, group, stratum, ranked=True)
    exchange = _Exchange(table, stratum, full if "fixed k" in found else None)
    drawn = np.stack([exchange.compute(order, list(found)) for order in orders], axis=1)  # (2, B, statistics, v)
    keys, coefficients, exchanged = [], [], []
    for place, (statistic, (own, null)) in enumerate(found.items()):
        for column, geometry in enumerate(table.geometries):
            keys.append((name, geometry, statistic))
            coefficients.append(own[:, column])
            if null is not None:
                exchanged.append(null[:, column])
            else:
                mean = 0.0 if statistic == "given k" else drawn[0, :, place, column].mean()
                exchanged.append(np.where(np.isfinite(own[:, column]), mean, own[:, column]))
    flat = drawn.reshape(2, tables, len(keys))
    return Found(keys, [len(k)] * len(keys), np.array(coefficients), np.array(exchanged), flat)


class _Exchange:
    """The coefficients of one candidate set in tables whose cosines are exchanged among its n tokens.

    To exchange cosines is to exchange everything else, so the cosines keep their places, and with them their ranks.
    Ties of cosines within prompts or strata are broken at random, where the measurements have midranks; Pearson's
    and Spearman's coefficients have no such approximation.
    """

    def __init__(self, table: CandidateTable, stratum: np.ndarray, full: np.ndarray | None):
        self.place, self.tokens = table.place, table.tokens
        self.stratum = stratum.astype(np.min_scalar_type(stratum.max()))
        self.sorted = np.argsort(self.stratum, kind="stable")
        ranks = [pd.Series(column).rank().to_numpy() for column in (table.entropy, *table.cosines.T)]
        self.x = {"Pearson": _standardise(table.entropy), "Spearman": _standardise(ranks[0])}
        self.y = {
            "Pearson": np.stack([_standardise(column) for column in table.cosines.T], axis=1),
            "Spearman": np.stack([_standardise(column) for column in ranks[1:]], axis=1),
        }
        if full is not None:
            self.x["fixed k"] = _standardise(pd.Series(full).rank().to_numpy())
            self.y["fixed k"] = self.y["Spearman"]
        shuffled = np.random.default_rng(0).permutation(len(table.k))
        self.order = [shuffled[np.argsort(column[shuffled], kind="stable")] for column in table.cosines.T]
        self.labels = {
            "within prompts": _Labels(table.entropy, table.prompt, by_prompt=True),
            "given k": _Labels(table.entropy, table.k, by_prompt=False),
        }

    def compute(self, order: np.ndarray, statistics: Sequence[str]) -> np.ndarray:
        """(2, statistics, v): within strata, then among all; ``order`` is a permutation of the run's tokens."""
        number = np.full(self.tokens, -1)
        number[self.place] = np.arange(len(self.place))
        order = number[order]
        order = order[order >= 0]  # of the set's tokens
        within = np.empty_like(order)
        within[self.sorted] = order[np.argsort(self.stratum[order], kind="stable")]
        return np.array([[self._compute(taken, name) for name in statistics] for taken in (within, order)])

    def _compute(self, taken: np.ndarray, statistic: str) -> np.ndarray:
        if statistic in self.labels:
            return self.labels[statistic].compute(taken, self.order)
        return self.x[statistic].take(taken) @ self.y[statistic]


class _Labels:
    """A coefficient that compares tokens only within labels (prompts or values of k), of exchanged values.

    It is a weighted sum of the cosines' ranks within labels. ``by_prompt``: the mean of the labels' own coefficients;
    else that of `bootstrap.compute_spearman` with strata.
    """

    def __init__(self, x: np.ndarray, label: np.ndarray, by_prompt: bool):
        _, number, sizes = np.unique(label, return_inverse=True, return_counts=True)
        self.number = number.astype(np.min_scalar_type(len(sizes)))
        ranks = pd.Series(x).groupby(number).rank().to_numpy() - (sizes[number] + 1) / 2
        own = np.bincount(number, ranks**2, len(sizes))
        other = sizes * (sizes.astype(np.float64) ** 2 - 1) / 12  # the squares of ranks 1 ... n without ties
        if by_prompt:
            enough = (sizes >= replicates.FEWEST) & (own > 0)
            scale = np.where(enough, np.sqrt(own * other), np.inf) * max(enough.sum(), 1)
            self.weights = ranks / scale[number]
        else:
            total = np.sqrt(np.sum(own / (sizes + 1.0) ** 2) * np.sum(other / (sizes + 1.0) ** 2))
            self.weights = ranks / (sizes[number] + 1.0) ** 2 / (total or np.inf)
        self.ranks = np.arange(len(x)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of tokens sorted by label

    def compute(self, taken: np.ndarray, orders: Sequence[np.ndarray]) -> np.ndarray:
        """The coefficient for each of some ``orders`` (n,): the place of the lowest cosine, the second lowest, ...

        ``taken`` (n,) has the token whose entropy and label go with the cosine at each place.
        """
        number, weights = self.number.take(taken), self.weights.take(taken)
        sorted_places = (order.take(number.take(order).argsort(kind="stable")) for order in orders)
        return np.array([weights.take(places) @ self.ranks for places in sorted_places])


def _standardise(values: np.ndarray) -> np.ndarray:
    """Values (n,) minus their mean, of length 1; NaN if they are constant."""
    centered = np.asarray(values, dtype=np.float64) - np.mean(values)
    length = np.sqrt(centered @ centered)
    return centered / (length if length > 0 and not bootstrap.is_constant(np.asarray(values)) else np.nan)


def _create_estimates(found: Found, kind: tuple[str, str]) -> list[tuple[Estimate, Estimate]]:
    """The coefficient and its mean under `SAME_K`, for each specification."""
    return [
        (replicates.create_estimate(own, kind), replicates.create_estimate(null, kind))
        for own, null in zip(found.coefficients, found.exchanged, strict=True)
    ]


def _pool(parts: Sequence[tuple[Found, list[tuple[Estimate, Estimate]]]]) -> tuple[list, list, list, np.ndarray]:
    """The keys, tokens, estimates and null tables of the means over the runs that have a specification."""
    places: dict[Key, list[tuple[int, int]]] = {}
    for run, (found, estimates) in enumerate(parts):
        for place, key in enumerate(found.keys):
            if not np.isnan(estimates[place][0].value):
                places.setdefault(key, []).append((run, place))
    tokens, pooled, tables = [], [], []
    for of in places.values():
        pooled.append(tuple(replicates.pool([parts[run][1][place][side] for run, place in of]) for side in (0, 1)))
        tokens.append(sum(parts[run][0].tokens[place] for run, place in of))
        drawn = [parts[run][0].tables[:, :, place] for run, place in of]
        tables.append(np.tanh(np.mean(np.arctanh(np.clip(drawn, -LARGEST, LARGEST)), axis=0)))
    count = parts[0][0].tables.shape[1]
    return list(places), tokens, pooled, np.stack(tables, axis=2) if tables else np.empty((2, count, 0))


def _list_rows(
    head: Head, keys: list[Key], tokens: list[int], estimates: list[tuple[Estimate, Estimate]]
) -> list[dict[str, Any]]:
    rows = []
    for key, count, (own, null) in zip(keys, tokens, estimates, strict=True):
        low, high = own.compute_bounds()
        difference = own - null
        exact = key[2] not in ("within prompts", "given k")  # what is exchanged there has no interval of its own
        null_bounds = null.compute_bounds() if exact else (np.nan, np.nan)
        row = head | dict(zip(CHOICES, key, strict=True))
        row |= {"tokens": count, "r": own.value, "low": low, "high": high, "sign": classify(low, high)}
        for name, value, bounds in (
            (SAME_K, null.value, null_bounds),
            ("difference", difference.value, difference.bound_difference()),
        ):
            row |= {name: value, f"{name} low": bounds[0], f"{name} high": bounds[1]}
        rows.append(row)
    return rows


def classify(low: float, high: float) -> str:
    """What an interval says of the sign; "" if there is no interval."""
    if np.isnan(low) or np.isnan(high):
        return ""
    return POSITIVE if low > 0 else NEGATIVE if high < 0 else UNDECIDED


def _test(
    head: Head, keys: list[Key], estimates: list[tuple[Estimate, Estimate]], tables: np.ndarray
) -> list[dict[str, Any]]:
    """One row for each of `EXCHANGES`, of the specifications with an interval; none without such a one."""
    bounds = [own.compute_bounds() for own, _ in estimates]
    used = [place for place, (low, high) in enumerate(bounds) if not np.isnan([low, high]).any()]
    if not used:
        return []
    estimates, tables = [estimates[place] for place in used], tables[:, :, used]
    values = np.array([own.value for own, _ in estimates])
    signs = [classify(*bounds[place]) for place in used]
    sign = 1 if np.mean(values > 0) > np.mean(values < 0) else -1
    base = head | {"specifications": len(values)}
    base |= {name: signs.count(name) for name in (NEGATIVE, POSITIVE, UNDECIDED)}
    base["dominant sign"] = POSITIVE if sign > 0 else NEGATIVE
    rows, own = [], _compute_median([own for own, _ in estimates])
    for place, null in enumerate(EXCHANGES):
        row = base | {"null": null}
        drawn = {"median": np.median(tables[place], axis=1), "share": np.mean(tables[place] * sign > 0, axis=1)}
        for name, value in (("median", float(np.median(values))), ("share", float(np.mean(values * sign > 0)))):
            low, high = np.quantile(drawn[name], [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2])
            row |= {name: value, f"{name} null": drawn[name].mean(), f"{name} null low": low, f"{name} null high": high}
            row[f"{name} p"] = compute_p(value, drawn[name])
        reference = None if null == ALL else _compute_median([other for _, other in estimates])
        difference = own - reference if reference else own
        low, high = difference.bound_difference()
        row["reference"] = reference.value if reference else 0.0
        rows.append(row | {"difference": difference.value, "difference low": low, "difference high": high})
    return rows


def _compute_median(estimates: Sequence[Estimate]) -> Estimate:
    """The median of some estimates of the same tokens, which are all defined."""
    without = {}
    for kind in dict.fromkeys(kind for each in estimates for kind in each.without):
        columns = np.stack([each.without[kind] for each in estimates if kind in each.without])
        others = np.array([each.value for each in estimates if kind not in each.without])
        values = np.array([each.value for each in estimates if kind in each.without])
        filled = np.where(np.isnan(columns), values[:, None], columns)
        every = np.concatenate([filled, np.broadcast_to(others[:, None], (len(others), filled.shape[1]))])
        without[kind] = np.where(np.isnan(columns).all(axis=0), np.nan, np.median(every, axis=0))
    return Estimate(float(np.median([each.value for each in estimates])), without)


def compute_p(value: float, drawn: np.ndarray) -> float:
    """The two-sided p of a statistic from its values in null tables (B,), the data counted among them."""
    above, below = np.sum(drawn >= value), np.sum(drawn <= value)
    return float(min(1.0, 2 * (1 + min(above, below)) / (1 + len(drawn))))
