"""The static path: the tokens and numbers of the dynamic one, in steps that could be captured as a CUDA graph."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from test_journal import TEXTS, complete, draws, end_some, kill  # noqa: F401  a fixture
from test_prefix import IDS, PREFIX, generate
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from model_families import configurations
from nucleoscope.measure import (
    batching,
    capturing,
    checking,
    decoding,
    generation,
    model_facts,
    sampling,
    static,
    streaming,
)
from nucleoscope.measure.encoding import Inputs
from nucleoscope.quantities import Quantity, find_columns

KINDS = {  # types of small random models, and what their steps have
    "gpt2": "learned positions",
    "roberta": "positions from behind a padding token",
    "bloom": "ALiBi",
    "mistral": "a window in all layers",
    "gemma2": "windows in half of the layers, a limit to logits",
    "gemma3_text": "two rotary embeddings",
    "gemma4_text": "layers that share keys and values",
    "gpt_oss": "attention sinks",
    "mixtral": "experts",
    "deepseek_v3": "latent attention",
    "falcon": "one head for keys and values",
    "llama": "nothing of these",
}
# These fall back: the host reads a tensor at each step, or (GPT-Neo) a mask of its own has the size of the cache.
DYNAMIC = ["dbrx", "gemma3n_text", "gpt_neo", "jetmoe", "mpt", "xglm"]
LENGTHS = (21, 9, 14, 1, 3, 9)


@pytest.fixture
def use_static(monkeypatch):
    """A function after which models are tried on the static path, also on the CPU, and read 16 columns at a time."""

    def use(columns: int = 16) -> None:
        monkeypatch.setattr(static, "DEVICES", {"cuda", "cpu"})
        monkeypatch.setattr(static, "COLUMNS", columns)

    return use


def draw_ids(model, lengths=LENGTHS) -> list[list[int]]:
    generator, vocabulary = torch.Generator().manual_seed(0), model.config.get_text_config().vocab_size
    return [torch.randint(10, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def measure(model, ids, max_tokens=12, **settings):
    """The records in the order of the prompts, and the paths of all batches."""
    options = {"inputs": Inputs(ids), "progress": False, "max_tokens": max_tokens} | settings
    batches = list(generation.measure(model, tiny.create_tokenizer(), [""] * len(ids), **options))
    pairs = sorted((i, r) for batch in batches for i, r in zip(batch.indices, batch.records, strict=True))
    return [record for _, record in pairs], {batch.path for batch in batches}


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one["tokens"].tolist() == other["tokens"].tolist()
        for name in set(find_columns()) - {"ranks"}:  # in a wide nucleus, rounding may change the order
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


# Tokens


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_the_dynamic_path(kind, use_static):
    """With prompts of several lengths, beyond the windows, and three numbers of columns."""
    model = configurations.build_model(kind)
    ids = draw_ids(model)
    expected, paths = measure(model, ids)
    assert paths == {static.DYNAMIC}
    use_static()
    found, paths = measure(configurations.build_model(kind), ids)
    assert paths == {static.STATIC}
    assert_same(found, expected)


@pytest.mark.parametrize("kind", DYNAMIC)
def test_models_that_cannot_be_captured_fall_back_with_one_line(kind, use_static, capsys):
    model = configurations.build_model(kind)
    use_static()
    assert checking.find_way(model) == decoding.PADDED
    assert checking.create_memory(model) is None
    said = capsys.readouterr().out
    assert said.startswith("decoding without CUDA graphs: ")
    assert said.count("\n") == 1
    _, paths = measure(model, draw_ids(model), 2)
    assert paths == {static.DYNAMIC}


@pytest.mark.parametrize("batch_size", [1, 2, 6])
@pytest.mark.parametrize("columns", [1, 8, 128])
def test_batches_of_one_run_share_the_memory_whatever_the_number_of_columns(batch_size, columns, use_static):
    model = tiny.create_model()
    ids = draw_ids(model)
    expected, _ = measure(model, ids, batch_size=batch_size)
    use_static(columns)
    found, paths = measure(tiny.create_model(), ids, batch_size=batch_size)
    assert paths == {static.STATIC}
    assert_same(found, expected)


def test_ended_rows_stay_until_half_of_the_batch_has_ended(use_static):
    use_static()
    model = tiny.create_model("mistral")
    memory = static.StaticMemory(model)
    ids = draw_ids(model, (9, 7, 7, 5, 4, 2, 1))
    decoder = static.create_decoder(model, ids, 9, decoding.PADDED, memory=memory)
    tokens = torch.arange(50, 57)
    seen, texts = [], [list(row) for row in ids]
    with torch.inference_mode():
        logits = decoder.prefill()
        for ended in (set(), {0, 3}, {0, 3, 5, 6}, {0, 3, 5, 6}, {0, 1, 3, 5, 6}, {0, 1, 3, 4, 5, 6}):
            for place, row in enumerate(decoder.rows):
                alone = model(torch.tensor([texts[row]])).logits[0, -1]
                assert row in ended or checking.measure_difference(logits[place], alone) < 1e-4
            chosen = tokens[decoder.rows]
            for row, token in zip(decoder.rows, chosen.tolist(), strict=True):
                texts[row].append(token)
            logits = decoder.advance(chosen, ended)
            seen.append(list(decoder.rows))
        assert decoder.advance(tokens[decoder.rows], set(range(7))) is None
    whole, half = list(range(7)), [0, 1, 2, 4]  # row 0 has ended, but half of 7 is 4
    assert seen == [whole, whole, half, half, [2, 4], [2]]


def test_a_shared_beginning_is_read_once_on_the_static_path_too(use_static):
    expected = generate(tiny.create_model("mistral"))
    use_static()
    model = tiny.create_model("mistral")
    assert checking.create_memory(model) is not None
    assert checking.choose_prefix(model, IDS) == PREFIX
    assert_same(generate(model), expected)
    assert_same(generate(model, batch_size=2), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_was_interrupted_ends_with_the_same_tokens(tmp_path, draws, use_static, dtype):  # noqa: F811
    use_static()
    model = end_some(tiny.create_model().to(dtype))
    draws.steps.clear()
    expected, info = complete(tmp_path / "straight", model)
    assert info["decoding_path"] == static.STATIC
    for step in (2, 6):
        kill(draws, tmp_path / str(step), model, step, 6)
        found, _ = complete(tmp_path / str(step), model)
        assert draws.steps[0][0] == step
        if dtype == torch.float32:
            assert_same(found, expected)
        else:
            assert [record["entropies"] for record in found] == [record["entropies"] for record in expected]


def test_a_streamed_text_is_that_of_the_dynamic_path(use_static):
    def stream():
        tokens = streaming.stream(tiny.create_model(), tiny.create_tokenizer(), "the cat sat on", max_tokens=20)
        return [token.id for token in tokens]

    expected = stream()
    use_static()
    assert stream() == expected


def test_a_model_that_was_not_tried_is_decoded_dynamically(use_static):
    use_static()
    _, paths = measure(tiny.create_model(), IDS, 2, skip_check=True)
    assert paths == {static.DYNAMIC}


def test_a_model_in_several_places_is_decoded_dynamically(use_static):
    use_static()
    model = tiny.create_model()
    assert static.suits(model)
    model.lm_head.to("meta")
    assert not static.suits(model)


# Memory and failures


def test_what_a_batch_left_behind_does_not_reach_the_next(use_static):
    use_static()
    model = tiny.create_model()
    memory, ids = checking.create_memory(model), draw_ids(model)
    token = torch.full((len(ids),), 50)

    @torch.inference_mode()
    def step():
        decoder = static.create_decoder(model, ids, 3, decoding.PADDED, memory=memory)
        decoder.prefill()
        return decoder.advance(token)

    expected = step()
    with torch.inference_mode():
        for store in (store for pair in memory.stores.values() for store in pair):
            store.fill_(torch.nan)
    assert torch.equal(step(), expected)


def test_memory_is_allocated_once_for_all_smaller_batches():
    model = tiny.create_model()
    memory = static.StaticMemory(model)
    memory.reserve(4, 256)
    tokens = memory.tokens
    memory.reserve(2, 128)
    assert memory.tokens is tokens
    memory.reserve(2, 384)
    assert (memory.rows, memory.columns) == (4, 384)
    assert memory.tokens is not tokens


def test_a_capture_that_fails_in_the_middle_costs_one_line_and_no_number(use_static, monkeypatch, capsys):
    model = tiny.create_model()
    ids = draw_ids(model)
    expected, _ = measure(model, ids, 20)
    use_static()
    model = tiny.create_model()
    assert checking.create_memory(model) is not None
    tried = []

    def record(self, step):
        tried.append(step)
        if len(tried) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB")

    monkeypatch.setattr(capturing.Recorder, "record", record)
    found, _ = measure(model, ids, 20)
    assert_same(found, expected)
    assert len(tried) == 2  # none is tried after the one that failed
    assert capsys.readouterr().out == ("decoding without CUDA graphs: CUDA out of memory. Tried to allocate 2.00 GiB\n")


def test_memory_is_freed_before_a_batch_that_did_not_fit_is_halved(use_static, monkeypatch):
    model = tiny.create_model()
    ids = draw_ids(model)
    expected, _ = measure(model, ids)
    use_static()
    model = tiny.create_model()
    memory, sizes, step = checking.create_memory(model), [], static.StaticDecoder._step
    monkeypatch.setattr(checking, "create_memory", lambda *_: memory)

    def run_out(decoder, tokens):
        sizes.append((len(tokens), memory.rows))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError
        return step(decoder, tokens)

    monkeypatch.setattr(static.StaticDecoder, "_step", run_out)
    found, _ = measure(model, ids)
    assert_same(found, expected)
    assert sizes[:2] == [(6, 6), (3, 3)]


def test_the_batch_size_counts_the_columns_that_are_allocated(use_static, monkeypatch):
    model = tiny.create_model()
    token, _ = model_facts.measure_cache(model)
    logits = 8 * 4 * tiny.VOCAB
    monkeypatch.setattr(model_facts, "find_free_memory", lambda _: [(2 * 10 * (100 * token + logits), 1.0)])
    inputs = Inputs([[5] * 60] * 100)
    assert generation.choose_batch_size("auto", model, inputs, 40) == 10
    use_static(128)
    assert generation.choose_batch_size("auto", model, inputs, 40) < 10


# What must hold for a capture


class Operators(TorchDispatchMode):
    """The operators of a block with shapes and numbers: all that a graph would repeat."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        flat = torch.utils._pytree.tree_leaves((args, kwargs))
        self.seen.append((str(operator), *(tuple(x.shape) if isinstance(x, torch.Tensor) else x for x in flat)))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_same_operators_with_the_same_shapes_and_numbers_and_read_nothing(kind, use_static):
    use_static(16)
    model = configurations.build_model(kind)
    ids = draw_ids(model, (9, 5, 1))
    decoder = static.create_decoder(model, ids, 12, decoding.PADDED, memory=static.StaticMemory(model))
    steps = []
    with torch.inference_mode():
        decoder.prefill()
        for token in range(20, 31):
            tokens = torch.full((3,), token)
            with Operators() as operators, capturing.refuse_reading():
                assert decoder.advance(tokens) is not None
            steps.append((decoder.width, operators.seen))
    assert not decoder.memory.failure
    for first, last in ((11, 16), (18, 20)):  # after the first step of each number of columns, which is checked as well
        seen = [operators for width, operators in steps if first <= width <= last]
        assert len(seen) == last - first + 1
        assert len(seen[0]) > 20
        assert all(operators == seen[0] for operators in seen)
    assert steps[1][1] != steps[-1][1]


@torch.inference_mode()
def test_a_step_writes_the_same_if_it_is_run_again(use_static):
    """Before a capture it is run to warm up."""
    use_static()
    model = tiny.create_model("mistral")
    memory = static.StaticMemory(model)
    decoder = static.create_decoder(model, draw_ids(model), 9, decoding.PADDED, memory=memory)
    decoder.prefill()
    found, run = [], memory.run
    memory.run = lambda rows, columns, step: found.extend(run(rows, columns, step) for _ in range(3)) or found[-1]
    for token in (30, 31):
        decoder.advance(torch.full((6,), token))
    assert len(found) == 6
    assert all(torch.equal(found[place], found[0]) for place in (1, 2))
    assert all(torch.equal(found[place], found[3]) for place in (4, 5))
    assert not torch.equal(found[0], found[3])


X = torch.arange(4.0)
READS = {
    "item": lambda: X.sum().item(),
    "bool": lambda: bool(X.sum() > 1),
    "int": lambda: int(X[0]),
    "index": lambda: list(range(X[1].long())),
    "tolist": lambda: X.tolist(),
    "numpy": lambda: X.numpy(),
    "cpu": lambda: X.cpu(),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 1),
    "mask": lambda: X[X > 1],
    "assignment to a mask": lambda: X.clone().__setitem__(X > 1, X[:2]),
    "repeat_interleave": lambda: X.repeat_interleave(torch.tensor([1, 2, 1, 0])),
    "unique": lambda: X.unique(),
    "bincount": lambda: X.long().bincount(),
    "equal": lambda: torch.equal(X, X),
    "compiled": lambda: torch.nn.functional.one_hot(X.long()),
}
COMPUTES = {
    "arithmetic": lambda: X @ X + X.softmax(-1),
    "index": lambda: X[torch.tensor([1, 2])],
    "shape": lambda: X.view(2, -1).shape[0],
    "where": lambda: torch.where(X > 1, X, 0),
    "repeat_interleave": lambda: X.repeat_interleave(2),
    "repeat_interleave with its size": lambda: X.repeat_interleave(torch.tensor([1, 2, 1, 0]), output_size=4),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("inference", [True, False])
def test_what_reads_a_tensor_is_refused(name, inference):
    refused = pytest.raises(capturing.NotCapturable, match="the host reads a tensor")
    with torch.inference_mode(inference), refused, capturing.refuse_reading():
        READS[name]()


@pytest.mark.parametrize("name", COMPUTES)
def test_what_only_computes_is_not_refused(name):
    with capturing.refuse_reading():
        assert COMPUTES[name]() is not None


# Measuring after the next step has been launched


def test_records_are_the_same_to_the_bit_if_steps_are_measured_late(monkeypatch):
    monkeypatch.setitem(batching.MOST_PADDING, "cpu", 1000)  # all prompts are read in one pass
    model = end_some(tiny.create_model())
    options = {"max_tokens": 9, "progress": False}
    (expected,) = generation.measure(model, tiny.create_tokenizer(), TEXTS, **options)
    events, measure_step, forward = [], sampling.measure_step, type(model.base_model).forward
    monkeypatch.setattr(sampling, "measure_step", lambda *given: events.append("measure") or measure_step(*given))

    def note_forward(self, input_ids, **options):
        events.append("forward")
        return forward(self, input_ids, **options)

    monkeypatch.setattr(type(model.base_model), "forward", note_forward)
    monkeypatch.setattr(sampling, "DEFERRED", {"cpu"})
    (found,) = generation.measure(model, tiny.create_tokenizer(), TEXTS, batches=[expected.indices], **options)
    assert events == ["forward"] + ["forward", "measure"] * 8 + ["measure"]  # prefill, 8 steps
    for one, other in zip(found.records, expected.records, strict=True):
        assert one["tokens"].tolist() == other["tokens"].tolist()
        assert all(one[name] == other[name] for name in find_columns())


def test_a_quantity_that_fails_is_named_if_steps_are_measured_late(monkeypatch):
    monkeypatch.setattr(sampling, "DEFERRED", {"cpu"})
    broken = Quantity("broken", "broken", lambda step: 1 / 0)
    measured = generation.measure(
        tiny.create_model(), tiny.create_tokenizer(), ["a"], quantities=[broken], max_tokens=1
    )
    with pytest.raises(ValueError, match="quantity 'broken' cannot be computed: ZeroDivisionError"):
        list(measured)


# The order of a capture, with a device that only notes what it is asked for; torch's own block around a capture


class Stream:
    def __init__(self, name):
        self.name = name

    def wait_stream(self, other):
        EVENTS.append(f"{self.name} waits for {other.name}")


class Graph:
    def capture_begin(self, pool, capture_error_mode, check_input_liveness):
        assert (pool, capture_error_mode, check_input_liveness) == ("pool", "thread_local", False)
        EVENTS.append("begin")

    def capture_end(self):
        EVENTS.append("end")
        if "broken" in EVENTS:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        EVENTS.append("replay")


EVENTS: list[str] = []


@pytest.fixture
def device(monkeypatch):
    """A CUDA device, as far as capturing asks for one."""
    current = ["outside"]

    class UseStream:
        def __init__(self, stream):
            self.name = stream.name

        def __enter__(self):
            self.before, current[0] = current[0], self.name

        def __exit__(self, *_):
            current[0] = self.before

    modes = [0]
    fakes = {
        "graph_pool_handle": lambda: "pool",
        "Stream": lambda _: Stream("side"),
        "current_stream": lambda _: Stream("outside"),
        "device": lambda _: contextlib.nullcontext(),
        "stream": UseStream,
        "CUDAGraph": Graph,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "get_sync_debug_mode": lambda: modes[0],
        "set_sync_debug_mode": lambda mode: modes.__setitem__(0, mode),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)

    EVENTS.clear()
    return SimpleNamespace(current=current, modes=modes)


def test_a_step_is_run_twice_and_then_captured_on_a_stream_of_its_own(device):
    recorder, seen = capturing.Recorder(torch.device("cuda")), []

    def step():
        EVENTS.append("step")
        seen.append((device.current[0], device.modes[0]))
        return torch.ones(1)

    replay = recorder.record(step)
    assert EVENTS == ["side waits for outside", "step", "step", "begin", "step", "end", "outside waits for side"]
    assert seen == [("side", 0), ("side", "error"), ("side", 0)]
    assert (device.current[0], device.modes[0]) == ("outside", 0)
    one, other = replay(), replay()
    assert EVENTS[-2:] == ["replay", "replay"]
    assert one is not other
    assert torch.equal(one, other)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_a_step_that_fails_while_warming_up_or_captured_gives_back_the_stream(device, runs):
    def step():
        EVENTS.append("step")
        if EVENTS.count("step") == runs:
            EVENTS.append("broken")
            raise RuntimeError("called a synchronizing CUDA operation")
        return torch.ones(1)

    with pytest.raises(RuntimeError):
        capturing.Recorder(torch.device("cuda")).record(step)
    assert EVENTS.count("begin") == (runs == 3)
    assert EVENTS[-1] == "outside waits for side"
    assert (device.current[0], device.modes[0]) == ("outside", 0)
