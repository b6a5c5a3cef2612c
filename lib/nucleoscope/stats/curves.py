"""Fits curves to the medians of bins: a line, a decay, the study's bump, and others to compare them with.

Contract: arrays x, y, w (bins,): centers > 0, medians and weights of the non-empty bins. Fits are weighted least
squares; a weight is the inverse of a median's variance, up to a common factor. This module does not depend on prompts
or tables.

Decay and bump are h g(b x) + c with one number b that is not linear. For every b the best h and c are known, so the
error is a function of b alone (variable projection: Golub and Pereyra 1973): a grid finds where it is least, and
golden-section search continues there, for all resamples at once (`fit_each`). No starting values are needed, and no
local minimum of the grid's width or more is missed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.interpolate import make_lsq_spline
from scipy.optimize import isotonic_regression

Array = np.ndarray
KNOTS = 5  # number of inner knots of the spline
GRID = 60  # values of b that are tried first
STEPS = 30  # of the search: 1e-6 of a step of the grid, and 1e-7 of b
NEAR = 1e-3  # relative distance of b from a bound that it is on
SPIKE = 0.01  # what is left in the second bin of a curve that differs from its level in the first bin alone
FORMULAS = {
    "constant": "c",
    "line": "a x + c",
    "decay": "a exp(-b x) + c",
    "unimodal": "a x exp(-b x) + c",
    "free": "rising, then falling",
    "spline": "cubic spline",
}
_SHAPES: dict[str, Callable[[Array], Array]] = {  # g; h g(b x) + c is the curve
    "decay": lambda z: np.exp(-z),
    "unimodal": lambda z: z * np.exp(1 - z),  # 1 at its peak, where b x = 1
}


@dataclass(frozen=True)
class Fit:
    """A fitted curve, callable on any x >= 0.

    ``free`` counts its parameters; ``peak`` is where it is highest, NaN for curves without a peak; ``note`` says what a
    reader must know: a parameter on a bound.
    """

    curve: Callable[[Array], Array]
    free: int
    parameters: dict[str, float] = field(default_factory=dict)
    peak: float = np.nan
    note: str = ""

    def __call__(self, x: Array) -> Array:
        return self.curve(np.asarray(x, dtype=np.float64))


def fit(kind: str, x: Array, y: Array, w: Array) -> Fit:
    """The curve of this kind (a key of FORMULAS) that is closest to the medians."""
    if kind == "free":
        return _fit_free(x, y, w)
    if kind == "spline":
        return _fit_spline(x, y, w)
    found = {name: values[0] for name, values in fit_each(kind, x, y[None], w[None]).items()}
    parameters = {name: float(found[name]) for name in "abc" if name in found}
    if kind not in _SHAPES:
        a, c = parameters.get("a", 0.0), parameters["c"]
        return Fit(lambda at: a * at + c, len(parameters), parameters)
    shape, height, b, c = _SHAPES[kind], float(found["height"]), parameters["b"], parameters["c"]
    on = [name for name in "ab" if found[f"{name} on a bound"]]
    return Fit(
        lambda at: height * shape(b * at) + c,
        len(parameters),
        parameters,
        float(found.get("peak", np.nan)),
        f"{', '.join(on)} on a bound" if on else "",
    )


def fit_each(kind: str, x: Array, y: Array, w: Array) -> dict[str, Array]:
    """The parameters of the curves of this kind that are closest to each of B rows of medians.

    x: (bins,); y, w: (B, bins), with w = 0 and any y, also NaN, where a bin is empty. Returns arrays (B,): the
    parameters by name; the peak of bump and free curve; the slope and level of the line that a bump with a very small b
    becomes; the height of decay and bump, and whether "a on a bound" and "b on a bound". A height is at least 0, and
    1 / b is between a tenth of the narrowest distance of two centers and ten times the last one.
    """
    y = np.where(w > 0, y, 0.0)
    if kind == "constant":
        return {"c": np.sum(w * y, axis=1) / np.sum(w, axis=1)}
    if kind == "line":
        _, a, c = _project(np.broadcast_to(x, y.shape), y, w)
        return {"a": a, "c": c}
    if kind == "free":
        rows = zip(y, w, w > 0, strict=True)
        return {"peak": np.array([_locate_peak(x[used], _split(row[used], each[used])[1]) for row, each, used in rows])}
    shape, (low, high) = _SHAPES[kind], (0.1 / x[-1], 10 / np.diff(x).min())
    log_b = _search(shape, x, y, w, np.log(low), np.log(high))
    b = np.exp(log_b)
    _, height, c = _project(shape(b[:, None] * x), y, w, least=0)
    near = np.log(1 + NEAR)
    on_bound = (height > 0) & (
        (log_b - np.log(low) < near) | (np.log(high) - log_b < near)
    )  # without height, b is moot
    found = {"a": height, "b": b, "c": c, "height": height, "a on a bound": height <= 0, "b on a bound": on_bound}
    if kind == "unimodal":
        _, slope, level = _project(np.broadcast_to(x, y.shape), y, w, least=0)
        found |= {"a": height * b * np.e, "peak": 1 / b, "slope": slope, "level": level}
    return found


def find_limits(kind: str, x: Array, found: dict[str, Array]) -> tuple[dict[str, Array], Array]:
    """The parameters and peaks (B,) of `fit_each` with what they tend to where medians at ``x`` do not determine them.

    A decay or bump without height has neither b nor peak. If it is a straight line over all bins, b could be even
    smaller; if it differs from its level in the first bin alone, b could be even larger. What could grow without a
    bound is infinite. Also whether each row determines them (B,).
    """
    limits = {name: found[name] for name in (*"abc", "peak") if name in found}
    if kind not in _SHAPES:
        return limits, np.ones(len(next(iter(limits.values()))), dtype=bool)
    shape, b = _SHAPES[kind], found["b"]
    flat = found["height"] <= 0
    slow = ~flat & (b * x[-1] < 0.1 * (1 + NEAR))
    first, second = (shape(b * at) for at in x[:2])
    fast = ~flat & (second < SPIKE * first)
    slope, level = (found["slope"], found["level"]) if kind == "unimodal" else (np.inf, -np.inf)
    ends = {
        "a": [(flat, 0.0), (slow, slope), (fast, np.inf)],
        "b": [(flat, np.nan), (slow, 0.0), (fast, np.inf)],
        "c": [(slow, level)],
        "peak": [(flat, np.nan), (slow, np.inf), (fast, 0.0)],
    }
    for name, replaced in ends.items():
        for where, value in replaced if name in limits else []:
            limits[name] = np.where(where, value, limits[name])
    return limits, ~(flat | slow | fast)


def _project(g: Array, y: Array, w: Array, least: float = -np.inf) -> tuple[Array, Array, Array]:
    """The error of the best h g + c in each row, with h >= ``least``, and its h and c: (B, bins) each -> (B,) each."""
    total = np.sum(w, axis=1)
    g_mean, y_mean = np.sum(w * g, axis=1) / total, np.sum(w * y, axis=1) / total
    g, y = g - g_mean[:, None], y - y_mean[:, None]
    weighted = w * g
    square = np.sum(weighted * g, axis=1)
    h = np.maximum(np.sum(weighted * y, axis=1) / np.where(square > 0, square, np.inf), least)
    return np.sum(w * (y - h[:, None] * g) ** 2, axis=1), h, y_mean - h * g_mean


def _search(shape: Callable[[Array], Array], x: Array, y: Array, w: Array, low: float, high: float) -> Array:
    """The log b (B,) between ``low`` and ``high`` with the least error in each row: the best of a grid, refined."""

    def compute_error(log_b: Array) -> Array:
        return _project(shape(np.exp(log_b)[:, None] * x), y, w, least=0)[0]

    grid = np.linspace(low, high, GRID)
    errors = np.stack([compute_error(np.array([each])) for each in grid])  # the same b for all rows
    best, step = grid[np.argmin(errors, axis=0)], grid[1] - grid[0]
    left, right = np.maximum(best - step, low), np.minimum(best + step, high)
    golden = (np.sqrt(5) - 1) / 2
    inner, outer = right - golden * (right - left), left + golden * (right - left)
    at_inner, at_outer = compute_error(inner), compute_error(outer)
    for _ in range(STEPS):
        lower = at_inner <= at_outer  # the minimum is on the left
        left, right = np.where(lower, left, inner), np.where(lower, outer, right)
        kept, at_kept = np.where(lower, inner, outer), np.where(lower, at_inner, at_outer)
        new = np.where(lower, right - golden * (right - left), left + golden * (right - left))
        at_new = compute_error(new)
        inner, outer = np.where(lower, new, kept), np.where(lower, kept, new)
        at_inner, at_outer = np.where(lower, at_new, at_kept), np.where(lower, at_kept, at_new)
    return (left + right) / 2


def _fit_free(x: Array, y: Array, w: Array) -> Fit:
    """The step function closest to the medians that rises up to some bin and falls after it.

    Every split of the bins is evaluated by isotonic regressions to its left and right; prefix isotonic
    regression (Stout 2008, "Unimodal regression via prefix isotonic regression") gives the errors of all
    splits in one pass in each direction. The levels count as parameters (Meyer and Woodroofe 2000, "On
    the degrees of freedom in shape-restricted regression"). Between centers the curve is interpolated
    linearly.
    """
    split, top = _split(y, w)
    parts = [(y[:split], w[:split], True), (y[split:], w[split:], False)]
    levels = np.concatenate([isotonic_regression(v, weights=u, increasing=up).x for v, u, up in parts if len(v)])
    count = 1 + int(np.count_nonzero(np.diff(levels)))
    return Fit(lambda at: np.interp(at, x, levels), count, peak=_locate_peak(x, top))


def _split(y: Array, w: Array) -> tuple[int, slice]:
    """The bin where the free curve begins to fall, and the bins of its highest level."""
    rising, falling = _regress_prefixes(y, w), _regress_prefixes(y[::-1], w[::-1])
    split = int(np.argmin(rising.errors + falling.errors[::-1]))
    left, right = rising.levels[split], falling.levels[len(y) - split]
    first = split if left < right else rising.firsts[split]
    end = split if left > right else len(y) - falling.firsts[len(y) - split]
    return split, slice(first, end)


def _locate_peak(x: Array, top: slice) -> float:
    """The middle of the highest level of the free curve, of which ``top`` are the bins."""
    return float((x[top.start] + x[top.stop - 1]) / 2)


def _fit_spline(x: Array, y: Array, w: Array) -> Fit:
    """The cubic spline with equal weight between its knots, which may fall and rise again."""
    share = np.cumsum(w) / np.sum(w)
    inner = np.interp(np.arange(1, KNOTS + 1) / (KNOTS + 1), share, x)
    # Each interval needs a bin of its own (Schoenberg and Whitney): knots in the same gap between bins are merged.
    inner = inner[np.unique(np.searchsorted(x, inner), return_index=True)[1]]
    inner = inner[(inner > x[2]) & (inner < x[-3])][: max(len(x) - 5, 0)]
    curve = make_lsq_spline(x, y, np.r_[[x[0]] * 4, inner, [x[-1]] * 4], w=np.sqrt(w))
    return Fit(lambda at: curve(np.clip(at, x[0], x[-1])), len(inner) + 4)


class Prefixes(NamedTuple):
    """Isotonic regressions of y[:i], i = 0 ... len(y): their weighted squared errors, their last levels (-inf of none),
    and the first bins that have these levels."""

    errors: Array
    levels: list[float]
    firsts: list[int]


def _regress_prefixes(y: Array, w: Array) -> Prefixes:
    errors, levels, firsts, total = [0.0], [-np.inf], [0], 0.0
    pools: list[tuple[float, float, float, int]] = []  # weight, mean, error inside, first bin
    for first, (mean, size) in enumerate(zip(y.tolist(), w.tolist(), strict=True)):
        inside = 0.0
        while pools and pools[-1][1] >= mean:
            other, other_mean, other_inside, first = pools.pop()
            total -= other_inside
            inside += other_inside + size * other / (size + other) * (mean - other_mean) ** 2
            mean, size = (size * mean + other * other_mean) / (size + other), size + other
        pools.append((size, mean, inside, first))
        total += inside
        errors.append(total)
        levels.append(mean)
        firsts.append(first)
    return Prefixes(np.array(errors), levels, firsts)
