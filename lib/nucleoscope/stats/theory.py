"""The numbers of the theory page: small numpy functions.

Contract: arrays in, arrays out; no models, files or figures. Rows of ``units`` have length 1. The
formulas are those of the page's propositions, in float64.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

# Distributions


def compute_zipf(size: int, exponent: float) -> np.ndarray:
    """Probabilities (size,) in proportion to 1 / rank ** exponent."""
    weights = np.arange(1, size + 1) ** -float(exponent)
    return weights / weights.sum()


def compute_entropy(q: np.ndarray) -> float:
    """- sum q log q, in nats; zeros add nothing."""
    q = np.asarray(q)[np.asarray(q) > 0]
    return float(-(q * np.log(q)).sum() + 0.0)


def compute_binary_entropy(m: np.ndarray) -> np.ndarray:
    """h(m) = - m log m - (1 - m) log(1 - m), in nats; 0 at both ends."""
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(x > 0, -x * np.log(x), 0) for x in (np.asarray(m, float), 1 - np.asarray(m, float))]
    return parts[0] + parts[1]


def find_nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """Ids of the smallest prefix of falling probability with mass >= top_p; ties: lower id first."""
    order = np.argsort(-p, kind="stable")
    return order[: np.searchsorted(p[order].cumsum(), top_p) + 1]


def split_entropy(p: np.ndarray, top_p: float) -> tuple[float, float, float]:
    """The three terms of H(p): inside or outside the nucleus, within the nucleus, within the tail."""
    inside = find_nucleus(p, top_p)
    outside = np.delete(p, inside)
    m = p[inside].sum()
    tail = outside.sum() * compute_entropy(outside / outside.sum()) if outside.sum() > 0 else 0.0
    return float(compute_binary_entropy(m)), m * compute_entropy(p[inside] / m), tail


# Directions


def normalise_rows(rows: np.ndarray) -> np.ndarray:
    """``rows`` (..., d), each divided by its length."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def draw_embedding(rng: np.random.Generator, rows: int = 2000, width: int = 64, common: float = 4.0) -> np.ndarray:
    """Unit rows (rows, width) of a synthetic embedding: noise plus a common direction, with random weights.

    ``common`` is the mean weight, in units of the noise's standard deviation; 0 gives an isotropic one.
    """
    noise = rng.normal(size=(rows, width))
    noise[:, 0] += common * (1 + 0.5 * rng.normal(size=rows))
    return normalise_rows(noise)


def compute_mean_cosine(units: np.ndarray, squares: float | None = None) -> float:
    """Mean of u_i.u_j over pairs, without pairs; ``squares`` replaces sum |u_i|^2."""
    total, k = units.sum(0), len(units)
    return float((total @ total - ((units**2).sum() if squares is None else squares)) / (k * (k - 1)))


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """``values`` rounded to bfloat16 (to nearest, ties to even), as float32."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def compute_rounding_errors(
    rng: np.random.Generator, sizes: Sequence[int], width: int = 576, draws: int = 100
) -> np.ndarray:
    """Mean error (sizes, 2) of the mean cosine of rows normalised in bfloat16: with k, with sum |u_i|^2."""
    exact = round_to_bfloat16(rng.normal(size=(max(sizes) * 2, width))).astype(float)
    norms = round_to_bfloat16(np.linalg.norm(exact, axis=1, keepdims=True)).astype(float)
    rounded, exact = round_to_bfloat16(exact / norms).astype(float), normalise_rows(exact)
    errors = np.empty((len(sizes), 2, draws))
    for place, k in enumerate(sizes):
        for draw in range(draws):
            rows = rng.choice(len(exact), k, replace=False)
            truth = compute_mean_cosine(exact[rows])
            errors[place, :, draw] = [abs(compute_mean_cosine(rounded[rows], squares) - truth) for squares in (k, None)]
    return errors.mean(-1)


def draw_cosines(rng: np.random.Generator, units: np.ndarray, sizes: Sequence[int], draws: int) -> np.ndarray:
    """Mean cosines (sizes, draws) of k rows drawn without replacement."""
    v = len(units)
    return np.array(
        [[compute_mean_cosine(units[rng.choice(v, k, replace=False)]) for _ in range(draws)] for k in sizes]
    )


def compute_draw_moments(units: np.ndarray) -> tuple[float, float, float]:
    """Mean cosine of all pairs, S_g^2 of the rows' effects, and the mean square of the pairs' residuals; O(V d^2)."""
    v, square = len(units), (units**2).sum(1)
    center = compute_mean_cosine(units)
    effect = (v - 1) / (v - 2) * ((units @ units.sum(0) - square) / (v - 1) - center)
    mean_square = (np.square(units.T @ units).sum() - np.square(square).sum()) / (v * (v - 1))
    spread = np.square(effect).sum() / (v - 1)
    return center, spread, mean_square - center**2 - 2 * spread * (v - 2) / v


def compute_draw_variance(k: np.ndarray, rows: int, spread: float, rest: float) -> np.ndarray:
    """Variance of the mean cosine of k of the ``rows`` drawn without replacement."""
    k = np.asarray(k, float)
    share = (rows - k) * (rows - k - 1) / ((rows - 2) * (rows - 3))
    return 4 / k * spread * (1 - k / rows) + 2 / (k * (k - 1)) * rest * share


def compute_diluted(k: np.ndarray, core: int, inside: float, across: float, outside: float) -> np.ndarray:
    """Expected mean cosine of ``core`` fixed candidates and k - core rows drawn at random."""
    rest = k - core
    pairs = core * (core - 1) * inside + 2 * core * rest * across + rest * (rest - 1) * outside
    return pairs / (k * (k - 1))


# Diversity


def compute_diversity(q: np.ndarray, z: np.ndarray, order: float) -> float:
    """Leinster and Cobbold's diversity of an order, for weights ``q`` > 0 and similarities ``z``."""
    ordinariness = z @ q
    if order == 1:
        return float(np.exp(-(q * np.log(ordinariness)).sum()))
    return float((q * ordinariness ** (order - 1)).sum() ** (1 / (1 - order)))


def compute_similarity_entropy(q: np.ndarray, units: np.ndarray) -> float:
    """- sum q_i log((1 + u_i.M) / 2), in nats."""
    return float(-(q * np.log((1 + units @ (q @ units)) / 2)).sum())


def compute_spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's coefficient of the ranks."""
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def compute_partial_spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Spearman's coefficient of x and y given a third, by the formula for partial correlation."""
    xy, xz, yz = compute_spearman(x, y), compute_spearman(x, given), compute_spearman(y, given)
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def draw_diluted_nuclei(
    rng: np.random.Generator, units: np.ndarray, count: int, core: int, noise: float, largest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, entropies and mean cosines (count,) of synthetic nuclei: ``core`` noisy copies of one row, random rows,
    and probabilities that are independent of both."""
    sizes = np.exp(rng.uniform(np.log(core), np.log(largest + 1), count)).astype(int)
    entropies, cosines = np.empty(count), np.empty(count)
    for place, k in enumerate(sizes):
        rows = units[rng.choice(len(units), k - core + 1, replace=False)]
        similar = normalise_rows(rows[0] + noise * rng.normal(size=(core, units.shape[1])))
        cosines[place] = compute_mean_cosine(np.concatenate([similar, rows[1:]]))
        entropies[place] = compute_entropy(compute_zipf(k, rng.uniform(0, 1.5)))
    return sizes, entropies, cosines


def draw_choices(rng: np.random.Generator, count: int) -> np.ndarray:
    """Entropy, similarity entropy and |M| (count, 3) of synthetic nuclei of many sizes, shapes and similarities."""
    found = np.empty((count, 3))
    for row in found:
        k, width = int(np.exp(rng.uniform(0.7, 4.5))), int(rng.choice([1, 2, 4, 64]))
        units = normalise_rows(rng.normal(size=(k, width)) + rng.choice([0, 0.3, 1, 3]) * np.eye(1, width))
        q = compute_zipf(k, rng.uniform(0, 3))
        row[:] = compute_entropy(q), compute_similarity_entropy(q, units), np.linalg.norm(q @ units)
    return found
