"""Measures how well each curve fits one sample of tokens.

Contract: arrays of tokens, each with the number of its prompt; no tables of runs, no files. The
curves (`curves`) are fitted to the medians of 50 equal-width bins (`bootstrap.Bins`); resamples and
folds consist of whole prompts and use the bins of all tokens. `fits.fit` explains the numbers.
"""

import numpy as np
from scipy.interpolate import BSpline
from statsmodels.regression.linear_model import OLS  # statsmodels.api takes as long again to import
from statsmodels.tools import add_constant

from nucleoscope.stats import bootstrap, curves

FOLDS = 10  # number of groups of prompts for the error on held-out prompts
CLEARLY = 2  # number of standard errors by which a curve must be better than a constant
LEAST_BINS = 8  # minimum of non-empty bins: at most five numbers are fitted, including the error
ROWS = 1 << 17  # rows of a spline's design matrix in memory at once


def find_shortage(x: np.ndarray, y: np.ndarray, prompt: np.ndarray) -> str:
    """Why no curve can be fitted to a sample x, y, prompt (n,); "" if one can."""
    if len(x) < 3:
        return "fewer than three tokens with k > 1"
    if len(np.unique(prompt)) == 1:
        return "only one prompt has tokens with k > 1"
    if bootstrap.is_constant(x) or bootstrap.is_constant(y):
        return "entropy or cosine is constant"
    bins = np.count_nonzero(np.histogram(x, bootstrap.BINS)[0])
    return f"only {bins} bins contain tokens; {LEAST_BINS} are needed" if bins < LEAST_BINS else ""


class Sample:
    """One sample of tokens with its bins, in the data, in every resample, and without each fold.

    x, y: (n,), finite; prompt: (n,), any integers that identify the prompts. `find_shortage` must return ""
    for them. ValueError if ``resamples`` is less than one. ``seed`` determines the resamples and which
    prompts form a fold: ``fold`` (prompts,), in the order of their numbers. ``data`` contains (sizes,
    medians) of the bins, ``without`` such a pair for the tokens outside each fold, ``drawn`` one for
    each resample.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, prompt: np.ndarray, resamples: int, seed: int):
        _, self.prompt = np.unique(prompt, return_inverse=True)
        self.x, self.y, prompts = x, y, int(self.prompt.max()) + 1
        self.bins = bootstrap.Bins(x, y, self.prompt)
        once = np.ones((1, prompts), dtype=np.int64)
        self.fold = np.random.default_rng(seed).permutation(prompts) % min(FOLDS, prompts)  # (prompts,)
        kept = (self.fold != np.arange(self.fold.max() + 1)[:, None]).astype(np.int64)  # (folds, prompts)
        (self.data,), self.without, self.drawn = (
            list(zip(*self.bins.compute_sizes_and_medians(counts), strict=True))
            for counts in (once, kept, bootstrap.draw_counts(prompts, resamples, seed))
        )

        self.fits = {kind: self._fit(kind, self.data) for kind in curves.FORMULAS}
        self.constant = self._compute_held_out(
            "constant", self.fits["constant"]
        )  # one number per token: two at most exist
        self.aicc = {kind: _compute_aicc(*self._compute_error(curve), curve.free) for kind, curve in self.fits.items()}

    def compute_row(self, kind: str) -> dict[str, object]:
        """The columns of `fits.fit` for one of `curves.FORMULAS` that do not depend on other curves.

        delta AICc is still the AICc itself. A rejected curve has no parameters, and a note that says why.
        """
        curve, errors = self.fits[kind], self._compute_held_out(kind, self.fits[kind])
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
            found, doubtful = self._compute_parameters(kind, curve)
            row |= found | self._fit_linear(curve(self.x))
            if doubtful > 0.05 * len(self.drawn) and not curve.note:
                notes.append(f"{doubtful} of {len(self.drawn)} resamples ended on a bound or without a fit")
            row["before peak"] = np.nan if np.isnan(curve.peak) else float(np.mean(self.x < curve.peak))
        return row | {"note": "; ".join(filter(None, notes))}

    def _compute_error(self, curve: curves.Fit) -> tuple[float, int]:
        """The weighted squared error of a curve on the medians, and the number of medians."""
        sizes, medians = self.data
        used = sizes > 0
        squares = (medians[used] - curve(self.bins.centers[used])) ** 2
        return float(np.sum(sizes[used] * squares)), int(used.sum())

    def _find_refusal(self, kind: str, errors: np.ndarray) -> str:
        """Why a curve is not better than a constant, or an empty string."""
        if kind == "constant" or self.fits[kind].note == curves.FAILED:
            return ""
        reasons = [] if self.aicc[kind] < self.aicc["constant"] or kind == "free" else ["by AICc"]
        gain = self.constant - errors
        if np.isfinite(gain).all() and gain.mean() <= CLEARLY * compute_clustered_error(gain, self.prompt):
            reasons.append("by more than two standard errors on held-out prompts")
        return f"not better than a constant {' or '.join(reasons)}" if reasons else ""

    def _fit(self, kind: str, medians: tuple[np.ndarray, np.ndarray], start: curves.Fit | None = None) -> curves.Fit:
        sizes, values = medians
        used = sizes > 0
        if used.sum() < LEAST_BINS:
            return curves.Fit(lambda at: np.full(at.shape, np.nan), 0)
        return curves.fit(kind, self.bins.centers[used], values[used], sizes[used], start)

    def _compute_parameters(self, kind: str, curve: curves.Fit) -> tuple[dict[str, float], int]:
        """Parameters and peak with their intervals, from the fits to all resamples; how many of the fits failed."""
        names = [*curve.parameters, *([] if np.isnan(curve.peak) else ["peak"])]
        if not names:
            return {}, 0
        refits = [self._fit(kind, medians, curve) for medians in self.drawn]
        values = np.array(
            [[{**refit.parameters, "peak": refit.peak}.get(name, np.nan) for name in names] for refit in refits]
        )
        lows, highs = bootstrap.compute_interval(values)
        found = {**curve.parameters, "peak": curve.peak}
        bounded = {
            f"{name}{part}": float(value)
            for name, low, high in zip(names, lows, highs, strict=True)
            for part, value in (("", found[name]), (" low", low), (" high", high))
        }
        return bounded, sum(bool(refit.note) or not refit.free for refit in refits)

    def _locate(self, curve: curves.Fit) -> str:
        inside = np.isnan(curve.peak) or self.bins.edges[0] <= curve.peak <= self.bins.edges[-1]
        return "" if inside else "peak outside the data"

    def _compute_held_out(self, kind: str, start: curves.Fit) -> np.ndarray:
        """Absolute errors (n,) over the tokens of each fold, of the curve fitted to the other folds."""
        errors = np.empty(len(self.x))
        for fold, medians in enumerate(self.without):
            held = self.fold[self.prompt] == fold
            errors[held] = np.abs(self.y[held] - self._fit(kind, medians, start)(self.x[held]))
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

    def design(start: int) -> np.ndarray:
        return BSpline.design_matrix(x[start : start + ROWS], knots, 3).toarray()

    if len(starts) == 1:
        solution = np.linalg.lstsq(design(0), y)[0]
    else:  # the R factors of the parts' QR decompositions have the same solution as all rows
        triangles = [np.linalg.qr(np.c_[design(start), y[start : start + ROWS]], "r") for start in starts]
        small = np.concatenate(triangles)
        solution = np.linalg.lstsq(small[:, :-1], small[:, -1])[0]
    left = y - np.concatenate([design(start) @ solution for start in starts])
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
