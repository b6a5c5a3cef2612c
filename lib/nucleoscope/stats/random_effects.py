"""Combines one number of several models into their mean and its uncertainty: meta-analysis with random effects.

Contract: estimates with their standard errors, or the table of `correlation.compute_statistics`; no files. Pooling the
tokens of several models treats the models as fixed: it says nothing of another one. With random effects a model is a
draw from a population, and the interval of the mean covers how much models differ (Paule and Mandel 1982; intervals by
Hartung and Knapp 2001, and Sidik and Jonkman 2002, by statsmodels). The models of a data set continue the same prompts;
that their errors may be related is not taken into account.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from nucleoscope.stats import bootstrap
from nucleoscope.store.run_settings import list_heads, list_varied

LEAST_MODELS = 2
RANDOM = "(random effects)"  # replaces the model in the rows of a mean over models


class Combination(NamedTuple):
    """The mean over models, the bounds of its 95% interval, and tau, the standard deviation between models."""

    mean: float
    low: float
    high: float
    tau: float


def combine(estimates: np.ndarray, errors: np.ndarray) -> Combination:
    """Some models' estimates (m,) with their standard errors (m,), combined with random effects.

    A model whose estimate or error is missing or whose error is 0 does not count; all is NaN with fewer than two more.
    """
    estimates, errors = (np.asarray(values, dtype=np.float64) for values in (estimates, errors))
    usable = np.isfinite(estimates) & np.isfinite(errors) & (errors > 0)
    if usable.sum() < LEAST_MODELS:
        return Combination(*[np.nan] * 4)
    from statsmodels.stats.meta_analysis import combine_effects  # a second to import

    with np.errstate(divide="ignore"):  # of equal estimates Q can be 0; it is divided by for I^2, which is not used
        found = combine_effects(estimates[usable], errors[usable] ** 2, method_re="iterated")
    *_, (low, high) = found.conf_int(use_t=True)  # the last of four: random effects, with Hartung and Knapp's variance
    return Combination(float(found.mean_effect_re), float(low), float(high), float(np.sqrt(found.tau2)))


def compute_errors(low: np.ndarray, high: np.ndarray, degrees: np.ndarray | float = np.inf) -> np.ndarray:
    """The standard errors that 95% intervals of Student's t with such degrees of freedom were made from.

    NaN for an interval that is missing or has an infinite end.
    """
    low, high = (np.where(np.isfinite(end), end, np.nan) for end in (low, high))
    return (high - low) / 2 / stdtrit(degrees, (1 + bootstrap.LEVEL) / 2)


def combine_coefficients(statistics: pd.DataFrame) -> pd.DataFrame:
    """Each coefficient over the models of each data set: one row per data set with at least two of them.

    If a setting has several values for one model on one data set, there is a row for each of its values: runs of one
    model are not two models. Columns: Dataset, these settings, models, and for every coefficient of the study's pair
    its r, low, high and tau. They are combined on the scale of Fisher's z, and so is tau; the others are transformed
    back.
    """
    rows = []
    within = ["Dataset", *list_varied(list_heads(statistics))]
    for names, part in statistics.groupby(within, sort=True, dropna=False):
        if len(part) < LEAST_MODELS:
            continue
        row: dict[str, object] = dict(zip(within, names, strict=True)) | {"models": len(part)}
        for kind in ("Pearson", "Spearman", "within-prompt Spearman", "partial Spearman", "within-k Spearman"):
            r, low, high = (
                np.arctanh(part[f"{kind} {end}"].clip(-1 + 1e-12, 1 - 1e-12)) for end in ("r", "low", "high")
            )
            few = (part["interval"] == bootstrap.JACKKNIFE) | (kind == "within-k Spearman")
            degrees = np.where(few, np.minimum(part["prompts"], bootstrap.GROUPS) - 1, np.inf)
            found = combine(r, compute_errors(low, high, degrees))
            row |= {
                f"{kind} {end}": np.tanh(getattr(found, name))
                for end, name in zip(("r", "low", "high"), ("mean", "low", "high"), strict=True)
            }
            row[f"{kind} tau"] = found.tau
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else [*within, "models"])
