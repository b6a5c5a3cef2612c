"""What is measured of each token in every variant: the same quantities, of other candidate sets in other geometries.

Contract: logits in, one tensor of numbers out, on the same device; sampling does not depend on it.

``similarity_entropy`` is the uncapped form -sum q_i log (Zq)_i, Z_ij = max(0, (u_i.u_j - c) / (1 - c)), Z_ii = 1,
where c is the mean cosine of two tokens of the vocabulary in that geometry (Leinster and Cobbold 2012, order 1). It
needs every pair, and is computed for sets within the `MOST_PAIRS` likeliest tokens. It is NaN for others.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from nucleoscope.measure.candidate_sets import Windows, find_windows
from nucleoscope.measure.geometry import build_spaces, count_usage
from nucleoscope.measure.model_facts import find_embedding_matrix, find_output_matrix
from nucleoscope.measure.segments import Segments
from nucleoscope.variants import OF_SET, OF_VARIANT, Layout, Selection, parse


class Variants:
    """Measures tokens in the ``selection`` of variants, in the spaces of a model.

    ``embedding`` (V, d) and ``output`` (V, d') or None, and ``usage`` (V,), are those of `geometry.build_spaces`.
    ``layout`` names the sets and geometries that are measured.
    """

    def __init__(self, selection: Selection, embedding: torch.Tensor, output: torch.Tensor | None, usage: torch.Tensor):
        self.sets, self.usage = selection.sets, usage
        self.spaces = build_spaces(selection.geometries, embedding, output, usage)
        geometries = [each.geometry.name for space in self.spaces for each in space.maps]
        self.layout = Layout([each.name for each in self.sets], geometries)

    def create_empty(self) -> torch.Tensor:
        """The numbers (0, N, 3 + 3 G) of no tokens, on the host."""
        return torch.empty(0, len(self.layout.candidates), self.layout.width)

    def describe(self, texts: str) -> dict[str, Any]:
        """What run.json says of the variants; ``texts`` says in words what the usage was counted in."""
        found: dict[str, Any] = self.layout._asdict()
        if "usage_centred" in self.layout.geometry:
            counted = {"tokens": int(self.usage.sum()), "different": int((self.usage > 0).sum())}
            found["usage_centred"] = {"weights": f"tokens of the {texts}"} | counted
        return found

    @torch.inference_mode()
    def measure(self, logits: torch.Tensor, full_entropy: torch.Tensor) -> torch.Tensor:
        """The numbers (B, N, 3 + 3 G) float32 of tokens with these logits (B, V), divided by the temperature.

        For each of the N sets k, mass and entropy (nats), then for each of the G geometries cosine, weighted_cosine
        and similarity_entropy (nats). With k = 1 both cosines are NaN: there is no pair. ``full_entropy`` (B,) is H(p).
        """
        return self.measure_windows(find_windows(logits, full_entropy, self.sets))

    @torch.inference_mode()
    def measure_windows(self, windows: Windows) -> torch.Tensor:
        """The same of tokens of which the `sets` have been found."""
        width = sum(space.scales.shape[1] for space in self.spaces)
        size = (*windows.extents.shape[:2], len(OF_SET) + width * len(OF_VARIANT))
        values = torch.empty(size, dtype=torch.float32, device=windows.ids.device)
        segments = Segments(windows)
        values[..., 0], values[..., 1], values[..., 2] = segments.summarise()
        column = len(OF_SET)
        for space in self.spaces:
            end = column + len(OF_VARIANT) * len(space.maps)
            values[..., column:end] = segments.compare(space).flatten(2)
            column = end
        return values


@torch.inference_mode()
def create_variants(model: PreTrainedModel, texts: Iterable[list[int]], setting: str) -> Variants | None:
    """What measures the variants that the ``setting`` names, for a model; None if it names none.

    ``texts`` are the ids of the run's prompts, with what is scored: usage is counted in them.
    """
    selection = parse(setting)
    if selection is None:
        return None
    embedding = find_embedding_matrix(model)
    usage = count_usage(texts, len(embedding))
    wanted = any(each.name == "output" for each in selection.geometries)  # it may be copied
    return Variants(selection, embedding, find_output_matrix(model) if wanted else None, usage)


def find_layout(variants: Variants | None) -> Layout | None:
    """The names of what ``variants`` measures; None if nothing is."""
    return None if variants is None else variants.layout
