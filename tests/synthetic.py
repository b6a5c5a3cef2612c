"""Tables of tokens with known answers, for the tests of the statistics."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

QUANTITIES = ("full_entropy", "weighted_cosine", "similarity_entropy", "varentropy", "surprisal")


def create_table(prompt, entropy, cosine, k=2, model: str = "model", dataset: str = "data", **others) -> pd.DataFrame:
    """A table as `results.load_table` makes it; a quantity that is not given is NaN, as in the study's files."""
    prompt = np.asarray(prompt)
    columns = {
        "model": pd.Categorical([model] * len(prompt), [model]),
        "dataset": pd.Categorical([dataset] * len(prompt), [dataset]),
        "prompt": prompt,
        "step": pd.Series(prompt).groupby(prompt).cumcount().to_numpy(),
        "token": np.full(len(prompt), -1),
        "k": np.broadcast_to(np.asarray(k, dtype=np.int64), prompt.shape),
        "entropy": np.asarray(entropy, dtype=np.float64),
        "cosine": np.asarray(cosine, dtype=np.float64),
    }
    return pd.DataFrame(columns | {name: others.get(name, np.full(len(prompt), np.nan)) for name in QUANTITIES})


def draw_gaussian(seed: int, prompts: int = 60, length: int = 15, r: float = -0.5, share: float = 0.5) -> pd.DataFrame:
    """Entropy and cosine are normal with correlation ``r``; a prompt's own level has ``share`` of both variances.

    Level and rest are correlated alike, so ``r`` is Pearson's coefficient of a token drawn at random
    and 6 / pi asin(r / 2) is Spearman's.
    """
    rng = np.random.default_rng(seed)
    level = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=prompts).repeat(length, axis=0)
    rest = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=prompts * length)
    entropy, cosine = (np.sqrt(share) * level + np.sqrt(1 - share) * rest).T
    return create_table(np.repeat(np.arange(prompts), length), entropy, cosine, rng.integers(2, 9, prompts * length))


def draw_full(seed: int, prompts: int = 30, length: int = 20, **names: str) -> pd.DataFrame:
    """A table with every quantity, ties, tokens with k = 1, and all of it depending on k and on the prompt."""
    rng = np.random.default_rng(seed)
    n = prompts * length
    prompt = np.repeat(np.arange(prompts), length)
    k = np.minimum(rng.geometric(0.25, n), 40)
    entropy = np.where(k > 1, np.round(np.log(k) * rng.uniform(0.3, 1, n), 2), 0)
    cosine = np.where(k > 1, 0.4 - 0.1 * entropy + rng.normal(0, 0.1, prompts)[prompt] + rng.normal(0, 0.05, n), 1)
    others = {
        "full_entropy": entropy + rng.exponential(1, n),
        "weighted_cosine": np.where(k > 1, cosine + rng.normal(0, 0.02, n), 1),
        "similarity_entropy": entropy * rng.uniform(0.2, 0.6, n),
    }
    return create_table(prompt, entropy, cosine, k, **names, **others)


def draw_curved(
    curve: Callable, seed: int, prompts: int = 60, length: int = 40, level: float = 0.03, noise: float = 0.06, **names
) -> pd.DataFrame:
    """Cosine is ``curve`` of entropy, with symmetric noise and a level of the prompt's own."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), length)
    entropy = rng.uniform(0.02, 5, len(prompt))
    errors = rng.normal(0, level, prompts)[prompt] + rng.normal(0, noise, len(prompt))
    return create_table(prompt, entropy, curve(entropy) + errors, 3, **names)


def write_study_file(
    folder: Path, prompts: int = 30, length: int = 20, time: str = "2025-07-01_12-30", seed: int = 0
) -> Path:
    """A run as the published study's code leaves it: floats, the int 1 where k = 1, and its hyperparameters."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(prompts):
        sizes = rng.integers(1, 6, length)
        entropies = [float(np.log(size) * rng.uniform(0.4, 1)) if size > 1 else 0.0 for size in sizes]
        cosines = [float(0.5 - 0.1 * h + rng.normal(0, 0.05)) for h in entropies]
        records.append(
            {
                "prompt": f"prompt {index}",
                "entropies": entropies,
                "cosines": [c if size > 1 else 1 for c, size in zip(cosines, sizes, strict=True)],
                "top_p_tokens": [torch.arange(int(size)) for size in sizes],
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(records, folder / f"output_{time}.pt")
    (folder / "hyperparams.txt").write_text("top_p: 0.9\nmax_new_tokens: 100\n")
    return folder / f"output_{time}.pt"


def write_accuracy_file(folder: Path, prompts: int = 12, length: int = 20, seed: int = 0) -> Path:
    """A run as the accuracy experiment of the published study leaves it: a dict, half precision, and no cosines.

    The keys are those of its accuracy/pipeline.py; the token taken is the second candidate, if there are two.
    """
    rng = np.random.default_rng(seed)
    content = {}
    for index in range(prompts):
        sizes = rng.integers(1, 6, length)
        ids = [torch.tensor(rng.choice(100, size, replace=False)) for size in sizes]
        drawn = [np.sort(rng.dirichlet(np.ones(size)))[::-1] * rng.uniform(0.95, 1) for size in sizes]
        probabilities = [torch.tensor(each.copy(), dtype=torch.float16) for each in drawn]
        content[f"prompt{index}"] = {
            "generated_tokens": torch.stack([each[:2][-1] for each in ids]),
            "decoded_tokens": ["a"] * length,
            "top_p_tokens": ids,
            "top_p_logits": [each.log() for each in probabilities],
            "top_p_probs": probabilities,
            "prompt": f"examples, question {index}",
            "question": f"question {index}",
            "ground_truth": "#### 1",
            "latency": 1.5,
        }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "output_2025-08-01_10-00.pt")
    return folder / "output_2025-08-01_10-00.pt"
