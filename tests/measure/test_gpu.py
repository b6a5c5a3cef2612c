"""The same on a GPU as on the CPU. Skipped where there is no CUDA device, and said so."""

import pytest
import torch

import tiny
from nucleoscope.measure import batching, cosine, entropy, generation, model_facts, scoring
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.nucleus import find_nucleus
from nucleoscope.measure.sampling import sample
from nucleoscope.models import gpus, loading, placement

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE: what runs on a GPU is untested here"),
]


@pytest.mark.parametrize("width", [1, 8, 128])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_nuclei_are_the_same(width, spread):
    logits = torch.randn(16, 5000, generator=torch.Generator().manual_seed(0)) * spread
    here, there = find_nucleus(logits, 0.9, width), find_nucleus(logits.cuda(), 0.9, width)
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
        chosen = find_nucleus(logits.to(device), 0.9)
        rows = embedding.to(device)
        alike = cosine.compute_similarity(*chosen, cosine.find_directions(rows))
        place = sample(chosen, u.to(device))
        values = [
            *entropy.compute_nucleus_entropies(chosen.probs, chosen.offsets),
            *entropy.compute_full_entropies(logits.to(device)),
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
        model = tiny.create_model(kind).to(device)
        options = {"max_tokens": 20, "batches": [[0, 1, 2]], "progress": False}
        (batch,) = generation.measure(model, tiny.create_tokenizer(), texts, **options)
        rows.append([record["tokens"].tolist() for record in batch.records])
    assert rows[0] == rows[1]


TEXTS = ["the cat sat on the", "in", "a long and winding road that leads to the other end"]


def measure_texts(model):
    """What a model writes after `TEXTS`, and reads in them."""
    options = {"max_tokens": 20, "batches": [[2, 0, 1]], "progress": False}
    (written,) = generation.measure(model, tiny.create_tokenizer(), TEXTS, **options)
    (read,) = scoring.measure(model, tiny.create_tokenizer(), TEXTS, TEXTS[::-1], **options)
    return [*written.records, *read.records]


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        assert left["tokens"].tolist() == right["tokens"].tolist()
        for name in tiny.QUANTITIES:
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_weights_are_read_straight_to_the_gpu(tmp_path, device):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer())
    loaded = loading.load(name, "float32", device).model
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert not hasattr(loaded, "_hf_hook")  # a model in one place pays for no hooks
    assert_same(measure_texts(loaded), measure_texts(tiny.create_model()))
    (entry,) = batching.collect_run_info(loaded, Inputs([[1]]), [], "auto")["devices"]
    assert entry["name"] == torch.cuda.get_device_name(loaded.device)


def test_a_packed_model_is_read_to_the_gpu(tmp_path):
    name = tiny.save_gguf(tmp_path / "tiny.gguf", tiny.create_model(), tiny.create_tokenizer())
    loaded = loading.load(name, "float32", "cuda").model
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert_same(measure_texts(loaded), measure_texts(tiny.create_model()))


def test_what_the_driver_says_is_what_cuda_says():
    """Of an idle GPU at least; on a busy one both change."""
    told = gpus.query_free_memory()
    for gpu in range(torch.cuda.device_count()):
        if placement._read_id(gpu) in told:
            assert told[placement._read_id(gpu)] == pytest.approx(torch.cuda.mem_get_info(gpu)[0], rel=0.1, abs=2**30)


TWO = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="NO SECOND GPU: models on several GPUs are untested here"
)


@TWO
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_on_several_gpus_measures_as_on_one(tmp_path, kind, tied):
    model = tiny.create_model(
        kind, tie_word_embeddings=tied, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 6}
    )
    name = tiny.save(tmp_path / "tiny", model, tiny.create_tokenizer())
    spread = loading.load(name, "float32", "balanced").model
    assert len(model_facts.count_weight_bytes(spread)) > 1
    assert_same(measure_texts(spread), measure_texts(model))
    info = batching.collect_run_info(spread, Inputs([[1]]), [], "auto")
    assert info["device"].startswith(f"{len(info['devices'])} x ") or ", " in info["device"]
    assert all(entry["modules"] for entry in info["devices"])


@TWO
def test_a_model_that_does_not_fit_one_gpu_is_spread(tmp_path, monkeypatch):
    model = tiny.create_model(num_hidden_layers=6)
    name = tiny.save(tmp_path / "tiny", model, tiny.create_tokenizer())
    size = sum(parameter.nbytes for parameter in model.parameters())
    monkeypatch.setattr(placement, "read_free_memory", lambda: {0: int(0.8 * size), 1: int(0.8 * size)})
    spread = loading.load(name, "float32", "auto").model
    assert {device.index for device in model_facts.count_weight_bytes(spread)} == {0, 1}
    assert_same(measure_texts(spread), measure_texts(model))
