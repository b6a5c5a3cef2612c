"""Correlation coefficients from a table of tokens, with what is needed to judge them.

Contract: tables as `results.load_table` returns them; no files, no figures. Tokens with k = 1 have no
pair to compare; they are counted and left out.

Tokens of one prompt depend on each other, so intervals come from resampling prompts, not tokens
(`bootstrap`). The tables contain p-values because the published study gives them. They treat
tokens as independent and are therefore usually far too small; rely on the intervals.

"Given k" has two meanings, and both are here. The partial coefficient subtracts a straight line in the ranks of k and
compares all tokens; the within-k coefficient compares only tokens with equally many candidates. Neither fixes k:
which tokens have k = 5 is the model's doing. `compute_fixed` takes the k likeliest candidates of every token instead.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import betaln, stdtr  # not scipy.stats, which takes half a second to import

from nucleoscope.settings import Settings
from nucleoscope.stats import bootstrap, parallel
from nucleoscope.store.results import count_tokens, select, select_choices
from nucleoscope.store.run_names import order_run
from nucleoscope.store.run_settings import find_heads, list_run_columns
from nucleoscope.wording import count

PAIRS = (  # the first is the study's; each of the others replaces one quantity
    ("entropy", "cosine"),
    ("full_entropy", "cosine"),
    ("entropy", "weighted_cosine"),
    ("similarity_entropy", "cosine"),
)
STUDY = {name: getattr(Settings, name) for name in ("top_p", "temperature", "prompt_format")}  # ours are its own
PUBLISHED_COLUMNS = ["Model", "Dataset", "Pearson r", "Pearson p", "Spearman r", "Spearman p"]
COUNTS = ["tokens", "tokens with k > 1", "prompts"]
RUN_COLUMNS = [*COUNTS, "share with k > 1", "median k", "median entropy", "interval"]  # equal for all pairs of a run
NEED = 520  # maximum bytes per token in `compute_coefficients`, without the counts of the resamples
Tables = Mapping[tuple[str, str], pd.DataFrame]


def compute_statistics(
    tables: Tables,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    jobs: int | None = 1,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> pd.DataFrame:
    """The table of the study: one row per run, from {(model, dataset): table of its tokens}.

    Columns: the published ones first (Model, Dataset, Pearson r, Pearson p, Spearman r, Spearman p), with the settings
    that differ between the runs after Dataset (`store.run_settings`), then those of `compute_coefficients` for the
    first of the ``pairs``, then the same for the others, each prefixed with the name of the quantity that differs. What
    cannot be computed is NaN, and ``note`` says why.

    The 15 runs of the study, 10,000 tokens each, take about 11 s on one core, less with more
    ``jobs`` (processes; None means one per core): a resample needs no sorting, only a running sum
    over each sorted column (`bootstrap.Ranks`), and Pearson's coefficient only sums over prompts
    (`bootstrap.compute_pearson`). From `results.StoredTables`, each process reads one run at a time.
    """
    rows, keys = [], sorted(tables, key=order_run)
    # by entropy and cosine, whatever the pairs, tokens without values are left out
    columns = {"prompt", "k", "entropy", "cosine", *chain.from_iterable(pairs)}
    parts = [select(tables, [key], columns) for key in keys]
    need = NEED * max(map(count_tokens, parts), default=0)
    measured = partial(_compute_coefficients, pairs=tuple(pairs), resamples=resamples, seed=seed)
    heads = find_heads(tables)
    for key, found in zip(keys, parallel.map_parallel(measured, parts, jobs, need), strict=True):
        row: dict[str, Any] = {**heads[key], **found.iloc[0]}
        for (x, y), values in list(found.iterrows())[1:]:
            name = y if x == "entropy" else x
            row |= {f"{name}: {key}": value for key, value in values.items() if key not in (*RUN_COLUMNS, "note")}
        row["note"] = "; ".join(dict.fromkeys(part for note in found["note"] if note for part in note.split("; ")))
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else [*PUBLISHED_COLUMNS, *RUN_COLUMNS, "note"])
    first = [*list_run_columns(frame), *PUBLISHED_COLUMNS[2:]]
    others = [name for name in frame.columns if name not in (*first, "note")]
    return frame[[*first, *others, "note"]]


def _compute_coefficients(run: Tables, pairs: tuple[tuple[str, str], ...], resamples: int, seed: int) -> pd.DataFrame:
    (key,) = run
    return compute_coefficients(run[key], pairs, resamples, seed)


def compute_coefficients(
    table: pd.DataFrame,
    pairs: tuple[tuple[str, str], ...] = PAIRS[:1],
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Coefficients of some pairs of quantities in one run: one row per pair, indexed by (x, y).

    Columns, of the run: tokens; tokens with k > 1, their share, and the medians of their k and entropy; prompts (that
    have any of those); interval, the kind of all intervals (`bootstrap.PERCENTILE` or, with few prompts,
    `bootstrap.JACKKNIFE`). Of the pair:

    * Pearson r and p, Spearman r and p, with log10 of each p; p is text, because a double cannot hold 1e-700;
    * within-prompt Spearman r: the mean of the prompts' own coefficients, and how many prompts it is based on (three
      tokens and some variation are needed);
    * partial Spearman r: given k (over ranks, so given log k as well), by subtracting a line in the ranks of k;
    * within-k Spearman r: given k, comparing only tokens of equal k (`bootstrap.compute_spearman` with k as stratum),
      and how many tokens have a partner with the same k; its interval is always a jackknife's, because a resample has
      some tokens twice, and so weighs small strata differently from the data;
    * low and high of each: the bounds of its 95% interval;
    * design effect: the variance of Spearman's r divided by what it would be if tokens were independent (Kish 1965);
      tokens divided by it are worth as many independent ones;
    * note: what is missing and why.
    """
    names = list(dict.fromkeys([*(name for pair in pairs for name in pair), "k"]))
    chosen = select_choices(
        table[list(dict.fromkeys([*names, "entropy", "cosine", "prompt"]))]
    )  # few columns save memory
    needed = [name for name in ("entropy", "cosine") if not chosen[name].isna().all()]
    finite = chosen[np.isfinite(chosen[needed]).all(axis=1)]
    notes = {name: note for name in names if (note := _find_defect(finite[name], name))}
    prompt, labels = pd.factorize(finite["prompt"])
    general = _find_shortage(len(finite), len(labels))
    head = {"tokens": len(table), "tokens with k > 1": len(chosen), "prompts": len(labels)}
    head["share with k > 1"] = len(chosen) / len(table) if len(table) else np.nan
    head |= {f"median {name}": float(chosen[name].median()) for name in ("k", "entropy")}
    head["interval"] = "" if general else bootstrap.choose_interval(len(labels))
    columns = [name for name in names if name not in notes]
    sample = None if general else _Sample(finite[columns].astype(float), prompt, resamples, seed)
    left_out = len(chosen) - len(finite)
    rows = []
    for x, y in pairs:
        why = general or "; ".join(notes[name] for name in (x, y) if name in notes)
        found = dict.fromkeys(_list_names(), np.nan) if why else sample.compute_pair(x, y, notes.get("k"))
        more = [f"{count(left_out, 'token')} left out: entropy or cosine is not finite"] if left_out else []
        more += [] if why else sample.list_notes(found, notes.get("k"))
        rows.append({**head, **found, "note": "; ".join([why, *more] if why else more)})
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(pairs, names=["x", "y"]))


def compute_fixed(
    variants: pd.DataFrame,
    table: pd.DataFrame | None = None,
    x: str = "entropy",
    y: str = "cosine",
    geometry: str = "raw",
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Coefficients at a fixed number of candidates: one row per variant of the sets, indexed by its name.

    variants: one row per token and variant, with columns prompt, step, candidates (such as "top-k 5"), geometry, k and
    quantities. Only rows of this ``geometry`` are used, and of these the variants in which every token has the same k,
    at least two. ``x`` is taken from ``table`` (one row per token, with prompt and step), such as the entropy of the
    whole distribution, and without one from the variant itself; ``y`` is the variant's. Columns as in
    `compute_coefficients`, and the variant's k before them; coefficients given k are missing, because k is constant.
    ValueError names a missing column.
    """
    needed = {"prompt", "step", "candidates", "geometry", "k", y, *([] if table is not None else [x])}
    if lacking := sorted(needed - set(variants)) or sorted(
        {"prompt", "step", x} - set(variants if table is None else table)
    ):
        raise ValueError(f"the table of variants or of tokens has no column {lacking[0]}")
    rows = {}
    for name, part in variants[variants["geometry"] == geometry].groupby("candidates", sort=False, observed=True):
        k = part["k"].to_numpy()
        if not len(k) or k.min() != k.max() or k[0] < 2:
            continue
        columns = part[["prompt", "step", "k", y, *([] if table is not None else [x])]]
        if table is not None:
            columns = columns.merge(table[["prompt", "step", x]], on=["prompt", "step"], validate="one_to_one")
        # The columns that decide which tokens are complete are named entropy and cosine.
        both = columns.rename(columns={x: "entropy", y: "cosine"})
        found = compute_coefficients(both, resamples=resamples, seed=seed).iloc[0]
        unsaid = [part for part in found["note"].split("; ") if part and not part.startswith("no coefficient given k")]
        rows[name] = {"candidates": name, "fixed k": int(k[0])} | found.to_dict() | {"note": "; ".join(unsaid)}
    names = ["candidates", "fixed k", *RUN_COLUMNS, *_list_names(), "note"]
    return (
        pd.DataFrame(list(rows.values()), columns=names).set_index("candidates").sort_values("fixed k", kind="stable")
    )


def load_published() -> pd.DataFrame:
    """The published study's 15 rows, from published_correlations.csv, which names their source."""
    text = resources.files("nucleoscope.stats").joinpath("published_correlations.csv").read_text(encoding="utf-8")
    return pd.read_csv(io.StringIO(text), comment="#")


def match_published(statistics: pd.DataFrame) -> pd.DataFrame:
    """The published rows of runs in `compute_statistics`, with these runs' settings, where there are columns of them.

    Where a setting has several values, only runs with the study's count, and of several of these only the first: each
    published coefficient was measured once.
    """
    heads = statistics[list_run_columns(statistics)]
    same = np.logical_and.reduce([heads[name] == STUDY[name] for name in STUDY if name in heads] or [heads.index >= 0])
    chosen = heads[same].drop_duplicates(["Model", "Dataset"])
    return chosen.merge(load_published(), on=["Model", "Dataset"])


def compute_log10_p(r: float, n: int) -> float:
    """log10 of the two-sided p of a coefficient r of n independent pairs, however small p is.

    Student's t test with n - 2 degrees of freedom, as in scipy's pearsonr and spearmanr. Where p is too small for a
    double, scipy's integration in logarithms takes over: 1 - r^2 has a beta distribution with a = n/2 - 1 and b = 1/2.
    """
    if not abs(r) < 1:  # also NaN
        return np.nan if np.isnan(r) else -np.inf
    x, a = (1 - r) * (1 + r), n / 2 - 1
    p = 2 * stdtr(n - 2, -abs(r) * np.sqrt((n - 2) / x))
    if p > 1e-290:
        return float(np.log10(p))
    from scipy.integrate import tanhsinh  # a quarter of a second

    tail = tanhsinh(lambda u: (a - 1) * np.log(u) - np.log1p(-u) / 2, 0, x, log=True)
    return float((tail.integral - betaln(a, 0.5)) / np.log(10))


def format_power_of_ten(log10: float, digits: int = 6) -> str:
    """10 ** log10 as text, in full magnitude: -356.25 -> '5.62341e-357'. Empty for NaN."""
    if not np.isfinite(log10):
        return "0" if log10 < 0 else ""
    exponent = int(np.floor(log10))
    mantissa = f"{10 ** (log10 - exponent):.{digits - 1}f}"
    if mantissa.startswith("10"):
        mantissa, exponent = f"{1:.{digits - 1}f}", exponent + 1
    return f"{mantissa}e{exponent:+03d}" if exponent < -4 else f"{10**log10:.{digits}g}"


def _list_names() -> list[str]:
    tests = [f"{kind} {part}" for kind in ("Pearson", "Spearman") for part in ("r", "p", "low", "high", "log10 p")]
    within = [f"within-prompt Spearman {part}" for part in ("r", "low", "high", "prompts")]
    given = [f"{kind} Spearman {part}" for kind in ("partial", "within-k") for part in ("r", "low", "high")]
    return [*tests, *within, *given, "within-k Spearman tokens", "design effect"]


def _find_defect(column: pd.Series, name: str) -> str:
    """Why this column cannot be analysed, or an empty string."""
    if len(column) and not np.isfinite(column).all():
        return f"no {name} in the measurements" if column.isna().all() else f"{name} is not finite everywhere"
    return f"{name} is constant" if len(column) and bootstrap.is_constant(column.to_numpy(float)) else ""


def _find_shortage(tokens: int, prompts: int) -> str:
    """Why this run cannot be analysed at all, or an empty string."""
    if tokens < 3:
        return "fewer than three tokens with k > 1"
    return "only one prompt has tokens with k > 1" if prompts == 1 else ""


class _Sample:
    """The columns of one run, in the data and in every resample: 0 is the data, 1... the resamples.

    With few prompts, a resample is the data without one prompt, each in turn.
    """

    def __init__(self, columns: pd.DataFrame, prompt: np.ndarray, resamples: int, seed: int):
        self.columns, self.prompt, self.prompts = columns, prompt, int(prompt.max()) + 1
        self.place = {name: i for i, name in enumerate(columns)}
        self.interval, self.counts = bootstrap.create_counts(self.prompts, resamples, seed)
        values = columns.to_numpy()
        self.spearman = bootstrap.compute_spearman(values, prompt, self.counts)
        self.pearson = bootstrap.compute_pearson(values, prompt, self.counts)
        if "k" in columns:
            k = values[:, self.place["k"]]
            _, sizes = np.unique(k, return_counts=True)
            self.partners = int(sizes[sizes > 1].sum())
            counts = np.concatenate([self.counts[:1], bootstrap.leave_out_groups(self.prompts, seed=seed)])
            self.within_k = bootstrap.compute_spearman(values, prompt, counts, stratum=k)

    def compute_pair(self, x: str, y: str, no_k: str | None) -> dict[str, Any]:
        """The statistics of `compute_coefficients` for one pair."""
        row, (i, j) = {}, (self.place[x], self.place[y])
        for kind, matrices in (("Pearson", self.pearson), ("Spearman", self.spearman)):
            row |= self._add_bounds(kind, matrices[:, i, j])
            row[f"{kind} log10 p"] = compute_log10_p(row[f"{kind} r"], len(self.prompt))
            row[f"{kind} p"] = format_power_of_ten(row[f"{kind} log10 p"])
        means, used = self._compute_within(x, y)
        row |= self._add_bounds("within-prompt Spearman", means) | {"within-prompt Spearman prompts": used}
        unknown = np.full(len(self.counts), np.nan)
        row |= self._add_bounds("partial Spearman", unknown if no_k else self._compute_partial(x, y))
        within_k = unknown if no_k else self.within_k[:, i, j]
        row |= self._add_bounds("within-k Spearman", within_k, bootstrap.JACKKNIFE)
        row["within-k Spearman tokens"] = 0 if no_k else self.partners
        row["design effect"] = compute_design_effect(
            self.columns[x].to_numpy(), self.columns[y].to_numpy(), self.prompt
        )
        return {name: row[name] for name in _list_names()}

    def list_notes(self, row: dict[str, Any], no_k: str | None) -> list[str]:
        """What is missing in a row of `pair`, and what a reader should know about it."""
        notes = [f"no coefficient given k: {no_k}"] if no_k else []
        if not row["within-prompt Spearman prompts"]:
            notes.append("no prompt has three tokens that differ")
        if self.interval == bootstrap.JACKKNIFE:
            notes.append(f"these are {self.interval} intervals, because there are only {self.prompts:,} prompts")
        return notes

    def _add_bounds(self, kind: str, values: np.ndarray, interval: str = "") -> dict[str, float]:
        low, high = bootstrap.bound(values, interval or self.interval)
        return {f"{kind} r": float(values[0]), f"{kind} low": low, f"{kind} high": high}

    def _compute_partial(self, x: str, y: str) -> np.ndarray:
        """Spearman's coefficient of x and y given k, by the formula for partial correlation on ranks."""
        i, j, k = self.place[x], self.place[y], self.place["k"]
        xy, xk, yk = self.spearman[:, i, j], self.spearman[:, i, k], self.spearman[:, j, k]
        rest = (1 - xk**2) * (1 - yk**2)
        return (xy - xk * yk) / np.sqrt(np.where(rest > 1e-12, rest, np.nan))

    def _compute_within(self, x: str, y: str) -> tuple[np.ndarray, int]:
        """The mean over prompts of the coefficient within each, in data and resamples, and the number of prompts."""
        groups = self.columns[[x, y]].groupby(self.prompt)
        ranks = groups.rank()
        ranks -= ranks.groupby(self.prompt).transform("mean")
        products = pd.DataFrame({"xy": ranks[x] * ranks[y], "xx": ranks[x] ** 2, "yy": ranks[y] ** 2})
        sums = products.groupby(self.prompt).sum()
        enough = (groups.size() >= 3) & (sums["xx"] > 0) & (sums["yy"] > 0)
        if not enough.any():
            return np.full(len(self.counts), np.nan), 0
        each = (sums["xy"] / np.sqrt(sums["xx"] * sums["yy"]))[enough].to_numpy()
        kept, means = enough.to_numpy(), []
        for some in bootstrap.split_chunks(self.counts):
            drawn = some[:, kept]
            total = drawn.sum(axis=1)
            means.append(drawn @ each / np.where(total, total, np.nan))
        return np.concatenate(means), len(each)


def compute_design_effect(x: np.ndarray, y: np.ndarray, prompt: np.ndarray) -> float:
    """The variance of Spearman's coefficient with prompts drawn at random, divided by that with tokens drawn.

    x, y: (n,); prompt: (n,), the prompts' numbers 0, 1, ...; at least two prompts. Both variances are those of the
    coefficient's linearisation: sums of its influence function (Croux and Dehon, "Influence functions of the Spearman
    and Kendall correlation measures", Statistical Methods and Applications 19, 2010), over prompts or over tokens.
    NaN if the coefficient is undefined or its influence function is zero.
    """
    n = len(x)
    u, v = ((pd.Series(column).rank().to_numpy() - (n + 1) / 2) / n for column in (x, y))
    # How much the others' ranks change with a token: every other token above it gains a rank, ties half a rank.
    gains = sum(_sum_above(ours, theirs) for ours, theirs in ((u, v), (v, u))) / n
    own = u * v
    spread = [column @ column / n for column in (u, v)]
    if min(spread) <= 0:
        return np.nan
    covariance = own.mean()
    r = covariance / np.sqrt(spread[0] * spread[1])
    influence = (own + gains) / np.sqrt(spread[0] * spread[1])
    for column, variance in ((u, spread[0]), (v, spread[1])):
        influence -= r / 2 * (column**2 + 2 * _sum_above(column, column) / n) / variance
    influence -= influence.mean()
    independent = np.sum(influence**2)
    sums = np.bincount(prompt, influence)
    return float(len(sums) / (len(sums) - 1) * np.sum(sums**2) / independent) if independent > 1e-12 * n else np.nan


def _sum_above(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each token, the sum of the values of the tokens with greater keys, and half of those with equal keys."""
    _, group = np.unique(keys, return_inverse=True)
    totals = np.bincount(group, values)
    return (values.sum() - np.cumsum(totals) + totals / 2)[group]
