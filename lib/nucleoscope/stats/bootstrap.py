"""The bootstrap and the jackknife over prompts, and the bins of a scatter plot.

Contract: arrays of tokens, each with the number of its prompt; no tables, no files. The tokens of one prompt depend on
each other, so a resample draws whole prompts with replacement (the cluster bootstrap: Davison and Hinkley, "Bootstrap
Methods and their Application", 1997, section 3.8). Percentiles of resamples are too close together if there are few
prompts: with fewer than `LEAST_PROMPTS`, each prompt is left out once instead, and the interval is that of Student's t
(`compute_jackknife_interval`); scripts/interval_coverage.py shows how often each kind covers the truth.

scipy.stats and statsmodels have no bootstrap of clusters, and their bootstraps copy every resample. These few lines are
therefore ours: 2,000 resamples of 10,000 tokens take a second.

The tokens of a resample are never copied. A resample is a row of counts, how often each prompt was drawn,
and every statistic here takes such counts as weights: values are sorted once, and the ranks and medians of
a resample follow from the running sum of its counts. The cost of a resample is linear in the tokens.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 2000
LEVEL = 0.95
LEAST_PROMPTS = 30  # of percentile intervals
GROUPS = 50  # of prompts, at most, of which a jackknife leaves out one after another
PERCENTILE, JACKKNIFE = "percentile", "jackknife t"  # the kinds of intervals
HUGE = 1e300  # takes the place of infinity in a quantile
BINS = 50  # the published study's
WIDTH, TOKENS = "equal width", "equal tokens"  # what bins have in common
BLOCK = 1 << 14  # numbers per column in memory at once: as many as fit in the cache
COUNTS = 1 << 21  # counts processed at once if no column of tokens is involved: 16 MB


def draw_counts(prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each prompt is drawn in each resample: (resamples, prompts) int32. ValueError for no resamples."""
    _check_resamples(resamples)
    generator, even = np.random.default_rng(seed), np.full(prompts, 1 / prompts)
    counts = np.empty((resamples, prompts), dtype=np.int32)
    for some in split_chunks(counts):
        some[:] = generator.multinomial(prompts, even, size=len(some))
    return counts


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: it must be at least 1")


def leave_out_groups(prompts: int, groups: int = GROUPS, seed: int = 0) -> np.ndarray:
    """Counts in which each of some groups of prompts is left out once: (groups, prompts) int32.

    With as many ``groups`` as prompts, or more, each prompt is a group. Groups are random and differ in size by
    one prompt at most (the delete-a-group jackknife: Kott, Journal of Official Statistics 17, 2001, 521-526).
    """
    groups = min(groups, prompts)
    group = np.random.default_rng(seed).permutation(prompts) % groups if groups < prompts else np.arange(prompts)
    return (group != np.arange(groups)[:, None]).astype(np.int32)


def choose_interval(prompts: int) -> str:
    """The kind of interval of this number of prompts: `PERCENTILE` or `JACKKNIFE`."""
    return PERCENTILE if prompts >= LEAST_PROMPTS else JACKKNIFE


def compute_interval(values: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of resampled statistics: (resamples, ...) -> low (...), high (...).

    Resamples in which a statistic is undefined (NaN) are left out; if they are more than one in twenty,
    the interval is NaN. Where a statistic grows without a bound it may be infinite, and so may the interval.
    """
    values = np.asarray(values, dtype=np.float64)
    undefined = np.isnan(values).mean(axis=0) > 0.05
    filled = np.clip(np.where(undefined, 0.0, values), -HUGE, HUGE)  # between two infinities a quantile would be NaN
    found = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    infinite = np.abs(found) > HUGE / 1e9  # also between a finite number and an infinity
    low, high = np.where(undefined, np.nan, np.where(infinite, np.copysign(np.inf, found), found))
    return low, high


def compute_jackknife_interval(
    estimate: float, without: np.ndarray, level: float = LEVEL, correlation: bool = True
) -> tuple[float, float]:
    """The jackknife-t interval of a statistic, from its values without each group: (), (groups,) -> low, high.

    A group is a prompt or several (`leave_out_groups`). The standard error is the jackknife's (Tukey 1958; Efron and
    Tibshirani 1993, chapter 11), and the quantile that of Student's t with groups - 1 degrees of freedom. A
    ``correlation`` is transformed by Fisher's z = artanh r and back, which covers better and keeps the interval within
    [-1, 1]. NaN if the statistic is undefined without some group.
    """
    values = np.append(np.asarray(without, dtype=np.float64), estimate)
    if correlation:
        values = np.arctanh(np.clip(values, 1e-15 - 1, 1 - 1e-15))
    without, center, groups = values[:-1], values[-1], len(values) - 1
    error = np.sqrt((groups - 1) / groups * np.sum((without - without.mean()) ** 2))
    margin = stdtrit(groups - 1, (1 + level) / 2) * error
    low, high = center - margin, center + margin
    return (float(np.tanh(low)), float(np.tanh(high))) if correlation else (float(low), float(high))


def create_counts(prompts: int, resamples: int = RESAMPLES, seed: int = 0) -> tuple[str, np.ndarray]:
    """The kind of interval of this number of prompts, and the counts (1 + B, prompts) that it is computed from.

    Row 0 is the data; the others are resamples or, with few prompts, leave out one each. ValueError for no resamples.
    """
    _check_resamples(resamples)  # also where none are drawn: whether a command is right must not depend on the data
    kind = choose_interval(prompts)
    drawn = leave_out_groups(prompts) if kind == JACKKNIFE else draw_counts(prompts, resamples, seed)
    return kind, np.concatenate([np.ones((1, prompts), np.int32), drawn])


def bound(values: np.ndarray, kind: str, correlation: bool = True) -> tuple[float, float]:
    """The interval of this ``kind`` of a statistic, from its values (1 + B,) with the rows of `create_counts`."""
    if kind == JACKKNIFE:
        return compute_jackknife_interval(values[0], values[1:], correlation=correlation)
    low, high = compute_interval(values[1:])
    return float(low), float(high)


def split_blocks(counts: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Rows of ``counts`` in blocks that keep (rows, tokens) arrays small."""
    rows = max(1, BLOCK // max(tokens, 1))
    return (counts[start : start + rows] for start in range(0, len(counts), rows))


def split_chunks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of ``counts`` in parts small enough for 64-bit numbers; one part for the study's runs."""
    rows = max(1, COUNTS // counts.shape[1])
    return (counts[start : start + rows] for start in range(0, len(counts), rows))


def is_constant(values: np.ndarray) -> bool:
    """Whether values differ by no more than rounding."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


class Ranks:
    """Midranks of one column of tokens in any resample: values (n,), prompt (n,) int.

    With ``stratum`` (n,), tokens are ordered by stratum first, so that the difference from ``Ranks(stratum, prompt)``
    is the rank within the stratum, minus its mean there.
    """

    def __init__(self, values: np.ndarray, prompt: np.ndarray, stratum: np.ndarray | None = None):
        keys = (values,) if stratum is None else (values, stratum)
        order = np.lexsort(keys)
        new = np.ones(len(order), dtype=bool)
        new[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
        self.prompt, self.ends = prompt[order], np.append(np.flatnonzero(new)[1:], len(order))
        self.group = np.empty(len(order), dtype=np.intp)  # of equal values, for each token
        self.group[order] = np.cumsum(new) - 1

    def accumulate(self, counts: np.ndarray) -> np.ndarray:
        """(B, prompts) counts -> (B, groups + 1): how many tokens of a resample are below each value, and in all."""
        running = np.zeros(
            (len(counts), len(self.prompt) + 1), dtype=np.int64
        )  # sums of floats take five times as long
        np.cumsum(counts.take(self.prompt, axis=1), axis=1, out=running[:, 1:])  # take is twice as fast as an index
        return running if len(self.ends) == len(self.prompt) else running.take(np.append(0, self.ends), axis=1)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(B, prompts) counts -> (B, n): twice the midrank minus one, whose mean is the resample's size."""
        running = self.accumulate(counts)
        return (running[:, :-1] + running[:, 1:]).take(self.group, axis=1)


def compute_spearman(
    values: np.ndarray, prompt: np.ndarray, counts: np.ndarray, stratum: np.ndarray | None = None
) -> np.ndarray:
    """Spearman's coefficients between columns: (n, v), (n,), (B, prompts) -> (B, v, v); NaN where undefined.

    With ``stratum`` (n,), tokens are compared only within strata: ranks within a stratum, divided by its size plus one
    and minus their mean, are correlated over all strata. These are the standardised ranks of van Elteren (1960), whose
    weights Taylor (Biometrics 43, 1987, 409-416) derives for Spearman's coefficient too: a stratum of N tokens counts
    about N times. A stratum of one token does not count.
    """
    ranks = [Ranks(column, prompt, stratum) for column in values.T]
    strata = None if stratum is None else Ranks(stratum, prompt)
    parts = []
    for block in split_blocks(counts, len(values)):
        some = block.astype(np.int64)
        weights = some.take(prompt, axis=1).astype(np.float64)
        if strata is None:
            center = weights.sum(axis=1)[:, None]
        else:
            running = strata.accumulate(some)
            center = (running[:, :-1] + running[:, 1:]).take(strata.group, axis=1)
            weights /= (np.diff(running, axis=1) + 1).take(strata.group, axis=1) ** 2
        centered = np.empty((len(some), len(ranks), len(values)))  # (b, v, n)
        for place, rank in enumerate(ranks):
            np.subtract(rank(some), center, out=centered[:, place])
        parts.append((centered * weights[:, None]) @ centered.transpose(0, 2, 1))
    return _normalise(np.concatenate(parts), np.zeros(values.shape[1]))


def compute_pearson(values: np.ndarray, prompt: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's coefficients between columns: (n, v), (n,), (B, prompts) -> (B, v, v); NaN where undefined.

    The sums of each prompt are computed once; a resample is a weighted sum of them.
    """
    prompts, centered = counts.shape[1], values - values.mean(axis=0)
    sizes = np.bincount(prompt, minlength=prompts)
    sums = np.stack([np.bincount(prompt, column, prompts) for column in centered.T], axis=1)  # (prompts, v)
    products = np.zeros((prompts, values.shape[1], values.shape[1]))
    for i, j in np.ndindex(products.shape[1:]):
        products[:, i, j] = np.bincount(prompt, centered[:, i] * centered[:, j], prompts)
    covariances = []
    for some in split_chunks(counts):
        total = (some @ sizes)[:, None]
        means = some @ sums / total
        moments = np.tensordot(some, products, axes=1) / total[:, :, None]
        covariances.append(moments - means[:, :, None] * means[:, None, :])
    return _normalise(np.concatenate(covariances), 1e-14 * values.var(axis=0))


def _normalise(covariances: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Covariances (B, v, v) as correlations; a variance up to ``floor`` (v,) counts as zero."""
    variances = np.einsum("bii->bi", covariances)
    deviations = np.sqrt(np.where(variances > floor, variances, np.nan))
    return np.clip(covariances / (deviations[:, :, None] * deviations[:, None, :]), -1, 1)


def choose_bins(n: int) -> int:
    """Bins for n tokens: the square root of n, at most `BINS`. The medians of fifty bins of 120 tokens are noise."""
    return int(np.clip(round(n**0.5), 1, BINS))


class Bins:
    """Bins of x, and statistics of y in them, in the data or in any resample; by default as many as `choose_bins` says.

    x, y, prompt: (n,). ``edges`` (bins + 1,) go from the smallest to the greatest x of the data, so
    resamples have the same bins: of equal width, with ``centers`` in the middle, or at quantiles, with equally many
    tokens and the median x as center (fewer bins, if many tokens have the same x). A value on an inner edge belongs to
    the bin on its right. The statistics of an empty bin are NaN.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, prompt: np.ndarray, bins: int = 0, equal: str = WIDTH):
        bins = bins or choose_bins(len(x))
        self.edges = np.linspace(x.min(), x.max(), bins + 1)
        self.centers = (self.edges[:-1] + self.edges[1:]) / 2
        if equal == TOKENS:
            self.edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
            self.centers = (self.edges[:-1] + self.edges[1:]) / 2  # of empty bins
            bins = max(len(self.edges) - 1, 1)
        place = np.clip(np.searchsorted(self.edges, x, side="right") - 1, 0, bins - 1)
        order = np.lexsort((y, place))
        self.y, self.prompt = np.asarray(y, dtype=np.float64)[order], np.asarray(prompt)[order]
        self.ends = np.searchsorted(place[order], np.arange(bins + 1))  # bin b contains ends[b]:ends[b + 1]
        self.count = np.diff(self.ends)
        if equal == TOKENS:
            parts = np.split(np.asarray(x)[order], self.ends[1:-1])
            self.centers = np.array(
                [np.median(part) if len(part) else middle for part, middle in zip(parts, self.centers, strict=True)]
            )

    def compute_medians(self) -> np.ndarray:
        """Medians (bins,) of y in the data."""
        return self.compute_sizes_and_medians(self.count_once())[1][0]

    def count_once(self) -> np.ndarray:
        """The counts of the data itself: every prompt once, (1, prompts)."""
        return np.ones((1, self.prompt.max() + 1), dtype=np.int64)

    def compute_sizes_and_medians(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B, prompts) counts -> tokens (B, bins), medians (B, bins) of each bin in each resample."""
        parts = [self._compute_medians(some) for some in split_blocks(counts, len(self.y))]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _compute_medians(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        running = np.zeros((len(counts), len(self.y) + 1), dtype=np.int64)
        np.cumsum(counts.take(self.prompt, axis=1), axis=1, out=running[:, 1:])
        starts, sizes = running[:, self.ends[:-1]], np.diff(running[:, self.ends], axis=1)
        targets = np.stack([starts + np.maximum(sizes - 1, 0) // 2, starts + sizes // 2], axis=1)  # (B, 2, bins)
        found = np.stack(
            [row.searchsorted(own, side="right") for row, own in zip(running[:, 1:], targets, strict=True)]
        )
        middles = self.y.take(found, mode="clip")
        return sizes, np.where(sizes > 0, (middles[:, 0] + middles[:, 1]) / 2, np.nan)

    def compute_means(self, counts: np.ndarray) -> np.ndarray:
        """(B, prompts) counts -> means (B, bins)."""
        prompts, bins = counts.shape[1], len(self.count)
        group = np.repeat(np.arange(bins), self.count) + self.prompt * bins
        sizes = np.bincount(group, minlength=prompts * bins).reshape(prompts, bins)
        sums = np.bincount(group, self.y, minlength=prompts * bins).reshape(prompts, bins)
        with np.errstate(invalid="ignore"):  # an empty bin gives 0 / 0, which is NaN as documented
            return np.concatenate([(some @ sums) / (some @ sizes) for some in split_chunks(counts)])

    def compute_deviations(self) -> np.ndarray:
        """Standard deviations (bins,) of y in the data, with divisor n as in numpy."""
        groups = np.split(self.y, self.ends[1:-1])
        return np.array([group.std() if len(group) else np.nan for group in groups])
