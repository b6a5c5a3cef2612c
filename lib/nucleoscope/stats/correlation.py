"""Correlation coefficients from a table of tokens, with what is needed to judge them.

Contract: tables as `results.load_table` returns them; no files, no figures. Tokens with k = 1 have no
pair to compare; they are counted and left out.

Tokens of one prompt depend on each other, so intervals come from resampling prompts, not tokens
(`bootstrap`). The tables contain p-values because the published study gives them. They treat
tokens as independent and are therefore usually far too small; rely on the intervals.
"""

import io
from collections.abc import Mapping
from functools import partial
from importlib import resources
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import betaln, stdtr  # not scipy.stats, which takes half a second to import

from nucleoscope.stats import bootstrap
from nucleoscope.store.results import count_tokens, select, select_choices

PAIRS = (  # the first is the study's; each of the others replaces one quantity
    ("entropy", "cosine"),
    ("full_entropy", "cosine"),
    ("entropy", "weighted_cosine"),
    ("similarity_entropy", "cosine"),
)
PUBLISHED_COLUMNS = ["Model", "Dataset", "Pearson r", "Pearson p", "Spearman r", "Spearman p"]
COUNTS = ["tokens", "tokens with k > 1", "prompts"]
NEED = 520  # maximum bytes per token in `compute_coefficients`, without the counts of the resamples
Tables = Mapping[tuple[str, str], pd.DataFrame]


def compute_statistics(
    tables: Tables, resamples: int = bootstrap.RESAMPLES, seed: int = 0, jobs: int | None = 1
) -> pd.DataFrame:
    """The table of the study: one row per run, from {(model, dataset): table of its tokens}.

    Columns: the published ones first (Model, Dataset, Pearson r, Pearson p, Spearman r, Spearman p),
    then those of `compute_coefficients`, then the same for the other `PAIRS`, each prefixed with the name of the
    quantity that differs. What cannot be computed is NaN, and ``note`` says why.

    The 15 runs of the study, 10,000 tokens each, take about 25 s on one core, less with more
    ``jobs`` (processes; None means one per core): a resample needs no sorting, only a running sum
    over each sorted column (`bootstrap.Ranks`), and Pearson's coefficient only sums over prompts
    (`bootstrap.compute_pearson`). From `results.StoredTables`, each process reads one run at a time.
    """
    rows, keys = [], sorted(tables)
    columns = {"prompt", "k", *chain.from_iterable(PAIRS)}
    parts = [select(tables, [key], columns) for key in keys]
    need = NEED * max(map(count_tokens, parts), default=0)
    measured = partial(_compute_coefficients, resamples=resamples, seed=seed)
    for (model, dataset), pairs in zip(keys, bootstrap.map_parallel(measured, parts, jobs, need), strict=True):
        row: dict[str, Any] = {"Model": model, "Dataset": dataset, **pairs.iloc[0]}
        for (x, y), values in list(pairs.iterrows())[1:]:
            name = y if x == "entropy" else x
            row |= {f"{name}: {key}": value for key, value in values.items() if key not in (*COUNTS, "note")}
        row["note"] = "; ".join(dict.fromkeys(note for note in pairs["note"] if note))
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else [*PUBLISHED_COLUMNS, *COUNTS, "note"])
    others = [name for name in frame.columns if name not in (*PUBLISHED_COLUMNS, "note")]
    return frame[[*PUBLISHED_COLUMNS, *others, "note"]]


def _compute_coefficients(run: Tables, resamples: int, seed: int) -> pd.DataFrame:
    (key,) = run
    return compute_coefficients(run[key], PAIRS, resamples, seed)


def compute_coefficients(
    table: pd.DataFrame,
    pairs: tuple[tuple[str, str], ...] = PAIRS[:1],
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Coefficients of some pairs of quantities in one run: one row per pair, indexed by (x, y).

    Columns: tokens, tokens with k > 1, prompts (that have any of those); Pearson r and p, Spearman r
    and p, with log10 of each p; the mean of the prompts' own Spearman coefficients and how many
    prompts it is based on (three tokens and some variation are needed); Spearman's coefficient given k
    (partial, over ranks, so given log k as well); low and high of each, the bounds of its 95 %
    interval; note. p is text, because a double cannot hold 1e-700.
    """
    names = list(dict.fromkeys([*(name for pair in pairs for name in pair), "k"]))
    chosen = select_choices(
        table[list(dict.fromkeys([*names, "entropy", "cosine", "prompt"]))]
    )  # few columns save memory
    finite = chosen[np.isfinite(chosen[["entropy", "cosine"]]).all(axis=1)]
    notes = {name: note for name in names if (note := _find_defect(finite[name], name))}
    prompt, labels = pd.factorize(finite["prompt"])
    general = _find_shortage(len(finite), len(labels))
    head = {"tokens": len(table), "tokens with k > 1": len(chosen), "prompts": len(labels)}
    columns = [name for name in names if name not in notes]
    sample = None if general else _Sample(finite[columns].astype(float), prompt, resamples, seed)
    left_out = len(chosen) - len(finite)
    rows = []
    for x, y in pairs:
        why = general or "; ".join(notes[name] for name in (x, y) if name in notes)
        found = dict.fromkeys(_list_names(), np.nan) if why else sample.compute_pair(x, y, notes.get("k"))
        more = [f"{left_out} tokens left out: entropy or cosine is not finite"] if left_out else []
        more += [] if why else sample.list_notes(found, notes.get("k"))
        rows.append({**head, **found, "note": "; ".join([why, *more] if why else more)})
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(pairs, names=["x", "y"]))


def load_published() -> pd.DataFrame:
    """The published study's 15 rows, from published_correlations.csv, which names their source."""
    text = resources.files("nucleoscope.stats").joinpath("published_correlations.csv").read_text(encoding="utf-8")
    return pd.read_csv(io.StringIO(text), comment="#")


def compute_log10_p(r: float, n: int) -> float:
    """log10 of the two-sided p of a coefficient r of n independent pairs, however small p is.

    Student's t test with n - 2 degrees of freedom, as in scipy's pearsonr and spearmanr. If p is too small
    for a double, it is computed as the incomplete beta function I_x(a, 1/2) with x = 1 - r^2 and
    a = n/2 - 1, by its hypergeometric series (DLMF 8.17.8 and 15.8.1), whose terms decrease like x / (a r^2).
    """
    if not abs(r) < 1:  # also NaN
        return np.nan if np.isnan(r) else -np.inf
    x, a = (1 - r) * (1 + r), n / 2 - 1
    p = 2 * stdtr(n - 2, -abs(r) * np.sqrt((n - 2) / x))
    if p > 1e-290:
        return float(np.log10(p))
    k = np.arange(20)
    series = np.cumprod(np.r_[1, -(k + 0.5) / (a + 1 + k) * x / r**2]).sum()
    return float((a * np.log(x) - np.log(abs(r)) - np.log(a) - betaln(a, 0.5) + np.log(series)) / np.log(10))


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
    return [*tests, *within, *(f"partial Spearman {part}" for part in ("r", "low", "high"))]


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
    """The columns of one run, in the data and in every resample: 0 is the data, 1... the resamples."""

    def __init__(self, columns: pd.DataFrame, prompt: np.ndarray, resamples: int, seed: int):
        self.columns, self.prompt, self.prompts = columns, prompt, int(prompt.max()) + 1
        self.place = {name: i for i, name in enumerate(columns)}
        once = np.ones((1, self.prompts), dtype=np.int32)
        self.counts = np.concatenate([once, bootstrap.draw_counts(self.prompts, resamples, seed)])
        self.spearman = bootstrap.compute_spearman(columns.to_numpy(), prompt, self.counts)
        self.pearson = bootstrap.compute_pearson(columns.to_numpy(), prompt, self.counts)

    def compute_pair(self, x: str, y: str, no_partial: str | None) -> dict[str, Any]:
        """The statistics of `compute_coefficients` for one pair."""
        row = {}
        for kind, matrices in (("Pearson", self.pearson), ("Spearman", self.spearman)):
            row |= self._add_bounds(kind, matrices[:, self.place[x], self.place[y]])
            row[f"{kind} log10 p"] = compute_log10_p(row[f"{kind} r"], len(self.prompt))
            row[f"{kind} p"] = format_power_of_ten(row[f"{kind} log10 p"])
        means, used = self._compute_within(x, y)
        row |= self._add_bounds("within-prompt Spearman", means) | {"within-prompt Spearman prompts": used}
        partial = np.full(len(self.counts), np.nan) if no_partial else self._compute_partial(x, y)
        row |= self._add_bounds("partial Spearman", partial)
        return {name: row[name] for name in _list_names()}

    def list_notes(self, row: dict[str, Any], no_partial: str | None) -> list[str]:
        """What is missing in a row of `pair`, and what a reader should know about it."""
        notes = [f"no partial coefficient: {no_partial}"] if no_partial else []
        if not row["within-prompt Spearman prompts"]:
            notes.append("no prompt has three tokens that differ")
        if self.prompts < 20:
            notes.append(f"intervals from {self.prompts} prompts are too narrow")
        return notes

    def _add_bounds(self, kind: str, values: np.ndarray) -> dict[str, float]:
        low, high = bootstrap.compute_interval(values[1:])
        return {f"{kind} r": float(values[0]), f"{kind} low": float(low), f"{kind} high": float(high)}

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
