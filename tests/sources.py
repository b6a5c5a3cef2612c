"""Synthetic sources of text with known distributions, for the tests of calibration: no model, no files."""

import numpy as np
import pandas as pd

TOP_P, VOCABULARY = 0.9, 12


def draw_text(
    seed: int,
    text: str = "existing",
    believed: float = 1.0,
    prompts: int = 40,
    length: int = 25,
    spread: float = 1.5,
    level: float = 0.5,
    ending: float = 0.0,
    steady: bool = True,
    known: bool = True,
) -> pd.DataFrame:
    """Tokens as `text_pairs.load_pair` returns them, of a model whose logits are normal, with a spread of its own each.

    The tokens are drawn from p ("existing", a calibrated source), or from the nucleus ("written"). The model believes
    p to the power of ``believed``: above 1 it is too sure of the text. A prompt has its own ``level`` of spread, so its
    tokens depend on each other. The model gives the end of the text, the last token of the vocabulary, the probability
    ``ending``, or each time another one up to that if it is not ``steady``, and no token of a text is an end. Files of
    earlier versions do not have what is ``known`` of ends.
    """
    rng = np.random.default_rng(seed)
    n = prompts * length
    prompt = np.repeat(np.arange(prompts), length)
    scale = spread * np.exp(rng.normal(0, level, prompts)[prompt] + rng.normal(0, 0.5, n))
    logits = scale[:, None] * rng.normal(size=(n, VOCABULARY))
    true, p = _normalise(logits), _normalise(believed * logits)
    ends = np.zeros((n, VOCABULARY), dtype=bool)
    if ending:
        ends[:, -1] = True
        e = ending if steady else rng.uniform(0, ending, (n, 1))
        true, p = (np.where(ends, e, each * (1 - e) / (1 - each[:, -1:])) for each in (true, p))
    order = np.argsort(-p, axis=1)
    p, true, ends = (np.take_along_axis(each, order, 1) for each in (p, true, ends))
    k = (np.cumsum(p, axis=1) < TOP_P).sum(axis=1) + 1
    inside = np.arange(VOCABULARY) < k[:, None]
    mass = np.where(inside, p, 0).sum(axis=1)
    q = np.where(inside, p, 0) / mass[:, None]
    source = np.where(ends, 0, q if text == "written" else true)
    source /= source.sum(axis=1, keepdims=True)
    rank = 1 + (rng.uniform(size=(n, 1)) > np.cumsum(source, axis=1)).sum(axis=1).clip(max=VOCABULARY - 1)
    entropy, varentropy = _describe(q)
    full_entropy, full_varentropy = _describe(p)
    p_end = np.where(ends & inside, p, 0)
    log = np.log(np.where(p_end > 0, p_end, 1))
    about = {
        "end_probability": np.where(ends, p, 0).sum(axis=1),
        "end_mass": p_end.sum(axis=1),
        "end_information": -(p_end * log).sum(axis=1),
        "end_information_squared": (p_end * log**2).sum(axis=1),
    }
    return pd.DataFrame(
        {
            "prompt": prompt,
            "step": np.tile(np.arange(length), prompts),
            "k": k,
            "entropy": entropy,
            "full_entropy": full_entropy,
            "varentropy": varentropy,
            "full_varentropy": full_varentropy,
            "surprisal": -np.log(p[np.arange(n), rank - 1]),
            "rank": rank.astype(float),
            "margin": p[:, 0] - p[:, 1],
            "cosine": np.where(k > 1, rng.uniform(-1, 1, n), np.nan),
            "mass": mass,
        }
        | (about if known else dict.fromkeys(about, np.nan))
    )


def _normalise(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _describe(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy and varentropy of each row."""
    surprisal = -np.log(np.where(p > 0, p, 1))
    mean = (p * surprisal).sum(axis=1)
    return mean, (p * (surprisal - mean[:, None]) ** 2).sum(axis=1)
