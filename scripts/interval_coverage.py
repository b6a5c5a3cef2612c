"""Measures how often 95% intervals for coefficients cover the truth, and prints the method page's coverage table.

Tables of tokens are drawn from a normal distribution with known correlation in which half of the variance of each
quantity is between prompts, about the same share as in texts written by a small model. Every kind of interval is
computed from every table.
"""

import math
from functools import partial

import numpy as np

from nucleoscope.workflow.command_line import Parser

LENGTH = 15  # tokens per prompt
R, SHARE = -0.5, 0.5  # Pearson's coefficient of a token drawn at random; the share of the variances between prompts
RESAMPLES = 1000
PROMPTS = (6, 12, 20, 30, 60, 100)
TABLES = 2000
SPEARMAN = 6 / math.pi * math.asin(R / 2)
TRUTH = {"Pearson": R, "Spearman": SPEARMAN, "Spearman within k": SPEARMAN}


def draw_table(prompts: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two quantities (n, 2) of the tokens of some prompts, their prompts (n,), and k (n,), some common, some rare."""
    rng = np.random.default_rng([prompts, seed])
    covariance = [[1, R], [R, 1]]
    level = rng.multivariate_normal([0, 0], covariance, size=prompts).repeat(LENGTH, axis=0)
    rest = rng.multivariate_normal([0, 0], covariance, size=prompts * LENGTH)
    k = 2 + rng.geometric(0.08, prompts * LENGTH)
    return np.sqrt(SHARE) * level + np.sqrt(1 - SHARE) * rest, np.arange(prompts).repeat(LENGTH), k


def compute_intervals(prompts: int, seed: int) -> dict[tuple[str, str], tuple[float, float]]:
    """The intervals of one table, {(coefficient, kind): (low, high)}.

    Of the coefficient within k, entropy and cosine are first shifted by k: only tokens of equal k can be compared then.
    """
    from nucleoscope.stats import bootstrap  # here: --help need not wait for scipy

    values, prompt, k = draw_table(prompts, seed)
    once = np.ones((1, prompts), dtype=np.int32)
    counts = {
        bootstrap.PERCENTILE: bootstrap.draw_counts(prompts, RESAMPLES, seed),
        bootstrap.JACKKNIFE: bootstrap.leave_out_groups(prompts, seed=seed),
    }
    found = {}
    for kind, some in counts.items():
        every = np.concatenate([once, some])
        shifted = values + np.log(k)[:, None]
        drawn = {"Pearson": bootstrap.compute_pearson(values, prompt, every)[:, 0, 1]}
        drawn["Spearman"] = bootstrap.compute_spearman(values, prompt, every)[:, 0, 1]
        drawn["Spearman within k"] = bootstrap.compute_spearman(shifted, prompt, every, k)[:, 0, 1]
        for name, (first, *others) in drawn.items():
            if kind == bootstrap.JACKKNIFE:
                found[name, kind] = bootstrap.compute_jackknife_interval(first, np.array(others))
            else:
                found[name, kind] = tuple(map(float, bootstrap.compute_interval(np.array(others))))
    return found


def count_covered(prompts: int, tables: int) -> dict[tuple[str, str], tuple[float, float]]:
    """The share of tables whose interval covers the truth and the mean width, {(coefficient, kind): (share, width)}."""
    rows = [compute_intervals(prompts, seed) for seed in range(tables)]
    covered = {}
    for name, kind in rows[0]:
        low, high = np.array([row[name, kind] for row in rows]).T
        covered[name, kind] = float(np.mean((low <= TRUTH[name]) & (TRUTH[name] <= high))), float(np.mean(high - low))
    return covered


def format_table(covered: dict[int, dict[tuple[str, str], tuple[float, float]]], tables: int) -> str:
    """A Markdown table: a row for each number of prompts, with shares and, in parentheses, their Monte Carlo errors."""
    names = sorted(next(iter(covered.values())), key=lambda pair: list(TRUTH).index(pair[0]))
    lines = ["| prompts | " + " | ".join(f"{name}, {kind}" for name, kind in names) + " |"]
    lines += ["|---|" + "---|" * len(names)]
    for prompts, shares in covered.items():
        cells = [f"{share:.3f} ({math.sqrt(share * (1 - share) / tables):.3f})" for share, _ in map(shares.get, names)]
        lines.append(f"| {prompts} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table; the default number of tables takes some minutes."""
    options = Parser(__doc__)
    options.add_whole_number("tables", 2, 10**6, default=TABLES, help="number of tables for each number of prompts")
    tables = options.parse_args().tables
    from nucleoscope.stats import parallel

    found = parallel.map_parallel(partial(count_covered, tables=tables), PROMPTS[::-1], None)
    print(format_table(dict(zip(PROMPTS, found[::-1], strict=True)), tables), end="")


if __name__ == "__main__":
    main()
