"""Probabilities over the largest vocabularies, against compensated sums in float64."""

import math

import pytest
import torch

import oracle
from nucleoscope.measure import cosine, entropy
from nucleoscope.measure.distribution import describe_distribution
from nucleoscope.measure.nucleus import find_nucleus
from nucleoscope.measure.softmax import exponentiate
from nucleoscope.measure.step import Step

V = 262_144  # Gemma's


def create_logits(scale: float, seed: int) -> torch.Tensor:
    """Logits of a flat or steep distribution over the vocabulary."""
    return scale * torch.randn(1, V, generator=torch.Generator().manual_seed(seed))


def compute_exactly(logits: torch.Tensor) -> list[float]:
    """p in float64, normalised by a compensated sum."""
    largest = float(logits.max())
    parts = [math.exp(value - largest) for value in logits.double().tolist()]
    total = math.fsum(parts)
    return [part / total for part in parts]


@pytest.mark.parametrize(("scale", "seed"), [(0.5, 0), (2.0, 1), (4.0, 2)])
def test_probabilities_of_a_large_vocabulary_are_right(scale, seed):
    logits = create_logits(scale, seed)
    exact = torch.tensor(compute_exactly(logits[0]), dtype=torch.float64)
    found = exponentiate(logits).compute_probabilities()[0].double()
    assert float(((found - exact) / exact).abs().max()) < 4e-6
    assert math.fsum(found.tolist()) == pytest.approx(1, abs=4e-6)
    expected = -math.fsum(p * math.log(p) for p in exact.tolist())
    full = entropy.compute_full_entropies(logits)
    assert float(full.entropy) == pytest.approx(expected, abs=1e-5)
    assert len(find_nucleus(logits, 0.9).ids) == len(oracle.find_nucleus(exact.numpy(), 0.9))


def test_a_probability_near_1_keeps_the_digits_of_its_logarithm():
    logits = torch.tensor([[30.0, 14.0]])
    directions = cosine.find_directions(torch.eye(2))
    step = Step(logits, describe_distribution(logits, 0.9), torch.tensor([0]), directions)
    assert float(step.surprisal) == pytest.approx(math.log1p(math.exp(-16)), abs=6e-8)


@pytest.mark.parametrize("row", [[math.nan, 0], [math.inf, 0], [-math.inf, -math.inf]])
def test_logits_that_define_no_distribution_give_nan(row):
    assert bool(exponentiate(torch.tensor([row])).compute_probabilities().isnan().all())
