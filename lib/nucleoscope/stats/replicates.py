"""Coefficients of one quantity with several others, and the same without each group of prompts.

Contract: arrays of tokens, each with the number of its prompt; no tables, no files. Prompts are the units that are left
out, as in `bootstrap`, and intervals are the jackknife's. It suits thousands of coefficients: 51 values of each are
enough, and unlike a resample, the data without some prompts have no token twice, so that strata of equal k keep their
meaning.

A group contains the prompts whose numbers have the same remainder, so it contains the same prompts in every file of a
run, and in every run of a data set. An `Estimate` remembers its values without each group; the difference of two
estimates and their mean over runs are estimates again, and what they have in common cancels in them.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from nucleoscope.stats import bootstrap

GROUPS = bootstrap.GROUPS
FEWEST = 3  # tokens of a coefficient, and tokens of a prompt that has one of its own
NEAREST_ONE = 1 - 1e-12  # a coefficient whose Fisher's z is still a number


@dataclass(frozen=True)
class Estimate:
    """A number and what it would be without each group: {kind of group: (GROUPS,)}, NaN where a group has no token.

    Groups of one kind are the prompts of a data set, or what else is drawn independently. ``defined`` is False if
    the number does not exist without some group: then it has no interval.
    """

    value: float
    without: dict[Hashable, np.ndarray]
    defined: bool = True

    def transform(self, function: Callable) -> "Estimate":
        """``function`` of the number."""
        changed = {kind: function(values) for kind, values in self.without.items()}
        return Estimate(float(function(self.value)), changed, self.defined)

    def convert_to_z(self) -> "Estimate":
        """Fisher's z of a coefficient."""
        return self.transform(lambda r: np.arctanh(np.clip(r, -NEAREST_ONE, NEAREST_ONE)))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return _combine([self, other], [1, -1])

    def bound_difference(self) -> tuple[float, float]:
        """The 95% interval of a difference of two coefficients, which cannot be beyond -2 or 2."""
        low, high = np.clip(self.compute_bounds(correlation=False), -2, 2)
        return float(low), float(high)

    def compute_bounds(self, correlation: bool = True) -> tuple[float, float]:
        """The 95% interval; NaN if fewer than two groups have tokens. See `bootstrap.compute_jackknife_interval`.

        The variances of the kinds of groups are added. A ``correlation`` is transformed by Fisher's z and back.
        """
        found = self.convert_to_z() if correlation else self
        variance, degrees = 0.0, 0
        for values in found.without.values():
            used = values[~np.isnan(values)]
            if len(used) > 1:
                variance += (len(used) - 1) / len(used) * float(np.sum((used - used.mean()) ** 2))
                degrees += len(used) - 1
        if not degrees or not self.defined or np.isnan(found.value):
            return np.nan, np.nan
        margin = stdtrit(degrees, (1 + bootstrap.LEVEL) / 2) * np.sqrt(variance)
        low, high = found.value - margin, found.value + margin
        return (float(np.tanh(low)), float(np.tanh(high))) if correlation else (float(low), float(high))


def create_estimate(values: np.ndarray, kind: Hashable) -> Estimate:
    """The estimate of ``values`` (GROUPS + 1,): the number, then without each group, as the functions below give them.

    Without a group that has no tokens the value is infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    without, unused = values[1:].copy(), np.isinf(values[1:])
    defined = not np.isnan(without).any()
    without[unused] = np.nan
    return Estimate(float(values[0]), {kind: without}, defined)


def compute_mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of some runs' estimates, each of equal weight; at least one."""
    return _combine(estimates, [1 / len(estimates)] * len(estimates))


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of some runs' coefficients on the scale of Fisher's z, as a coefficient."""
    return compute_mean([estimate.convert_to_z() for estimate in estimates]).transform(np.tanh)


def _combine(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """The weighted sum. Without a group that an estimate does not have, that estimate is what it is."""
    without: dict[Hashable, np.ndarray] = {}
    for kind in dict.fromkeys(kind for each in estimates for kind in each.without):
        parts = [each.without.get(kind, np.full(GROUPS, np.nan)) for each in estimates]
        filled = [np.where(np.isnan(part), each.value, part) for each, part in zip(estimates, parts, strict=True)]
        total = sum(weight * part for weight, part in zip(weights, filled, strict=True))
        without[kind] = np.where(np.all([np.isnan(part) for part in parts], axis=0), np.nan, total)
    value = sum(weight * each.value for weight, each in zip(weights, estimates, strict=True))
    return Estimate(float(value), without, all(each.defined for each in estimates))


def number_groups(prompt: np.ndarray) -> np.ndarray:
    """The group of each token: (n,) numbers of prompts -> (n,) intp in 0 ... GROUPS - 1."""
    return np.asarray(prompt).astype(np.intp) % GROUPS


def join_rare(k: np.ndarray) -> np.ndarray:
    """Strata of tokens of equal k; one that is alone with its k joins those of the nearest k: (n,) -> (n,) intp.

    Of two that are equally near it joins the lower one. All strata have at least two tokens, if there are two.
    """
    values, place, sizes = np.unique(k, return_inverse=True, return_counts=True)
    gaps = np.concatenate([[np.inf], np.diff(values).astype(np.float64), [np.inf]])
    joined = np.zeros(len(values) + 1, dtype=bool)  # whether value i is in one stratum with value i - 1
    alone = np.flatnonzero(sizes == 1)
    lower = gaps[alone] <= gaps[alone + 1]
    joined[np.where(lower, alone, alone + 1)] = True
    joined[[0, -1]] = False
    return np.cumsum(~joined[:-1])[place].astype(np.intp) - 1


def compute_parts(
    values: np.ndarray, group: np.ndarray, stratum: np.ndarray, ranked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the first column with the others, and what exchanging values within strata leaves of them.

    values (n, 1 + v), group (n,), stratum (n,) -> two arrays (GROUPS + 1, v): Pearson's coefficient, or with ``ranked``
    Spearman's, and its mean over all ways to exchange the column's values among the tokens of a stratum. That mean is
    exact and needs no draws: it is the coefficient with each value replaced by its stratum's mean, in units of
    the original standard deviations. Row 0 is the data, the others as in `create_estimate`.
    """
    order = np.argsort(stratum, kind="stable")
    values, group, stratum = np.asarray(values, dtype=np.float64)[order], group[order], stratum[order]
    shape = (GROUPS + 1, values.shape[1] - 1)
    total, between = np.full(shape, np.nan), np.full(shape, np.nan)
    if len(values) < FEWEST:
        return total, between
    starts = np.flatnonzero(np.diff(stratum, prepend=stratum[0] - 1))
    ranks = [bootstrap.Ranks(column, group) for column in values.T] if ranked else []
    floor = 1e-14 * values.var(axis=0) * len(values)
    centered, counts, used = values - values.mean(axis=0), _leave_out(), _find_used(group)
    for row in np.flatnonzero(np.append(True, used)):
        weight = counts[row].take(group).astype(np.float64)
        if ranked:
            scores = np.concatenate([rank(counts[row : row + 1]) for rank in ranks]) - weight.sum()
        else:
            scores = (centered - weight @ centered / max(weight.sum(), 1)).T
        weighted = scores * weight
        variances = np.einsum("vn,vn->v", weighted, scores)
        variances = np.where(variances > (0 if ranked else floor), variances, np.nan)
        scale = np.sqrt(variances[0] * variances[1:])
        sums, sizes = np.add.reduceat(weighted, starts, axis=1), np.add.reduceat(weight, starts)
        total[row] = np.clip(weighted[1:] @ scores[0] / scale, -1, 1)
        between[row] = sums[1:] @ (sums[0] / np.maximum(sizes, 1)) / scale
    return _mark_unused(total, used), _mark_unused(between, used)


def compute_matrices(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Spearman's coefficients between all columns: values (n, v), group (n,) -> (GROUPS + 1, v, v).

    Rows are as in `create_estimate`: a group without tokens is infinite.
    """
    found, used = np.full((GROUPS + 1, values.shape[1], values.shape[1]), np.nan), _find_used(group)
    if len(values) >= FEWEST:
        rows = np.append(True, used)
        found[rows] = bootstrap.compute_spearman(values, group, _leave_out()[rows])
    return _mark_unused(found, used)


def compute_within_k(values: np.ndarray, group: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of the first column with the others, comparing only tokens of equal k.

    See `bootstrap.compute_spearman` with strata. values (n, 1 + v), group (n,), k (n,) -> (GROUPS + 1, v), rows as in
    `create_estimate`.
    """
    found, used = np.full((GROUPS + 1, values.shape[1] - 1), np.nan), _find_used(group)
    if len(values) >= FEWEST:
        rows = np.append(True, used)
        found[rows] = bootstrap.compute_spearman(values, group, _leave_out()[rows], stratum=k)[:, 0, 1:]
    return _mark_unused(found, used)


def compute_within_prompts(values: np.ndarray, group: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """The mean over prompts of Spearman's coefficient within each, of the first column with the others.

    values (n, 1 + v), group (n,), prompt (n,) -> (GROUPS + 1, v), rows as in `create_estimate`. A prompt needs three
    tokens that differ.
    """
    used = _find_used(group)
    ranks = pd.DataFrame(values).groupby(prompt).rank()
    ranks = (ranks - ranks.groupby(prompt).transform("mean")).to_numpy()
    _, number, sizes = np.unique(prompt, return_inverse=True, return_counts=True)
    of = np.zeros(len(sizes), dtype=np.intp)
    of[number] = group
    found = np.full((GROUPS + 1, values.shape[1] - 1), np.nan)
    spread = np.stack([np.bincount(number, column**2, len(sizes)) for column in ranks.T])
    for place in range(1, values.shape[1]):
        both = np.bincount(number, ranks[:, 0] * ranks[:, place], len(sizes))
        enough = (sizes >= FEWEST) & (spread[0] > 0) & (spread[place] > 0)
        each = both[enough] / np.sqrt(spread[0] * spread[place])[enough]
        sums = np.bincount(of[enough], each, GROUPS)
        counts = np.bincount(of[enough], minlength=GROUPS)
        left = np.append(counts.sum(), counts.sum() - counts)
        found[:, place - 1] = np.append(sums.sum(), sums.sum() - sums) / np.where(left, left, np.nan)
    return _mark_unused(found, used)


def _leave_out() -> np.ndarray:
    """Counts of the groups in the data, then without each group: (GROUPS + 1, GROUPS)."""
    return np.concatenate([np.ones((1, GROUPS), np.int32), 1 - np.eye(GROUPS, dtype=np.int32)])


def _find_used(group: np.ndarray) -> np.ndarray:
    """Which groups have tokens: (GROUPS,) bool."""
    return np.bincount(group, minlength=GROUPS) > 0


def _mark_unused(values: np.ndarray, used: np.ndarray) -> np.ndarray:
    values[1:][~used] = np.inf
    return values
