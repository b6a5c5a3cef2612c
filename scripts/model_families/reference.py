"""The oracle: what a model's tokens should have been measured as, one prompt at a time and without a cache.

Contract: a model, token ids and a record in, the largest error out; nothing here depends on nucleoscope.
The model computes in float32, everything after its logits is float64, and cosines are those of all k x k pairs.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

TOP_P = 0.9
# Rounding changes probabilities by 1e-7 or so. Where one is this close to the boundary of the nucleus, or to that
# of another token, either side counts as right, and everything else is computed for the nucleus that was measured.
NEAR = 1e-5


class Reference:
    """A model and what it gives for single texts, each read as a whole; no text is read twice."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.read = model, {}
        unit = _normalise(model.get_input_embeddings().weight.detach().double().numpy())
        self.cosines = unit @ unit.T  # of all pairs of the vocabulary, which is small
        accepted = inspect.signature(model.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in accepted else {}

    def measure_error(self, prompt: Sequence[int], record: Mapping[str, Any]) -> float:
        """The largest error of a record's values at any of its tokens, which the model is given as they were chosen.

        Errors are absolute for values up to 1, and relative above. Infinite for a nucleus or a rank that cannot be
        right, and for a value that is not a number.
        """
        ids, largest = list(prompt), 0.0
        for step, token in enumerate(record["tokens"].tolist()):
            candidates, probs = (record[name][step].numpy() for name in ("top_p_tokens", "top_p_probs"))
            p = self._compute_probabilities(ids)
            if not (_is_nucleus(p, candidates, probs) and _is_rank(p, token, record["ranks"][step])):
                return math.inf
            expected = _compute_quantities(p, candidates, token, self.cosines[np.ix_(candidates, candidates)])
            found = {name: record[name][step] for name in expected}
            pairs = [*zip(found.values(), expected.values(), strict=True), *zip(probs, p[candidates], strict=True)]
            errors = [abs(value - right) / max(1, abs(right)) for value, right in pairs]
            largest = max(largest, *(error if error == error else math.inf for error in errors))
            ids.append(token)
        return float(largest)

    def can_draw(self, ids: Sequence[int], token: int) -> bool:
        """Whether a token may be the next of a text: whether it is in the nucleus."""
        p = self._compute_probabilities(ids)
        return bool(p[p > p[token]].sum() < TOP_P + NEAR)

    @torch.inference_mode()
    def _compute_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        """The next token's probabilities (V,), float64, after a text."""
        text = tuple(ids)
        if text not in self.read:
            logits = self.model(input_ids=torch.tensor([text]), **self.options).logits[0, -1].double().numpy()
            weights = np.exp(logits - logits.max())
            self.read[text] = weights / weights.sum()
        return self.read[text]


def _normalise(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def _is_nucleus(p: np.ndarray, candidates: np.ndarray, probs: np.ndarray) -> bool:
    """Whether these are the fewest likeliest tokens with a mass of `TOP_P`, by falling probability, then rising id.

    Which of them are tied is said by ``probs``, the measured probabilities.
    """
    others = np.delete(p, candidates)
    mass, least = p[candidates].sum(), p[candidates].min()
    complete = mass >= TOP_P - NEAR and mass - least < TOP_P + NEAR
    likeliest = not len(others) or others.max() <= least + NEAR
    ordered = (np.diff(p[candidates]) <= NEAR).all() and (np.diff(candidates)[np.diff(probs) == 0] > 0).all()
    return bool(complete and likeliest and ordered)


def _is_rank(p: np.ndarray, token: int, rank: float) -> bool:
    """Whether a token may have this rank: 1 + how many are likelier."""
    return 1 + (p > p[token] + NEAR).sum() <= rank <= (p >= p[token] - NEAR).sum()


def _compute_quantities(p: np.ndarray, candidates: np.ndarray, token: int, cosines: np.ndarray) -> dict[str, float]:
    """The quantities of one token by their names in a record, from their definitions; ``cosines`` (k, k)."""
    q = p[candidates] / p[candidates].sum()
    similar = (1 + cosines) / 2
    np.fill_diagonal(similar, 1)
    products = np.outer(q, q)
    np.fill_diagonal(products, 0)
    first, second = np.sort(p)[::-1][:2]
    several = len(q) > 1
    return {
        "entropies": _compute_entropy(q),
        "full_entropies": _compute_entropy(p),
        "varentropies": _compute_varentropy(q),
        "full_varentropies": _compute_varentropy(p),
        "collision_entropies": -math.log((q * q).sum()),
        "surprisals": -math.log(p[token]),
        "margins": first - second,
        "cosines": cosines[np.triu_indices(len(q), 1)].mean() if several else 1.0,
        "weighted_cosines": (products * cosines).sum() / products.sum() if several else 1.0,
        "similarity_entropies": -float((q * np.log((similar * q).sum(1))).sum()),
    }


def _compute_entropy(p: np.ndarray) -> float:
    return -float((p[p > 0] * np.log(p[p > 0])).sum())


def _compute_varentropy(p: np.ndarray) -> float:
    surprisals = -np.log(p[p > 0])
    return float((p[p > 0] * (surprisals - _compute_entropy(p)) ** 2).sum())
