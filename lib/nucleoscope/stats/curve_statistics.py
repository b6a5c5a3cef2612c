"""Measures how well each curve fits one sample of tokens.

Contract: arrays of tokens, each with the number of its prompt; no tables of runs, no files. The
curves (`curves`) are fitted to the medians of bins (`bootstrap.Bins`), weighted by what resamples say of their
variances; resamples and folds consist of whole prompts and use the bins of all tokens. `fits.fit` explains the numbers.
"""

import numpy as np
from scipy.interpolate import BSpline
from scipy.special import stdtrit
from statsmodels.regression.linear_model import OLS  # statsmodels.api takes as long again to import
from statsmodels.tools import add_constant

from nucleoscope.stats import bootstrap, curves
from nucleoscope.wording import count

FOLDS = 10  # number of groups of prompts for the error on held-out prompts
LEAST_FOLDS = 5  # minimum of those in which the rise can be measured
CLEARLY = 2  # number of standard errors by which a curve must be better than a constant
REJECTED = "not better than a constant"  # how the note of a rejected curve begins
NO_RISE = "no rise measured"  # how the part of a note begins that says why a rise is missing
LEAST_BINS = 8  # minimum of non-empty bins: at most five numbers are fitted, including the error
WEIGHING = 200  # resamples for the variances of the medians: they know a standard error to 5%
RELIABLE = 10  # minimum of tokens in a bin whose median's variance is estimated from its own resamples
REACH = 1.5  # bins: the standard deviation of the kernel that smooths these variances
ROWS = 1 << 17  # rows of a spline's design matrix in memory at once


def find_shortage(x: np.ndarray, y: np.ndarray, prompt: np.ndarray, equal: str = bootstrap.WIDTH) -> str:
    """Why no curve can be fitted to a sample x, y, prompt (n,) with such bins; "" if one can."""
    if len(x) < 3:
        return "fewer than three tokens with k > 1"
    if len(np.unique(prompt)) == 1:
        return "only one prompt has tokens with k > 1"
    if bootstrap.is_constant(x) or bootstrap.is_constant(y):
        return "entropy or cosine is constant"
    bins = np.count_nonzero(bootstrap.Bins(x, y, prompt, equal=equal).count)
    if bins >= LEAST_BINS:
        return ""
    return f"only {count(bins, 'bin')} {'contains' if bins == 1 else 'contain'} tokens; {LEAST_BINS} are needed"


def compute_token_variances(bins: bootstrap.Bins) -> np.ndarray:
    """How much one token of each bin is worth: the variance of the bin's median times its tokens, (bins,).

    The variance is that over resampled prompts. One bin's own estimate is noisy, and 0 where few tokens or ties leave
    the median where it is; so it is averaged over the bins around, by tokens, from bins with `RELIABLE` tokens. The
    weight of a median is the number of tokens divided by this. Weights by tokens alone would be right if the spread
    were the same in all bins; that of cosine is six times as large where entropy is small. All are scaled so that
    weights sum to the tokens; where no median ever moves, all are 1. The resamples are always the same, so that a curve
    is too.
    """
    prompts = int(bins.prompt.max()) + 1
    sizes, medians = bins.compute_sizes_and_medians(bootstrap.draw_counts(prompts, WEIGHING))
    there = (sizes > 0).sum(axis=0)
    usable = (bins.count >= RELIABLE) & (there > 0.95 * WEIGHING)
    if not usable.any():
        return np.ones(len(bins.count))
    values = np.zeros(len(bins.count))
    values[usable] = bins.count[usable] * np.nanvar(medians[:, usable], axis=0)
    place = np.arange(len(values))
    distances = np.abs(place[:, None] - place[usable])
    distances = np.maximum(distances - distances.min(axis=1, keepdims=True), 0)  # far from all, the nearest ones count
    kernel = np.exp(-((distances / REACH) ** 2) / 2) * bins.count[usable]
    smooth = kernel @ values[usable] / kernel.sum(axis=1)
    smooth = np.maximum(smooth, 1e-3 * smooth.max())
    if not smooth.max() > 0:
        return np.ones(len(bins.count))
    return smooth * np.sum(bins.count / smooth) / bins.count.sum()


class Sample:
    """One sample of tokens with its bins, in the data, in every resample, and without each fold.

    x, y: (n,), finite; prompt: (n,), any integers that identify the prompts; ``equal``: the kind of bins.
    `find_shortage` must return "" for them. ValueError if ``resamples`` is less than one. ``seed`` determines the
    resamples and which prompts form a fold: ``fold`` (prompts,), in the order of their numbers. ``data`` contains
    (weights, medians) of the bins, ``without`` such a pair for the tokens outside each fold, ``drawn`` one (B, bins)
    for all resamples. A bin without tokens has weight 0.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        prompt: np.ndarray,
        resamples: int,
        seed: int,
        equal: str = bootstrap.WIDTH,
    ):
        _, self.prompt = np.unique(prompt, return_inverse=True)
        self.x, self.y, prompts = x, y, int(self.prompt.max()) + 1
        self.bins = bootstrap.Bins(x, y, self.prompt, equal=equal)
        variances = compute_token_variances(self.bins)
        self.fold = np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)  # (prompts,)
        kept = (self.fold != np.arange(self.fold.max() + 1)[:, None]).astype(np.int64)  # (folds, prompts)

        def weigh(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sizes, medians = self.bins.compute_sizes_and_medians(counts)
            return sizes / variances, medians

        self.data = tuple(rows[0] for rows in weigh(self.bins.count_once()))
        self.without = list(zip(*weigh(kept), strict=True))
        self.drawn = weigh(bootstrap.draw_counts(prompts, resamples, seed))
        self.fits = {kind: self._fit(kind, self.data) for kind in curves.FORMULAS}
        self.constant = self._compute_held_out("constant")  # one number per token: two at most exist
        self.aicc = {kind: _compute_aicc(*self._compute_error(curve), curve.free) for kind, curve in self.fits.items()}

    def compute_row(self, kind: str) -> dict[str, object]:
        """The columns of `fits.fit` for one of `curves.FORMULAS` that do not depend on other curves.

        delta AICc is still the AICc itself. A rejected curve has no parameters, and a note that says why.
        """
        curve, errors = self.fits[kind], self._compute_held_out(kind)
        refused, error = self._find_refusal(kind, errors), float(errors.mean())
        del errors
        left, bins = self._compute_error(curve)
        total = self._compute_error(self.fits["constant"])[0]
        notes = [refused, curve.note]
        if np.isnan(error) and not curve.note:
            notes.append("no held-out error: no fit was possible without some of the prompts")
        row = {"Curve": kind, "bins": bins, "formula": curves.FORMULAS[kind], "delta AICc": self.aicc[kind]}
        row |= {"R2 (medians)": 1 - left / total if total else np.nan, "held-out error": error}
        if not refused:
            notes.append(self._locate(curve))
            found, determined, doubtful = self._compute_parameters(kind, curve)
            if not determined and not curve.note:
                notes.append("the medians do not determine its parameters")
            row |= found | self._fit_linear(curve(self.x))
            resamples = len(self.drawn[0])
            if doubtful > 0.05 * resamples and not curve.note:
                verb = "does" if doubtful == 1 else "do"
                notes.append(f"{doubtful:,} of {count(resamples, 'resample')} {verb} not determine its parameters")
            row["before peak"] = np.nan if np.isnan(curve.peak) else float(np.mean(self.x < curve.peak))
        if kind == "free":  # also if it is rejected: it may be negative
            rise, why = self.compute_rise()
            row |= rise
            notes.append(why)
        return row | {"note": "; ".join(filter(None, notes))}

    def _compute_error(self, curve: curves.Fit) -> tuple[float, int]:
        """The weighted squared error of a curve on the medians, and the number of medians."""
        weights, medians = self.data
        used = weights > 0
        squares = (medians[used] - curve(self.bins.centers[used])) ** 2
        return float(np.sum(weights[used] * squares)), int(used.sum())

    def _find_refusal(self, kind: str, errors: np.ndarray) -> str:
        """Why a curve is not better than a constant, or an empty string."""
        if kind == "constant":
            return ""
        reasons = [] if self.aicc[kind] < self.aicc["constant"] or kind == "free" else ["by AICc"]
        gain = self.constant - errors
        if np.isfinite(gain).all() and gain.mean() <= CLEARLY * compute_clustered_error(gain, self.prompt):
            reasons.append("by more than two standard errors on held-out prompts")
        return f"{REJECTED} {' or '.join(reasons)}" if reasons else ""

    def _fit(self, kind: str, medians: tuple[np.ndarray, np.ndarray]) -> curves.Fit:
        weights, values = medians
        used = weights > 0
        if used.sum() < LEAST_BINS:
            return curves.Fit(lambda at: np.full(at.shape, np.nan), 0)
        return curves.fit(kind, self.bins.centers[used], values[used], weights[used])

    def _compute_parameters(self, kind: str, curve: curves.Fit) -> tuple[dict[str, float], bool, int]:
        """Parameters and peak with their intervals, from the fits to all resamples.

        Also whether the data determine them, and how many resamples do not. What the medians do not determine is what
        it tends to (`curves.find_limits`), in the data and in resamples.
        """
        names = [*curve.parameters, *([] if np.isnan(curve.peak) else ["peak"])]
        if not names:
            return {}, True, 0
        used = self.data[0] > 0

        def fit_all(weights: np.ndarray, medians: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            centers = self.bins.centers[used]
            found = curves.fit_each(kind, centers, medians[:, used], weights[:, used])
            limits, determined = curves.find_limits(kind, centers, found)
            return np.stack([limits[name] for name in names], axis=1), determined

        weights, medians = self.drawn
        enough = (weights > 0).sum(axis=1) >= LEAST_BINS
        values, determined = np.full((len(weights), len(names)), np.nan), np.zeros(len(weights), dtype=bool)
        if enough.any():
            values[enough], determined[enough] = fit_all(weights[enough], medians[enough])
        own, known = fit_all(*(each[None] for each in self.data))
        columns = zip(names, own[0], *bootstrap.compute_interval(values), strict=True)
        bounded = {
            f"{name}{part}": float(value)
            for name, middle, low, high in columns
            for part, value in (("", middle), (" low", low), (" high", high))
        }
        return bounded, bool(known[0]), int((~determined).sum())

    def compute_rise(self) -> tuple[dict[str, float], str]:
        """How much cosine rises before it falls, and a 95% interval; and why they are missing, or "".

        The highest of some noisy medians is above the first one even if nothing rises. So the free curve is fitted
        without a fold, and the medians of that fold's tokens at the curve's peak and at its first level are compared:
        the difference can be negative, and its mean is 0 where the curve is flat. The interval is that of Student's t
        over the folds. The bump is no help here: it rises from x = 0 whatever the medians do.
        """
        place, found = np.repeat(np.arange(len(self.bins.count)), self.bins.count), []
        fold = self.fold[self.bins.prompt]
        for number, (weights, medians) in enumerate(self.without):
            used = np.flatnonzero(weights > 0)
            levels = self._fit("free", (weights, medians))(self.bins.centers[used])
            if levels[0] == levels.max():
                found.append(0.0)
                continue
            top, first = (
                self.bins.y[(fold == number) & np.isin(place, used[levels == level])]
                for level in (levels.max(), levels[0])
            )
            if len(top) and len(first):
                found.append(np.median(top) - np.median(first))
        if len(found) < LEAST_FOLDS:
            groups = count(LEAST_FOLDS, "group")
            why = f"fewer than {groups} of prompts have tokens at the peak and at the start of the others' free curve"
            return {}, f"{NO_RISE}: {why}"
        if not np.any(found):  # no curve rises, so the differences do not tell how far from 0 a rise could be
            return {"rise": 0.0, "rise low": np.nan, "rise high": np.nan}, ""
        margin = stdtrit(len(found) - 1, (1 + bootstrap.LEVEL) / 2) * np.std(found, ddof=1) / np.sqrt(len(found))
        rise = float(np.mean(found))
        return {"rise": rise, "rise low": rise - margin, "rise high": rise + margin}, ""

    def _locate(self, curve: curves.Fit) -> str:
        inside = np.isnan(curve.peak) or self.bins.edges[0] <= curve.peak <= self.bins.edges[-1]
        return "" if inside else "peak outside the data"

    def _compute_held_out(self, kind: str) -> np.ndarray:
        """Absolute errors (n,) over the tokens of each fold, of the curve fitted to the other folds."""
        errors = np.empty(len(self.x))
        for fold, medians in enumerate(self.without):
            held = self.fold[self.prompt] == fold
            errors[held] = np.abs(self.y[held] - self._fit(kind, medians)(self.x[held]))
        return errors

    def _fit_linear(self, values: np.ndarray) -> dict[str, float]:
        """y = alpha + beta f over tokens, by statsmodels, with standard errors clustered by prompt."""
        if not np.isfinite(values).all():
            return {}
        if np.ptp(values) <= 1e-9 * np.ptp(self.y):  # nothing to regress on
            return {"R2 (tokens)": 0.0, "RMSE (tokens)": float(self.y.std())}
        model = OLS(self.y, add_constant(values))
        result = model.fit(cov_type="cluster", cov_kwds={"groups": self.prompt}, use_t=True)
        (alpha, beta), bounds = result.params, result.conf_int()
        row = {"alpha": alpha, "alpha low": bounds[0, 0], "alpha high": bounds[0, 1]}
        row |= {"beta": beta, "beta low": bounds[1, 0], "beta high": bounds[1, 1]}
        row |= {"R2 (tokens)": result.rsquared, "RMSE (tokens)": np.sqrt(np.mean(result.resid**2))}
        return {name: float(value) for name, value in row.items()}


def compute_explainable(x: np.ndarray, y: np.ndarray) -> float:
    """R2 over tokens of a cubic spline fitted to them, with knots at the deciles of x: a reference for smooth curves.

    x, y: (n,), finite, neither of them constant. At most `ROWS` rows of the spline's design matrix are
    in memory at once.
    """
    inner = np.unique(np.quantile(x, np.arange(1, 10) / 10))
    inner = inner[(inner > x.min()) & (inner < x.max())]
    knots = np.r_[[x.min()] * 4, inner, [x.max()] * 4]
    starts = range(0, len(x), ROWS)

    def build_design(start: int) -> np.ndarray:
        return BSpline.design_matrix(x[start : start + ROWS], knots, 3).toarray()

    if len(starts) == 1:
        solution = np.linalg.lstsq(build_design(0), y)[0]
    else:  # the R factors of the parts' QR decompositions have the same solution as all rows
        triangles = [np.linalg.qr(np.c_[build_design(start), y[start : start + ROWS]], "r") for start in starts]
        small = np.concatenate(triangles)
        solution = np.linalg.lstsq(small[:, :-1], small[:, -1])[0]
    left = y - np.concatenate([build_design(start) @ solution for start in starts])
    return float(1 - left.var() / y.var())


def _compute_aicc(left: float, bins: int, free: int) -> float:
    """AICc of weighted least squares: ``left`` over bins, with ``free`` parameters and the error's variance."""
    numbers, room = free + 1, bins - free - 2
    if room <= 0 or np.isnan(left):
        return np.nan
    return (bins * np.log(left / bins) if left > 0 else -np.inf) + 2 * numbers * (1 + (numbers + 1) / room)


def compute_clustered_error(values: np.ndarray, prompt: np.ndarray) -> float:
    """The standard error of a mean over tokens, clustered by prompt.

    values: (n,); prompt: (n,), the prompts' numbers 0, 1, ..., all of them used and at least two.
    """
    sums = np.bincount(prompt, values - values.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values))
