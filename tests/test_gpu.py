"""The same on a GPU as on the CPU. Skipped where there is no CUDA device, and said so."""

import pytest
import torch

import tiny
from nucleoscope import cosine, entropy, generation
from nucleoscope.nucleus import nucleus, sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: what runs on a GPU is untested here"),
]


@pytest.mark.parametrize("width", [1, 8, 128])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_nuclei_are_the_same(width, spread):
    logits = torch.randn(16, 5000, generator=torch.Generator().manual_seed(0)) * spread
    here, there = nucleus(logits, 0.9, width), nucleus(logits.cuda(), 0.9, width)
    rows = [[row.tolist() for row in n.ids.split(n.offsets.diff().tolist())] for n in (here, there)]
    for one, other in zip(*rows, strict=True):
        assert abs(len(one) - len(other)) <= 1  # the mass may fall on either side of top_p
        assert sorted(one[:-1]) == sorted(other[: len(one) - 1])  # near ties as the device rounds


def test_quantities_are_the_same():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 5000, generator=generator) * 3
    embedding, u = torch.randn(5000, 64, generator=generator), torch.rand(16, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        chosen = nucleus(logits.to(device), 0.9)
        rows = embedding.to(device)
        alike = cosine.similarity(*chosen, rows, cosine.inverse_norms(rows))
        place = sample(chosen, u.to(device))
        values = [
            *entropy.nucleus_entropy(chosen.probs, chosen.offsets),
            entropy.full_entropy(logits.to(device)),
            *alike,
        ]
        found.append((chosen.ids[place].cpu(), torch.stack([value.double().cpu() for value in values])))
    assert (found[0][0] == found[1][0]).all()
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2"])
def test_tokens_are_the_same(kind):
    texts = ["the cat sat on the", "in", "a long and winding road that leads to the other end"]
    rows = []
    for device in ("cpu", "cuda"):
        model = tiny.model(kind).to(device)
        options = {"max_tokens": 20, "batches": [[0, 1, 2]], "progress": False}
        (batch,) = generation.measure(model, tiny.tokenizer(), texts, **options)
        rows.append([record["tokens"].tolist() for record in batch.records])
    assert rows[0] == rows[1]
