"""One decoding step of B tokens, from which every quantity is computed.

Contract: tensors on one device in, one number per token (B,) out, without a copy to the host. Each
intermediate result is computed once, when the first quantity needs it.
"""

from collections.abc import Iterable
from functools import cached_property

import torch

from nucleoscope.measure import cosine, entropy
from nucleoscope.measure.distribution import Distribution


def list_ends(ends: Iterable[int], device: torch.device) -> torch.Tensor:
    """The ids that end a text, each once, as `Step` takes them: (E,) int64 on the device."""
    return torch.tensor(sorted(set(ends)), dtype=torch.long, device=device)


class Step:
    """B tokens, the logits they were chosen from, and their candidates.

    ``logits`` (B, V), divided by the temperature; ``distribution`` is what they say, ``tokens`` (B,) are the ids
    taken, ``directions`` those of the embedding's rows (`cosine.find_directions`). ``places`` (B,) are the
    positions of the tokens in ``candidates.ids`` if they were drawn from there, else None. ``ends`` (E,) are the ids
    that end a text (`list_ends`); by default they are unknown.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        distribution: Distribution,
        tokens: torch.Tensor,
        directions: cosine.Directions,
        places: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
    ):
        self.logits, self.tokens, self.places, self.ends = logits, tokens, places, ends
        self.candidates, self._full, self.margin, self.windows = distribution
        self.directions, self.embedding = directions, directions.embedding

    @property
    def k(self) -> torch.Tensor:
        return self.candidates.offsets.diff()

    @cached_property
    def _nucleus(self) -> entropy.NucleusEntropies:
        return entropy.compute_nucleus_entropies(self.candidates.probs, self.candidates.offsets)

    @cached_property
    def _similarity(self) -> cosine.Similarity:
        return cosine.compute_similarity(*self.candidates, self.directions)

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
    def end_probability(self) -> torch.Tensor:
        """The probability under p that the text ends here; NaN if it is unknown which tokens end one.

        Some configurations name an end that the vocabulary does not have: it has no probability.
        """
        if self.ends is None:
            return torch.full_like(self.margin, torch.nan)
        last = self.logits.shape[-1] - 1
        exists = (self.ends >= 0) & (self.ends <= last)
        likeliest = self.candidates.ids[self.candidates.offsets[:-1]]
        best = self.logits.gather(-1, likeliest[:, None]).float()
        p = (self.logits[:, self.ends.clamp(0, last)].float() - best).exp() * self._full.largest[:, None]
        return torch.where(exists, p, 0).sum(-1).clamp_max(1)

    @cached_property
    def surprisal(self) -> torch.Tensor:
        """-log p(token taken)."""
        if self.places is not None:
            return 0 - self.candidates.probs[self.places].log()  # not -0, of a certain token
        likeliest = self.candidates.ids[self.candidates.offsets[:-1]]
        best, own = (self.logits.gather(-1, ids[:, None])[:, 0].float() for ids in (likeliest, self.tokens))
        return best - own - self._full.largest.log()

    @cached_property
    def rank(self) -> torch.Tensor:
        """1 for the likeliest token; among equally likely tokens, the lower id comes first."""
        if self.places is not None:
            return self.places - self.candidates.offsets[:-1] + 1
        if self.logits.device.type == "cpu":
            return _count_likelier(self.logits, self.tokens) + 1
        own = self.logits.gather(-1, self.tokens[:, None])
        ids = torch.arange(self.logits.shape[-1], device=self.logits.device)
        ahead = (self.logits > own) | ((self.logits == own) & (ids < self.tokens[:, None]))
        return ahead.sum(-1) + 1


def _count_likelier(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How many logits (B, V) are ahead of those of ``tokens`` (B,), row by row, so that each stays in a CPU's cache.

    Before a token's id, equal logits are ahead of it too. To count what is not 0 in a whole tensor is quick; a sum of
    truth values along an axis first turns each into an int64.
    """
    counts = []
    for row, token in zip(logits, tokens.tolist(), strict=True):
        own = row[token]
        counts.append((row[:token] >= own).count_nonzero() + (row[token + 1 :] > own).count_nonzero())
    return torch.stack(counts)
