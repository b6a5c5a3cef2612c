"""How well a model's probabilities describe a text, and how two texts for the same prompts differ.

Contract: tables of tokens with the columns of `text_pairs.load_pair`; no files. A token's text was either there before
(`EXISTING`) or drawn by the model from its nucleus (`WRITTEN`).

Let p be the distribution of a token at the run's temperature, N its nucleus, m the mass of N under p, and q = p / m on
N. If the tokens of a text were drawn from p, the model would be calibrated on it: a token would be outside N with
probability 1 - m, and its expected surprisal would be the full entropy H(p) (entropy calibration: Braverman et al.,
"Calibration, Entropy Rates, and Memory in Language Models", ICML 2020). Its variance would be the full varentropy.
What a model writes is drawn from q: its tokens are in N, and their expected surprisal under p is the cross entropy
-sum q log p = H(q) - log m, with the variance of -log q under q, the varentropy.

Given what precedes it, each token's deviation from these expectations has the mean 0, so sums of deviations are
martingales whose variance is the sum of the tokens' variances, also within a text. From this follow the bands of what
a calibrated model would give: for surprisal a normal approximation; for the share outside N the distribution of the
number of tokens outside if these are independent events with probabilities 1 - m (Poisson binomial), which is right
also at small counts.

p also gives a probability e to the end of the text, but no recorded token is an end, since nothing is recorded of a
text that ends. The recorded tokens of a calibrated source are therefore drawn from p given that the text continues,
and all of the above is taken of that distribution (`condition_on_continuing`): with e_N the probability of ends in N,
the mass of N is (m - e_N) / (1 - e), and the full entropy follows from the chain rule (Shannon, "A Mathematical Theory
of Communication", 1948, section 6): H(p) = h(e) + (1 - e) H' with one end, h the binary entropy. Given what precedes a
token and that the text continues, its deviation from these expectations has the mean 0, so sums are martingales again.
Files of earlier versions do not say how likely an end was. Their expectations include it: by them, a calibrated source
has a share outside that is off by up to e, and a surprisal that is off by -e (log((1 - e) / e) - H'), so that every
judgement has to mention it.

The intervals of what was measured come from resampling prompts, or leaving out each (`bootstrap.choose_interval`), and
a pair's prompts are resampled together.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri, xlogy

from nucleoscope.stats import bootstrap
from nucleoscope.store.text_pairs import ENDS, MASS

EXISTING, WRITTEN = "existing", "written"
CLOPPER_PEARSON = "Clopper-Pearson"  # a kind of interval, beside those of `bootstrap`
ALL = "all"  # the row of all tokens among those of bins
BINS, LEAST = 10, 40  # bins of entropy at most, tokens of a bin at least
OUTSIDE, SURPRISAL = "outside", "surprisal"  # what is compared with its expectation
EXCESS, EXCESS_GIVEN = "excess", "excess_given_no_end"  # surprisal minus full entropy, and both if a text continues
GIVEN, LEFT_OUT = "given no end", "left out"  # columns of `calibrate`
NEAR_END = 0.999  # above this e, too few digits of 1 - e are known
ROUNDING = 1e-6  # of e, which is float32
MEASURES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {  # what two texts are compared by
    "surprisal": lambda table: table["surprisal"],
    "full_entropy": lambda table: table["full_entropy"],
    EXCESS: lambda table: table["surprisal"] - table["full_entropy"],
    "entropy": lambda table: table["entropy"],
    "k": lambda table: table["k"],
    "outside": lambda table: (table["rank"] > table["k"]).where(table["rank"].notna()),
    "likeliest": lambda table: (table["rank"] == 1).where(table["rank"].notna()),
    "margin": lambda table: table["margin"],
    "end_probability": lambda table: table["end_probability"],
    "cosine": lambda table: table["cosine"],
}
RANGES = {EXCESS: (-np.inf, np.inf), "k": (1, np.inf), "cosine": (-1, 1)} | dict.fromkeys(
    ("outside", "likeliest", "margin", "end_probability"), (0, 1)
)  # of the means of one text; of others, (0, inf)


class Bounded(NamedTuple):
    """Statistics (v,) with the ends of their 95% intervals, NaN where there is none, and the kind of interval."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kind: str


def knows_ends(table: pd.DataFrame) -> bool:
    """Whether the tokens of a text have the probability of an end, and those in their nuclei."""
    return bool(np.isfinite(table[["end_probability", *ENDS]]).all(axis=1).any())


def condition_on_continuing(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a text whose quantities are those of p given that the text continues, that is, of no end.

    Changed are surprisal, full entropy and varentropy, the nucleus's mass, entropy and varentropy; the nucleus itself
    and ranks are not. With I = -log p, the sums of p, p I and p I^2 over all tokens, or over the nucleus, follow from
    the recorded quantities, and those over ends are subtracted from them. The ends in the nucleus are known one by one.
    What the others have of e is taken as one token: if n of them share e', the full entropy is too high by at most
    e' log(n) / (1 - e). NaN where the quantities or ends are unknown, where the token is an end, and where e is above
    `NEAR_END`; what is NaN for the last reason is decided before the token is seen, and biases no mean.
    """
    inside, information, squared = (table[name].to_numpy(dtype=np.float64) for name in ENDS)
    beyond = table["end_probability"].to_numpy(dtype=np.float64) - inside
    beyond = np.where(beyond < ROUNDING, 0 * beyond, beyond)  # NaN stays NaN
    going = 1 - inside - beyond
    going[going < 1 - NEAR_END] = np.nan
    log = np.log(np.where(beyond > 0, beyond, 1))
    full, full_variance, entropy, variance, mass = (
        table[name].to_numpy(dtype=np.float64)
        for name in ("full_entropy", "full_varentropy", "entropy", "varentropy", MASS)
    )
    full_mean = (full - information + xlogy(beyond, beyond)) / going
    full_square = (full_variance + full**2 - squared - beyond * log**2) / going
    rest = np.where(mass - inside > ROUNDING, mass - inside, np.nan)  # of the nucleus; nothing if it has only ends
    expected = entropy - np.log(mass)  # of I in the nucleus
    mean = (mass * expected - information) / rest
    square = (mass * (variance + expected**2) - squared) / rest
    given = {
        "surprisal": table["surprisal"].to_numpy(dtype=np.float64) + np.log(going),
        "full_entropy": full_mean + np.log(going),
        "full_varentropy": full_square - full_mean**2,
        "entropy": np.where(np.isnan(going), np.nan, mean + np.log(rest)),
        "varentropy": np.where(np.isnan(going), np.nan, square - mean**2),
        MASS: np.clip((mass - inside) / going, 0, 1),
    }
    return table.assign(**{name: np.maximum(values, 0) for name, values in given.items()})  # rounded, none is below 0


def list_comparison_columns() -> list[str]:
    """The columns of `compare_texts`."""
    parts = [f"{name}{end}" for name in (EXISTING, WRITTEN, "difference") for end in ("", " low", " high")]
    return ["quantity", *parts, "prompts", f"{EXISTING} tokens", f"{WRITTEN} tokens", "interval"]


def compare_texts(
    existing: pd.DataFrame, written: pd.DataFrame, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Means over the tokens of two texts for the same prompts, and their differences, existing minus written.

    One row for each of `MEASURES`, with `EXCESS_GIVEN` in the place of `EXCESS` if both texts have the probabilities of
    ends: the mean of surprisal minus full entropy, both given that the text continues. Prompts without a token in
    either text are left out of both. ``tokens``: those that have the quantity, since a token with one candidate has no
    cosine; a value that is not finite is no value.
    """
    prompts = np.intersect1d(existing["prompt"], written["prompt"])
    sums, sizes = [], []
    given = knows_ends(existing) and knows_ends(written)
    for table in (existing, written):
        own = table[table["prompt"].isin(prompts)]
        columns = {name: np.asarray(measure(own), dtype=np.float64) for name, measure in MEASURES.items()}
        if given:
            columns[EXCESS] = np.asarray(MEASURES[EXCESS](condition_on_continuing(own)))
        values = np.column_stack(list(columns.values()))
        found = _sum_by_prompt(values, np.searchsorted(prompts, own["prompt"]), len(prompts))
        sums.append(found[0])
        sizes.append(found[1])
    width = len(MEASURES)

    def compute(means: np.ndarray) -> np.ndarray:
        return np.concatenate([means, means[:, :width] - means[:, width:]], axis=1)

    found = _bound(np.concatenate(sums, axis=1), np.concatenate(sizes, axis=1), resamples, seed, compute)
    ranges = np.array([RANGES.get(name, (0, np.inf)) for name in MEASURES] * 2)  # a t interval knows of none
    for ends in (found.low, found.high):
        ends[: 2 * width] = np.clip(ends[: 2 * width], *ranges.T)
    rows = []
    for place, name in enumerate(MEASURES):
        row: dict = {"quantity": EXCESS_GIVEN if given and name == EXCESS else name}
        for part, start in zip((EXISTING, WRITTEN, "difference"), (0, width, 2 * width), strict=True):
            row |= {f"{part}{end}": found[i][start + place] for i, end in enumerate(("", " low", " high"))}
        tokens = {
            f"{part} tokens": int(size[:, place].sum()) for part, size in zip((EXISTING, WRITTEN), sizes, strict=True)
        }
        rows.append(row | {"prompts": len(prompts)} | tokens | {"interval": found.kind})
    return pd.DataFrame(rows, columns=list_comparison_columns())


def list_calibration_columns() -> list[str]:
    """The columns of `calibrate`."""
    kinds = [f"{name}{kind}" for name in (OUTSIDE, SURPRISAL) for kind in ("", " expected", " difference")]
    parts = [f"{kind}{end}" for kind in kinds for end in ("", " low", " high")]
    kinds = [f"{OUTSIDE} p", *(f"{name} interval" for name in (OUTSIDE, SURPRISAL))]
    return ["bin", "from", "to", "tokens", LEFT_OUT, "prompts", "full entropy", *parts, *kinds, GIVEN]


def calibrate(
    table: pd.DataFrame, text: str, bins: int = BINS, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """How often tokens are outside the nucleus and how surprising they are, beside what their source would give.

    ``text``: `EXISTING` is compared with tokens drawn from p, `WRITTEN` with tokens drawn from q. One row for all
    tokens, then one for each bin of full entropy; bins are at quantiles, at most ``bins`` with at least `LEAST` tokens
    each. Columns: ``from``, ``to`` and the mean of full entropy; then for both quantities the mean with its interval,
    the expectation with the band that contains 95% of the means of such tokens (at least 95% of the shares, which
    are discrete), NaN where an older file lacks the variances, and the difference, mean minus expectation, with its
    interval. ``outside p``: the two-sided p-value of the number of tokens outside; Holm's correction is the caller's.
    ``outside interval`` and ``surprisal interval`` name the kinds of intervals. If no token of a bin is outside its
    nucleus, or all are, resampling cannot tell how sure that is, and the interval of the share is that of Clopper and
    Pearson (Biometrika 26, 1934) for independent tokens. ``given no end``: whether all of these are given that the
    text continues, which they are if the table has the probabilities of ends (`condition_on_continuing`). ``left out``,
    in the row of all tokens: how many are in no row, because a number is unknown, because they are an end, or because
    an end was all but certain. ValueError for another ``text``.
    """
    if text not in (EXISTING, WRITTEN):
        raise ValueError(f"text is '{text}': it must be {EXISTING} or {WRITTEN}")
    needed = ["full_entropy", "surprisal", "rank", "mass", *(["entropy"] if text == WRITTEN else [])]
    given = knows_ends(table)
    conditioned = condition_on_continuing(table) if given else table
    known = conditioned[np.isfinite(conditioned[needed]).all(axis=1)]
    rows = []
    if len(known):
        rows = [_calibrate_some(known, text, resamples, seed) | {"bin": ALL, LEFT_OUT: len(table) - len(known)}]
        place = assign_bins(known["full_entropy"].to_numpy(), bins)
        parts = [known[place == number] for number in np.unique(place)]
        found = [_calibrate_some(part, text, resamples, seed) for part in parts] if len(parts) > 1 else rows
        rows = rows + [row | {"bin": str(number), LEFT_OUT: 0} for number, row in enumerate(found, 1)]
        rows = [row | {GIVEN: given} for row in rows]
    return pd.DataFrame(rows, columns=list_calibration_columns())


def assign_bins(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each value, counted from 0: (n,) -> (n,) intp. Edges are quantiles; equal ones make fewer bins."""
    bins = int(np.clip(len(values) // LEAST, 1, bins))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))


def _calibrate_some(table: pd.DataFrame, text: str, resamples: int, seed: int) -> dict:
    """A row of `calibrate` for some tokens; at least one."""
    outside = (table["rank"] > table["k"]).to_numpy(dtype=np.float64)
    surprisal, mass = table["surprisal"].to_numpy(), table["mass"].to_numpy()
    if text == EXISTING:
        expected = np.column_stack([1 - mass, table["full_entropy"]])
        variance = table["full_varentropy"].to_numpy()
    else:
        expected = np.column_stack([np.zeros(len(table)), table["entropy"] - np.log(mass)])
        variance = table["varentropy"].to_numpy()
    measured = np.column_stack([outside, surprisal])
    numbers, prompt = np.unique(table["prompt"], return_inverse=True)
    values = np.concatenate([measured, measured - expected], axis=1)
    found = _bound(*_sum_by_prompt(values, prompt, len(numbers)), resamples, seed)
    low, high, kind = found.low.copy(), found.high.copy(), found.kind
    if text == EXISTING and outside.min() == outside.max():
        low[0], high[0] = _bound_certain(bool(outside[0]), len(outside))
        kind = CLOPPER_PEARSON
        low[2], high[2] = low[0] - expected[:, 0].mean(), high[0] - expected[:, 0].mean()
    low[:2], high[0] = np.maximum(low[:2], 0), min(high[0], 1)
    entropy = table["full_entropy"]
    row = {"from": entropy.min(), "to": entropy.max(), "tokens": len(table), "prompts": len(numbers)}
    row |= {"full entropy": entropy.mean(), f"{OUTSIDE} interval": kind, f"{SURPRISAL} interval": found.kind}
    counts, p = judge_count(expected[:, 0], int(outside.sum()))
    margin = -ndtri((1 - bootstrap.LEVEL) / 2) * np.sqrt(variance.sum()) / len(table)  # NaN if any is missing
    center = expected[:, 1].mean()
    bands = np.array(counts) / len(table), (np.maximum(center - margin, 0), center + margin)
    row[f"{OUTSIDE} p"] = p
    for place, (name, band) in enumerate(zip((OUTSIDE, SURPRISAL), bands, strict=True)):
        row |= {name: found.value[place], f"{name} low": low[place], f"{name} high": high[place]}
        row |= {f"{name} expected": expected[:, place].mean(), f"{name} expected low": band[0]}
        row |= {f"{name} expected high": band[1], f"{name} difference": found.value[2 + place]}
        row |= {f"{name} difference low": low[2 + place], f"{name} difference high": high[2 + place]}
    return row


def compute_count_distribution(probabilities: np.ndarray) -> np.ndarray:
    """The Poisson binomial distribution of how many of n independent events occur: (n,) -> (n + 1,).

    Distributions of two halves are convolved, from single events up; errors are around 1e-16 in each probability.
    """
    n = len(probabilities)
    padded = np.zeros(1 << max(n - 1, 0).bit_length())
    padded[:n] = probabilities
    rows = np.column_stack([1 - padded, padded])
    while len(rows) > 1:
        size = 2 * rows.shape[1] - 1
        one, other = (np.fft.rfft(rows[start::2], size, axis=1) for start in (0, 1))
        rows = np.maximum(np.fft.irfft(one * other, size, axis=1), 0)
    return rows[0, : n + 1]


def judge_count(probabilities: np.ndarray, count: int) -> tuple[tuple[int, int], float]:
    """What a count of independent events says of their probabilities: the counts at the ends of its band, and p.

    At least 95% of counts are in the band, and at most 2.5% are on each side of it. p is two-sided: twice the smaller
    tail with the count itself, at most 1, so that p <= 0.05 exactly where the count is outside the band.
    """
    at_most = np.minimum(np.cumsum(compute_count_distribution(probabilities)), 1)
    tail = (1 - bootstrap.LEVEL) / 2
    low, high = np.searchsorted(at_most, tail, side="right"), np.searchsorted(at_most, 1 - tail)
    least = 1 - (at_most[count - 1] if count else 0)
    last = len(probabilities)
    return (min(int(low), last), min(int(high), last)), float(min(1, 2 * min(at_most[count], least)))


def adjust_by_holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for how many there are: (n,) -> (n,) (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _bound_certain(every: bool, tokens: int) -> tuple[float, float]:
    """The interval of a share that is 0 or, with ``every``, 1 among some tokens."""
    edge = ((1 - bootstrap.LEVEL) / 2) ** (1 / tokens)
    return (edge, 1.0) if every else (0.0, 1 - edge)


def _sum_by_prompt(values: np.ndarray, prompt: np.ndarray, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the finite values of each prompt, and how many there are: (n, v), (n,) -> two arrays (prompts, v)."""
    finite = np.isfinite(values)
    filled = np.where(finite, values, 0)
    sums = np.column_stack([np.bincount(prompt, column, prompts) for column in filled.T])
    return sums, np.column_stack([np.bincount(prompt, column, prompts) for column in finite.T])


def _bound(
    sums: np.ndarray,
    sizes: np.ndarray,
    resamples: int,
    seed: int,
    compute: Callable[[np.ndarray], np.ndarray] = lambda means: means,
) -> Bounded:
    """Means over tokens and their intervals, from the sums and numbers of each prompt: (prompts, v) each.

    ``compute`` turns the means (B, v) of resamples into the statistics (B, w).
    """
    prompts = len(sums)
    kind = bootstrap.choose_interval(prompts)

    def resample(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # no tokens: 0 / 0 is NaN, as documented
            return compute((counts @ sums) / (counts @ sizes))

    value = resample(np.ones((1, prompts)))[0]
    if kind == bootstrap.PERCENTILE:
        low, high = bootstrap.compute_interval(resample(bootstrap.draw_counts(prompts, resamples, seed)))
    elif prompts < 2:
        low = high = np.full(len(value), np.nan)
    else:
        without = resample(bootstrap.leave_out_groups(prompts, prompts))
        bounds = [
            bootstrap.compute_jackknife_interval(one, others, correlation=False)
            for one, others in zip(value, without.T, strict=True)
        ]
        low, high = np.array(bounds).T
    return Bounded(value, low, high, kind)
