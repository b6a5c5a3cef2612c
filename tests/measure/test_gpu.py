"""The same on a GPU as on the CPU. Skipped where there is no CUDA device, and said so."""

import contextlib

import pytest
import torch

import tiny
from nucleoscope.measure import (
    batching,
    capturing,
    checking,
    cosine,
    decoding,
    entropy,
    generation,
    model_facts,
    scoring,
    static,
)
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.nucleus import find_nucleus
from nucleoscope.measure.runs import complete_run
from nucleoscope.measure.sampling import sample
from nucleoscope.models import gpus, loading, placement
from nucleoscope.store import results, run_folder

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


# The static path


def generate(model, max_tokens=40):
    """The records of a batch that reads several numbers of columns and shrinks, and the path of its steps."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, tiny.VOCAB, (length,), generator=generator).tolist() for length in (21, 14, 9, 9, 3, 1)]
    options = {"inputs": Inputs(ids), "batches": [list(range(6))], "max_tokens": max_tokens, "progress": False}
    (batch,) = generation.measure(model, tiny.create_tokenizer(), [""] * 6, **options)
    return batch.records, batch.path


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2"])
def test_captured_steps_are_those_that_are_not_captured_and_those_of_the_dynamic_path(kind, monkeypatch):
    monkeypatch.setattr(static, "COLUMNS", 16)
    model = tiny.create_model(kind).cuda()
    first, _ = generate(model)
    ended = [record["tokens"].tolist()[place] for record, place in zip(first, (3, 5, 7, 9), strict=False)]
    model.generation_config.eos_token_id = ended
    captured, path = generate(model)
    assert path == static.CAPTURED
    assert len({len(record["tokens"]) for record in captured}) > 2
    with monkeypatch.context() as patch:
        patch.setattr(capturing.Recorder, "record", lambda *_: None)
        assert_same(generate(model)[0], captured)
    monkeypatch.setattr(static, "DEVICES", set())
    dynamic, path = generate(model)
    assert path == static.DYNAMIC
    assert_same(captured, dynamic)


def test_a_run_says_that_its_steps_were_captured(tmp_path):
    run = run_folder.RunFolder(tmp_path / "run", {})
    with run:
        complete_run(run, tiny.create_model().cuda(), tiny.create_tokenizer(), TEXTS, max_tokens=9, progress=False)
    assert results.load_info(tmp_path / "run")["decoding_path"] == static.CAPTURED


@torch.inference_mode()
def test_a_captured_step_does_not_wait_for_the_device():
    model = tiny.create_model().cuda()
    memory = checking.create_memory(model)
    decoder = static.create_decoder(model, [[5, 6, 7], [8]], 9, decoding.PADDED, memory=memory)
    decoder.prefill()
    tokens = torch.tensor([9, 10], device="cuda")
    first = decoder.advance(tokens)  # captures
    assert len(memory.graphs) == 1
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [decoder.advance(tokens) for _ in range(5)]
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert not any(torch.equal(one, first) for one in found)  # each is a tensor of its own
    assert len(memory.graphs) == 1


@pytest.mark.parametrize("when", ["always", "in the middle"])
def test_a_capture_that_fails_costs_one_line_and_torch_goes_on(when, monkeypatch, capsys):
    monkeypatch.setattr(static, "COLUMNS", 16)
    expected, _ = generate(tiny.create_model().cuda())
    model = tiny.create_model().cuda()
    if when == "in the middle":
        assert checking.create_memory(model) is not None  # the trial has been passed
    forward = type(model.base_model).forward

    def wait(self, input_ids, **options):
        input_ids.sum().item()
        return forward(self, input_ids, **options)

    monkeypatch.setattr(type(model.base_model), "forward", wait)
    found, path = generate(model)
    assert path == (static.DYNAMIC if when == "always" else static.STATIC)
    assert_same(found, expected)
    said = capsys.readouterr().out
    assert said.startswith("decoding without CUDA graphs: ")
    assert said.count("\n") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    assert float(torch.randn(4, device="cuda").abs().sum()) > 0


def test_a_failure_during_the_capture_itself_leaves_torch_in_order(monkeypatch):
    """Which is worse than one that is found while warming up."""
    monkeypatch.setattr(capturing, "_refuse_waiting", contextlib.nullcontext)
    x = torch.ones(4, device="cuda")
    with pytest.raises(RuntimeError):
        capturing.Recorder(x.device).record(lambda: x * x.sum().item())
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert float((x + 1).sum()) == 8
    replay = capturing.Recorder(x.device).record(lambda: x * 2)
    x += 1
    assert replay().tolist() == [4.0] * 4


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
