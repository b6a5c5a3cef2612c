"""Fits curves to the medians of bins: three single-peaked ones ("bumps") and others to compare them with.

Contract: arrays x, y, n (bins,): centers > 0, medians and numbers of tokens of the non-empty bins.
Fits are least squares with weights n: a median of n tokens is assumed to have variance
sigma^2 / n. This module does not depend on prompts or tables.

A bump is height * shape(x / peak) + base with a shape that is 1 at the peak: these numbers can be
read off a plot, so they have natural starting values and bounds. Parameters are reported in the form of
the curve's formula.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.interpolate import make_lsq_spline
from scipy.optimize import curve_fit, isotonic_regression, leastsq

Array = np.ndarray
FAILED = "did not converge"
KNOTS = 5  # number of inner knots of the spline
FORMULAS = {
    "constant": "c",
    "line": "a x + c",
    "unimodal": "a x exp(-b x) + c",
    "gamma": "a x^s exp(-b x) + c",
    "log-normal": "a exp(-(log x - m)^2 / (2 s^2)) + c",
    "free": "rising, then falling",
    "spline": "cubic spline",
}


@dataclass(frozen=True)
class Fit:
    """A fitted curve, callable on any x > 0.

    ``free`` counts its parameters; ``peak`` is where it is highest; ``note`` says what a reader must
    know about it: no convergence, a parameter on a bound. ``theta`` and ``bounds`` are the parameters
    of a bump and their bounds: height, log peak, base, log s.
    """

    curve: Callable[[Array], Array]
    free: int
    parameters: dict[str, float] = field(default_factory=dict)
    peak: float = np.nan
    note: str = ""
    theta: Array | None = None
    bounds: tuple[Array, Array] | None = None

    def __call__(self, x: Array) -> Array:
        return self.curve(np.asarray(x, dtype=np.float64))


Shape = Callable[[Array, float], tuple[Array, Array, Array]]


def _evaluate_gamma(z: Array, s: float) -> tuple[Array, Array, Array]:
    """(x / peak)^s exp(s (1 - x / peak)) at z = log(x / peak), its slope in z and in log s."""
    ratio = np.exp(np.minimum(z, 50))
    value = np.exp(s * (z + 1 - ratio))
    return value, value * s * (1 - ratio), value * s * (z + 1 - ratio)


def _evaluate_log_normal(z: Array, s: float) -> tuple[Array, Array, Array]:
    """exp(-z^2 / (2 s^2)), its slope in z and in log s."""
    scaled = z / s
    value = np.exp(-(scaled**2) / 2)
    return value, -value * scaled / s, value * scaled**2


@dataclass(frozen=True)
class _Bump:
    names: tuple[str, ...]  # the formula's parameters, which follow from height, log peak, base and log s
    shape: Shape
    parameters: Callable[[float, float, float, float], tuple[float, ...]]  # height, log peak, base, s -> by names
    starts: tuple[float, ...] = (1.0,)  # of s
    bounds: tuple[float, float] = (1.0, 1.0)  # of s

    def evaluate(self, log_x: Array, log_peak: float, log_s: float = 0.0) -> tuple[Array, Array, Array]:
        return self.shape(log_x - log_peak, math.exp(min(max(log_s, -20), 20)))

    def __call__(self, x: Array, height: float, log_peak: float, base: float, *log_s: float) -> Array:
        return height * self.evaluate(_compute_log(x), log_peak, *log_s)[0] + base

    def compute_jacobian(self, x: Array, height: float, log_peak: float, base: float, *log_s: float) -> Array:
        """(n, parameters): the slopes of the curve in height, log peak, base and log s."""
        return _stack_slopes(height, *self.evaluate(_compute_log(x), log_peak, *log_s))[:, : 3 + len(log_s)]


def _compute_log(x: Array) -> Array:
    return np.log(np.maximum(x, 1e-300))  # a token's entropy may be 0


def _stack_slopes(height: float, value: Array, in_z: Array, in_log_s: Array) -> Array:
    """(n, 4): the slopes of a bump in height, log peak, base and log s, from what `_Bump.evaluate` gives."""
    return np.stack([value, -height * in_z, np.ones_like(value), height * in_log_s], axis=1)


def _compute_gamma_height(height: float, log_peak: float, s: float) -> float:
    """The a of a x^s exp(-b x) for which the maximum, at s / b, is ``height``."""
    return height * math.exp(min(s * (1 - log_peak), 700))


_BUMPS = {
    "unimodal": _Bump(
        ("a", "b", "c"), _evaluate_gamma, lambda h, lp, c, s: (_compute_gamma_height(h, lp, 1), math.exp(-lp), c)
    ),
    "gamma": _Bump(
        ("a", "b", "c", "s"),
        _evaluate_gamma,
        lambda h, lp, c, s: (_compute_gamma_height(h, lp, s), s * math.exp(-lp), c, s),
        starts=(0.5, 1.0, 4.0),
        bounds=(0.05, 50.0),
    ),
    "log-normal": _Bump(
        ("a", "m", "c", "s"),
        _evaluate_log_normal,
        lambda h, lp, c, s: (h, lp, c, s),
        starts=(0.25, 0.5, 1.0),
        bounds=(0.02, 10.0),
    ),
}


def fit(kind: str, x: Array, y: Array, n: Array, start: Fit | None = None) -> Fit:
    """The curve of this kind (a key of FORMULAS) that is closest to the medians.

    ``start`` is a fit of this kind to similar medians: a bump then uses it as the only starting point.
    """
    if kind in _BUMPS:
        return _refit(kind, x, y, n, start) if start and start.theta is not None else _fit_bump(kind, x, y, n)
    return {"constant": _fit_constant, "line": _fit_line, "free": _fit_free, "spline": _fit_spline}[kind](x, y, n)


def _fit_constant(x: Array, y: Array, n: Array) -> Fit:
    c = float(np.average(y, weights=n))
    return Fit(lambda at: np.full(at.shape, c), 1, {"c": c})


def _fit_line(x: Array, y: Array, n: Array) -> Fit:
    a, c = (float(value) for value in np.polyfit(x, y, 1, w=np.sqrt(n)))
    return Fit(lambda at: a * at + c, 2, {"a": a, "c": c})


def _fit_bump(kind: str, x: Array, y: Array, n: Array) -> Fit:
    """The best result of scipy's curve_fit with bounds over several starting points.

    Bounds: height from 0 to ten times the range of the medians, base within ten ranges of them, the
    peak from a tenth of a bin to ten times the last bin.
    """
    bump, span = _BUMPS[kind], float(np.ptp(y)) or 1.0
    low = np.array([0, np.log(np.diff(x).min() / 10), y.min() - 10 * span, np.log(bump.bounds[0])])[: len(bump.names)]
    high = np.array([10 * span, np.log(10 * x[-1]), y.max() + 10 * span, np.log(bump.bounds[1])])[: len(bump.names)]
    best, least = None, np.inf
    for peak in np.quantile(x, (0.05, 0.2, 0.5)):
        for s in bump.starts:
            start = np.array([span, np.log(peak), y.min(), np.log(s)])[: len(low)]
            try:
                theta, *_ = curve_fit(bump, x, y, start, sigma=n**-0.5, bounds=(low, high), jac=bump.compute_jacobian)
            except RuntimeError:  # this starting point does not converge; another may
                continue
            error = float(np.sum(n * (bump(x, *theta) - y) ** 2))
            if error < least:
                best, least = theta, error
    if best is None:
        return _build_failed(len(low))
    return _build_fitted(kind, best, (low, high))


def _refit(kind: str, x: Array, y: Array, n: Array, start: Fit) -> Fit:
    """One fit from ``start``: without bounds, which is ten times as fast, or with bounds if the result violates them.

    leastsq is what curve_fit calls without bounds; it skips the covariance, for which we use resamples. It asks for
    the slopes where it has just asked for the values: the shape is computed once for both.
    """
    bump, weights, (low, high) = _BUMPS[kind], np.sqrt(n), start.bounds
    log_x, latest = _compute_log(x), {}

    def evaluate(t: Array) -> tuple[Array, Array, Array]:
        place = t.tobytes()
        if place not in latest:
            latest.clear()
            latest[place] = bump.evaluate(log_x, t[1], *t[3:])
        return latest[place]

    theta, *_, status = leastsq(
        lambda t: (t[0] * evaluate(t)[0] + t[2] - y) * weights,
        start.theta,
        Dfun=lambda t: _stack_slopes(t[0], *evaluate(t))[:, : len(t)] * weights[:, None],
        maxfev=200,
        full_output=True,
    )
    if status not in (1, 2, 3, 4) or not np.all((low <= theta) & (theta <= high)):
        inside = np.clip(start.theta, low + 1e-6 * (high - low), high - 1e-6 * (high - low))
        try:
            theta, *_ = curve_fit(bump, x, y, inside, sigma=n**-0.5, bounds=start.bounds, jac=bump.compute_jacobian)
        except RuntimeError:
            return _build_failed(start.free)
    return _build_fitted(kind, theta, start.bounds)


def _build_failed(free: int) -> Fit:
    return Fit(lambda at: np.full(at.shape, np.nan), free, note=FAILED)


def _build_fitted(kind: str, theta: Array, bounds: tuple[Array, Array]) -> Fit:
    bump, (low, high) = _BUMPS[kind], bounds
    height, log_peak, base, s = (*theta[:3], np.exp(theta[3]) if len(theta) > 3 else 1.0)
    near = 1e-4 * (high - low)
    on = [name for name, there in zip(bump.names, (theta <= low + near) | (theta >= high - near), strict=True) if there]
    return Fit(
        lambda at: bump(at, *theta),
        len(theta),
        dict(zip(bump.names, map(float, bump.parameters(height, log_peak, base, s)), strict=True)),
        peak=float(np.exp(log_peak)),
        note=f"{', '.join(on)} on a bound" if on else "",
        theta=theta,
        bounds=bounds,
    )


def _fit_free(x: Array, y: Array, n: Array) -> Fit:
    """The step function closest to the medians that rises up to some bin and falls after it.

    Every split of the bins is evaluated by isotonic regressions to its left and right; prefix isotonic
    regression (Stout 2008, "Unimodal regression via prefix isotonic regression") gives the errors of all
    splits in one pass in each direction. The levels count as parameters (Meyer and Woodroofe 2000, "On
    the degrees of freedom in shape-restricted regression"). Between centers the curve is interpolated
    linearly.
    """
    split = int(np.argmin(_compute_prefix_errors(y, n) + _compute_prefix_errors(y[::-1], n[::-1])[::-1]))
    parts = [(y[:split], n[:split], True), (y[split:], n[split:], False)]
    levels = np.concatenate([isotonic_regression(v, weights=w, increasing=up).x for v, w, up in parts if len(v)])
    top = np.flatnonzero(levels == levels.max())
    count = 1 + int(np.count_nonzero(np.diff(levels)))
    return Fit(lambda at: np.interp(at, x, levels), count, peak=float((x[top[0]] + x[top[-1]]) / 2))


def _fit_spline(x: Array, y: Array, n: Array) -> Fit:
    """The cubic spline with equally many tokens between its knots, which may fall and rise again."""
    share = np.cumsum(n) / np.sum(n)
    inner = np.interp(np.arange(1, KNOTS + 1) / (KNOTS + 1), share, x)
    # Each interval needs a bin of its own (Schoenberg and Whitney): knots in the same gap between bins are merged.
    inner = inner[np.unique(np.searchsorted(x, inner), return_index=True)[1]]
    inner = inner[(inner > x[2]) & (inner < x[-3])][: max(len(x) - 5, 0)]
    curve = make_lsq_spline(x, y, np.r_[[x[0]] * 4, inner, [x[-1]] * 4], w=np.sqrt(n))
    return Fit(lambda at: curve(np.clip(at, x[0], x[-1])), len(inner) + 4)


def _compute_prefix_errors(y: Array, n: Array) -> Array:
    """Weighted squared errors of the isotonic regressions of y[:i], i = 0 ... len(y)."""
    errors, total = [0.0], 0.0
    pools: list[tuple[float, float, float]] = []  # weight, mean, error inside
    for mean, size in zip(y.tolist(), n.tolist(), strict=True):
        inside = 0.0
        while pools and pools[-1][1] >= mean:
            other, other_mean, other_inside = pools.pop()
            total -= other_inside
            inside += other_inside + size * other / (size + other) * (mean - other_mean) ** 2
            mean, size = (size * mean + other * other_mean) / (size + other), size + other
        pools.append((size, mean, inside))
        total += inside
        errors.append(total)
    return np.array(errors)
