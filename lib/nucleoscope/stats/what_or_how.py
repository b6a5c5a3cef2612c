"""What or how: the uncertainty of a choice, split into what follows and how it is put.

Contract: probabilities and similarities of candidates in, entropies in nats out; nothing is read or written. The
candidates of a token are put into groups with similar continuations, and the entropy of the choice is, exactly,

    H(q) = H(groups) + sum_g q_g H(q | g).

The first term is uncertainty about *what* follows, the second about *how* it is put. Groups are found by average
linkage (Sokal and Michener, "A statistical method for evaluating systematic relationships", 1958) on 1 - s. How much of
the entropy the groups explain by their sizes alone is told by a null model: groups of the same sizes, drawn at random.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy

DRAWS = 100  # of groups at random, for each token
SPLIT = ("groups", "entropy_what", "entropy_how", "entropy_what_null", "entropy_how_null")
THRESHOLDS = tuple(np.round(np.arange(0.05, 1, 0.05), 2).tolist())
TOLERANCE = 1e-9  # of the height of a merger: distances that are equal to the threshold count as reaching it


class Split(NamedTuple):
    """Both parts of an entropy, in nats: about what follows, and about how it is put."""

    what: float
    how: float


class Choices(NamedTuple):
    """N choices, concatenated, as context.pt has them.

    ``prompts``, ``steps`` and ``sizes`` (N,) say which tokens they are and how many candidates each has, ``shares``
    (K,) are these candidates' probabilities, and ``similarities`` (P,) the upper triangles of their matrices.
    """

    prompts: np.ndarray
    steps: np.ndarray
    sizes: np.ndarray
    shares: np.ndarray
    similarities: np.ndarray

    @classmethod
    def collect(cls, matrices: Mapping[str, np.ndarray]) -> "Choices":
        """The choices among the arrays of a context.pt, by name."""
        return cls(**{name: np.asarray(matrices[name]) for name in cls._fields})

    def iterate(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Prompt and step of each choice, its shares (m,), which sum to 1, and its triangle, both float64."""
        sizes = self.sizes.astype(np.int64)
        ends, pairs = np.cumsum(sizes), np.cumsum(sizes * (sizes - 1) // 2)
        for prompt, step, m, end, last in zip(self.prompts, self.steps, sizes, ends, pairs, strict=True):
            q = self.shares[end - m : end].astype(np.float64)
            triangle = self.similarities[last - m * (m - 1) // 2 : last].astype(np.float64)
            yield int(prompt), int(step), q / q.sum(), triangle


def link(triangle: np.ndarray) -> np.ndarray:
    """The mergers of average linkage on 1 - s, as `scipy.cluster.hierarchy.linkage` gives them, (m - 1, 4)."""
    return hierarchy.linkage(np.clip(1 - triangle, 0, 1), "average")


def cut(mergers: np.ndarray, threshold: float) -> np.ndarray:
    """The group (m,) of each candidate, counted from 0: groups of at least a mean similarity of ``threshold`` merge."""
    return hierarchy.fcluster(mergers, 1 - threshold + TOLERANCE, "distance") - 1


def split_entropy(q: np.ndarray, groups: np.ndarray) -> Split:
    """Both parts of H(q) for the groups (m,) of the candidates, counted from 0; ``q`` (m,) sums to 1."""
    mass = np.bincount(groups, q)
    with np.errstate(divide="ignore", invalid="ignore"):
        within = np.where(q > 0, 0 - q * np.log(q / mass[groups]), 0).sum()
    return Split(_compute_entropy(mass), float(within))


def _compute_entropy(q: np.ndarray) -> float:
    q = q[q > 0]
    return max(0.0, float(-(q * np.log(q)).sum()))


def draw_null(q: np.ndarray, groups: np.ndarray, generator: np.random.Generator, draws: int = DRAWS) -> Split:
    """The mean split over ``draws`` of groups of the same sizes, to which candidates are assigned at random."""
    number = int(groups.max()) + 1
    shuffled = generator.permuted(np.broadcast_to(q, (draws, len(q))), axis=1)
    mass = np.zeros((draws, number))
    for group in range(number):
        mass[:, group] = shuffled[:, groups == group].sum(1)
    positive = np.where(mass > 0, mass, 1)
    what = max(0.0, float(-(positive * np.log(positive)).sum(1).mean()))
    return Split(what, max(0.0, _compute_entropy(q) - what))


def tabulate(matrices: Mapping[str, np.ndarray], threshold: float, seed: int = 0) -> dict[str, np.ndarray]:
    """The columns `SPLIT` (N,) for the choices of a context.pt; entropies in nats.

    The draws of the null model depend on ``seed`` and on a token's prompt and step, and on nothing else. Where all
    candidates are in one group, or each is alone, there is only one way to draw them.
    """
    rows = []
    for prompt, step, q, triangle in Choices.collect(matrices).iterate():
        rows.append(_describe(q, cut(link(triangle), threshold), (seed, prompt, step)))
    columns = np.array(rows, np.float64).reshape(-1, len(SPLIT)).T
    kinds = {"groups": np.int32}
    return {name: column.astype(kinds.get(name)) for name, column in zip(SPLIT, columns, strict=True)}


def _describe(q: np.ndarray, groups: np.ndarray, seeds: tuple[int, ...]) -> tuple[float, ...]:
    """The values `SPLIT` of one choice."""
    number = int(groups.max()) + 1
    found = null = split_entropy(q, groups)
    if 1 < number < len(q):
        null = draw_null(q, groups, np.random.default_rng([seed % 2**63 for seed in seeds]))
    return (number, *found, *null)


def compute_curve(
    matrices: Mapping[str, np.ndarray], thresholds: Sequence[float] = THRESHOLDS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Means over choices at each of ``thresholds``, (T,) each: the columns `SPLIT`, and ``threshold`` itself."""
    sums, count = np.zeros((len(thresholds), len(SPLIT))), 0
    for prompt, step, q, triangle in Choices.collect(matrices).iterate():
        mergers, known = link(triangle), dict[bytes, tuple]()  # most thresholds give the groups of another one
        count += 1
        for place, threshold in enumerate(thresholds):
            groups = cut(mergers, threshold)
            if groups.tobytes() not in known:
                known[groups.tobytes()] = _describe(q, groups, (seed, prompt, step))
            sums[place] += known[groups.tobytes()]
    means = sums / count if count else np.full_like(sums, np.nan)
    return {"threshold": np.asarray(thresholds, float)} | dict(zip(SPLIT, means.T, strict=True))
