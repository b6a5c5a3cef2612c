"""Logits and nuclei in, records out: the quantities of each token, whoever chose it.

Contract: this module knows neither models nor where the tokens came from. A record is one
prompt's dict in a measurements file: prompt, tokens (int64), top_p_tokens and top_p_probs (a
tensor a token, by falling probability under the full distribution), and a list a quantity, named
in `QUANTITIES`.
"""

from itertools import pairwise

import torch

from nucleoscope.measure import cosine, entropy
from nucleoscope.measure.nucleus import Nucleus
from nucleoscope.store.results import COLUMNS

QUANTITIES = tuple(name for name in COLUMNS if name != "tokens")  # a record's lists, in `quantities`' order


def quantities(
    logits: torch.Tensor,
    chosen: Nucleus,
    surprisals: torch.Tensor,
    embedding: torch.Tensor,
    inverse_norm: torch.Tensor,
) -> torch.Tensor:
    """All quantities (7, B) float64 of B steps, in the order of `QUANTITIES`, without a copy to the host.

    ``logits`` (B, V) and their nuclei; ``surprisals`` (B,) of the tokens that were taken, in nats;
    ``embedding`` (V, d) and ``inverse_norm`` (V,) as in `cosine.similarity`.
    """
    h, varentropy = entropy.nucleus_entropy(chosen.probs, chosen.offsets)
    alike = cosine.similarity(*chosen, embedding, inverse_norm)
    columns = (h, entropy.full_entropy(logits), varentropy, surprisals, *alike)
    return torch.stack([column.to(h.dtype) for column in columns])


def unpack(tokens: torch.Tensor, chosen: Nucleus, values: torch.Tensor) -> list[tuple]:
    """B steps on the host, each (token, nucleus ids, nucleus probs, values), as `record` takes them.

    ``tokens`` (B,), their nuclei, and ``values`` (7, B) from `quantities`.
    """
    ids, probs, offsets = chosen.ids.cpu(), chosen.probs.cpu(), chosen.offsets.tolist()
    parts = [slice(start, end) for start, end in pairwise(offsets)]
    rows = zip(tokens.tolist(), parts, values.T.tolist(), strict=True)
    return [(token, ids[part], probs[part], row) for token, part, row in rows]


def record(prompt: str, tokens: list[tuple]) -> dict:
    """One prompt's record from (token, nucleus ids, nucleus probs, values) per token.

    A prompt's nuclei are views of one tensor each, which makes the file small and quick to load.
    """
    sizes = [len(ids) for _, ids, _, _ in tokens]
    ids = torch.cat([ids for _, ids, _, _ in tokens]).split(sizes) if tokens else ()
    probs = torch.cat([probs for _, _, probs, _ in tokens]).split(sizes) if tokens else ()
    entry = {
        "prompt": prompt,
        "tokens": torch.tensor([token for token, *_ in tokens], dtype=torch.long),
        "top_p_tokens": list(ids),
        "top_p_probs": list(probs),
    }
    columns = zip(*(values for *_, values in tokens), strict=True) if tokens else [()] * len(QUANTITIES)
    return entry | {name: list(column) for name, column in zip(QUANTITIES, columns, strict=True)}
