"""One decoding step of B tokens, from which every quantity is computed.

Contract: tensors on one device in, one number per token (B,) out, without a copy to the host. Each
intermediate result is computed once, when the first quantity needs it.
"""

from functools import cached_property

import torch

from nucleoscope.measure import cosine, entropy
from nucleoscope.measure.nucleus import Nucleus
from nucleoscope.measure.softmax import compute_log_probabilities


class Step:
    """B tokens, the logits they were chosen from, and their candidates.

    ``logits`` (B, V), divided by the temperature; ``candidates`` their nuclei; ``tokens`` (B,) the ids
    taken; ``embedding`` (V, d) and ``inverse_norm`` (V,) as in `cosine.compute_similarity`. ``places`` (B,) are
    the positions of the tokens in ``candidates.ids`` if they were drawn from there, else None.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        candidates: Nucleus,
        tokens: torch.Tensor,
        embedding: torch.Tensor,
        inverse_norm: torch.Tensor,
        places: torch.Tensor | None = None,
    ):
        self.logits, self.candidates, self.tokens = logits, candidates, tokens
        self.embedding, self.inverse_norm, self.places = embedding, inverse_norm, places

    @property
    def k(self) -> torch.Tensor:
        return self.candidates.offsets.diff()

    @cached_property
    def _nucleus(self) -> entropy.NucleusEntropies:
        return entropy.compute_nucleus_entropies(self.candidates.probs, self.candidates.offsets)

    @cached_property
    def _full(self) -> entropy.FullEntropies:
        return entropy.compute_full_entropies(self.logits)

    @cached_property
    def _similarity(self) -> cosine.Similarity:
        return cosine.compute_similarity(*self.candidates, self.embedding, self.inverse_norm)

    @property
    def entropy(self) -> torch.Tensor:
        return self._nucleus.entropy

    @property
    def varentropy(self) -> torch.Tensor:
        return self._nucleus.varentropy

    @property
    def collision_entropy(self) -> torch.Tensor:
        return self._nucleus.collision_entropy

    @property
    def full_entropy(self) -> torch.Tensor:
        return self._full.entropy

    @property
    def full_varentropy(self) -> torch.Tensor:
        return self._full.varentropy

    @property
    def cosine(self) -> torch.Tensor:
        return self._similarity.cosine

    @property
    def weighted_cosine(self) -> torch.Tensor:
        return self._similarity.weighted_cosine

    @property
    def similarity_entropy(self) -> torch.Tensor:
        return self._similarity.similarity_entropy

    @cached_property
    def surprisal(self) -> torch.Tensor:
        """-log p(token taken)."""
        if self.places is not None:
            return -self.candidates.probs[self.places].log()
        return -compute_log_probabilities(self.logits).gather(-1, self.tokens[:, None])[:, 0]

    @cached_property
    def rank(self) -> torch.Tensor:
        """1 for the likeliest token; among equally likely tokens, the lower id comes first."""
        if self.places is not None:
            return self.places - self.candidates.offsets[:-1] + 1
        own = self.logits.gather(-1, self.tokens[:, None])
        ids = torch.arange(self.logits.shape[-1], device=self.logits.device)
        ahead = (self.logits > own) | ((self.logits == own) & (ids < self.tokens[:, None]))
        return ahead.sum(-1) + 1

    @cached_property
    def margin(self) -> torch.Tensor:
        """p1 - p2 = p1 (1 - exp(z2 - z1)), which loses no digits if the two are close."""
        if self.logits.shape[-1] == 1:
            return torch.ones_like(self._full.largest)
        best = self.logits.topk(2, dim=-1).values.float()
        return -self._full.largest * (best[:, 1] - best[:, 0]).expm1()
