"""Packed weights: the same products, the same weights to whoever looks at them, and no more memory."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import tiny
from nucleoscope.measure import model_facts
from nucleoscope.models import loading, memory, packing
from nucleoscope.models.packing import PackedLinear

SHAPES = [(192, 576), (576, 1536), (130, 77), (4864, 896)]  # outputs, inputs
# A correctly rounded result is off by at most 2^-9 of itself in bfloat16; sums in float32 are off by a little as well.
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 0}


@pytest.fixture(params=packing.UNITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    """Each data type, if weights in it are packed on this kind of CPU."""
    found = torch.cpu.get_capabilities()
    known = request.param == torch.bfloat16 or "AMD" in found.get("cpu_name", "")
    if not (known and any(map(found.get, packing.UNITS[request.param]))):
        pytest.skip(f"WEIGHTS IN {request.param} ARE NOT PACKED ON THIS KIND OF CPU: they are untested here")
    return request.param


def create_layer(dtype: torch.dtype, shape: tuple[int, int], bias: bool = False) -> nn.Linear:
    torch.manual_seed(sum(shape))
    return nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype)


def create_packed(
    dtype: torch.dtype, shape: tuple[int, int] = (24, 16), bias: bool = False
) -> tuple[nn.Linear, PackedLinear]:
    """An ordinary layer, and its twin that is packed."""
    layer = create_layer(dtype, shape, bias)
    model = nn.ModuleList([copy.deepcopy(layer)])
    packing.pack(model)
    return layer, model[0]


def create_model(dtype: torch.dtype, **config):
    return tiny.create_model(**config).to(dtype)


def list_linear(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def count_packed(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


@torch.inference_mode()
def compute_logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(12).view(2, 6)).logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_product_is_as_exact_as_its_data_type(dtype, shape, bias):
    layer, packed = create_packed(dtype, shape, bias)
    for rows in (1, 2, 25, 100, 257):
        x = torch.randn(rows, shape[1]).to(dtype)
        exact = linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        found, own = packed(x), layer(x)
        assert found.dtype == own.dtype
        assert ((found.double() - exact).abs() <= exact.abs() * ROUNDING[dtype] + 1e-5).all()
        # In float32, the errors of a sum of n numbers that are added one by one add up as independent numbers do.
        summing = shape[1] ** 0.5 * 2**-24 * exact.abs().mean()
        most = 1.01 * (own.double() - exact).abs().mean() if dtype == torch.bfloat16 else summing
        assert (found.double() - exact).abs().mean() <= most
    assert type(packed) is PackedLinear


@torch.inference_mode()
def test_a_product_of_a_few_numbers_is_as_exact(dtype):
    layer, packed = create_packed(dtype, (3, 5))
    x = torch.randn(7, 5).to(dtype)
    exact = linear(x.double(), layer.weight.double())
    assert ((packed(x).double() - exact).abs() <= exact.abs() * ROUNDING[dtype] + 1e-5).all()


@torch.inference_mode()
def test_any_shape_of_input_is_taken_and_another_type_is_refused_as_before(dtype):
    layer, packed = create_packed(dtype, bias=True)
    x = torch.randn(4, 7, 16).to(dtype)
    for each in (x, x[:, -1:], x[0, 0], x[:0], x.transpose(0, 1)):
        # of other inputs, torch rounds the product before it adds the bias
        torch.testing.assert_close(packed(each), layer(each.contiguous()))
    for one in (layer, packed):
        with pytest.raises(RuntimeError, match="dtype"):
            one(x.half())


def test_a_models_logits_stay_what_they_were(dtype):
    for kind in ("llama", "mistral", "qwen3"):
        model = create_model(dtype, kind=kind)
        before = compute_logits(model)
        packing.pack(model)
        assert count_packed(model) == len(list_linear(model)) > 5
        torch.testing.assert_close(compute_logits(model), before)
        assert count_packed(model) == len(list_linear(model))


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_what_they_were_and_count_as_much(dtype, tied):
    model = create_model(dtype, tie_word_embeddings=tied, attention_bias=True)
    weights, size = copy.deepcopy(model.state_dict()), model_facts.count_weight_bytes(model)
    packing.pack(model)
    assert model_facts.count_weight_bytes(model) == size
    found = model.state_dict()
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert count_packed(model) == len(list_linear(model))


def test_an_old_weight_is_freed_before_the_next_one_is_packed(dtype, monkeypatch):
    model, alive = create_model(dtype), []
    old = [weakref.ref(layer.weight) for layer in list_linear(model)]
    pack_layer = packing._pack_layer

    def pack_and_count(layer, shared):
        pack_layer(layer, shared)
        alive.append(sum(weight() is not None for weight in old))

    monkeypatch.setattr(packing, "_pack_layer", pack_and_count)
    packing.pack(model)
    assert alive == list(range(len(old) - 1, -1, -1))


def test_a_packed_model_is_saved_and_loaded_as_any_other(dtype, tmp_path):
    model, tokenizer = create_model(dtype), tiny.create_tokenizer()
    expected = tiny.hash_weights(model)
    tiny.save(tmp_path, packing.pack(model), tokenizer)
    loaded = loading.load(str(tmp_path), str(dtype).removeprefix("torch."), "cpu").model
    assert count_packed(loaded) == len(list_linear(loaded)) > 5
    assert tiny.hash_weights(loaded) == expected
    before, other = compute_logits(loaded), create_model(dtype, seed=1)
    loaded.load_state_dict(other.state_dict())
    assert tiny.hash_weights(loaded) == tiny.hash_weights(other) != expected
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(compute_logits(loaded), before)


def read(layer: nn.Linear) -> nn.Linear:
    assert layer.weight is layer.weight
    return layer


def replace(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.read_weight().clone())
    return layer


@pytest.mark.parametrize(
    "use",
    [read, replace, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), lambda layer: layer.to("cpu")],
)
@pytest.mark.parametrize("bias", [False, True])
def test_whoever_uses_the_weight_itself_gets_an_ordinary_layer(dtype, use, bias):
    layer, packed = create_packed(dtype, bias=bias)
    assert torch.equal(packed.read_weight(), layer.weight)
    assert type(packed) is PackedLinear
    found = use(packed)
    assert type(found) is type(packed) is nn.Linear
    assert list(found.state_dict()) == list(layer.state_dict())
    assert torch.equal(found.weight, layer.weight)
    x = torch.randn(3, 16).to(dtype)
    assert torch.equal(found(x), layer(x))
    assert found.weight.requires_grad == layer.weight.requires_grad
    with torch.no_grad():
        found.weight.mul_(2)
    assert torch.equal(found.weight, 2 * layer.weight)


def test_another_type_is_that_of_all_weights(dtype):
    model = packing.pack(create_model(dtype, tie_word_embeddings=True)).double()
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not count_packed(model)


def test_gradients_are_those_of_an_ordinary_layer(dtype):
    layer, packed = create_packed(dtype)
    x = torch.randn(3, 16).to(dtype).requires_grad_()
    expected = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    found = packed(x).sum()
    for one, other in zip(torch.autograd.grad(found, (x, packed.weight)), expected, strict=True):
        assert torch.equal(one, other)


def test_an_output_layer_that_is_the_embedding_too_is_packed_beside_it(dtype, monkeypatch):
    model = create_model(dtype, tie_word_embeddings=True)
    before = compute_logits(model)
    packing.pack(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    assert isinstance(head, PackedLinear)
    assert model_facts.find_output_matrix(model) is None
    assert isinstance(head, PackedLinear)
    torch.testing.assert_close(compute_logits(model), before)
    assert head.weight is embedding
    monkeypatch.setattr(packing, "MOST_BESIDE", 10)
    assert type(packing.pack(create_model(dtype, tie_word_embeddings=True)).get_output_embeddings()) is nn.Linear


def test_the_rows_of_an_output_layer_are_read_without_changing_it(dtype):
    model = packing.pack(create_model(dtype, tie_word_embeddings=False))
    for _ in range(2):
        assert torch.equal(model_facts.find_output_matrix(model), model.get_output_embeddings().read_weight())
        assert isinstance(model.get_output_embeddings(), PackedLinear)


def test_what_cannot_or_need_not_be_packed_stays_as_it_is(dtype):
    assert not count_packed(packing.pack(tiny.create_model().double()))
    model = create_model(dtype)
    first, second, third, fourth, *others = list_linear(model)
    first.register_forward_hook(lambda *_: None)
    second.forward = first.forward
    third.weight.data = third.weight.data.half()
    fourth.weight = type("Quantised", (nn.Parameter,), {})(fourth.weight.data)
    packing.pack(model)
    assert {type(layer) for layer in (first, second, third, fourth)} == {nn.Linear}
    assert count_packed(model) == len(others)


def test_a_model_that_takes_most_of_the_memory_stays_mapped(dtype, monkeypatch):
    monkeypatch.setattr(memory, "read_total", lambda: 1000)
    assert not count_packed(packing.pack(create_model(dtype)))


@pytest.fixture
def untried():
    """Nothing is known yet of what this machine can do, nor afterwards."""
    packing._can_pack.cache_clear()
    yield
    packing._can_pack.cache_clear()


OTHER_OPERATIONS = {
    "_reorder_linear_weight": lambda weight, rows: (2 * weight).to_mkldnn(),
    "_linear_pointwise": lambda rows, weight, *_: 1.5 * rows @ weight.to_dense().T,
}


@pytest.mark.parametrize("name", OTHER_OPERATIONS)
@pytest.mark.parametrize("missing", [False, True])
def test_nothing_is_packed_by_a_torch_whose_operations_have_changed(dtype, monkeypatch, untried, name, missing):
    monkeypatch.setattr(torch.ops.mkldnn, name, None if missing else OTHER_OPERATIONS[name])
    assert not count_packed(packing.pack(create_model(dtype)))


def round_to_bfloat16(rows, weight, *_):
    """What oneDNN does in float32 if it is told to be fast."""
    return (rows.bfloat16() @ weight.to_dense().bfloat16().T).to(rows.dtype)


def test_products_that_are_less_exact_than_their_data_type_are_not_used(monkeypatch, untried):
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", round_to_bfloat16)
    assert not count_packed(packing.pack(create_model(torch.float32)))


@pytest.mark.parametrize(
    "capabilities",
    [{}, {"avx2": False, "cpu_name": "AMD EPYC"}, {"avx2": True, "cpu_name": "Intel(R) Xeon(R)"}, {"avx2": True}],
)
def test_nothing_is_packed_in_float32_on_a_cpu_on_which_that_was_not_tried(monkeypatch, untried, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert not count_packed(packing.pack(create_model(torch.float32)))


def test_trying_it_leaves_the_programs_random_numbers_alone(dtype, untried):
    before = torch.get_rng_state()
    assert packing._can_pack(dtype)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_layer_that_is_used_twice_is_one_layer(dtype):
    model = nn.Module()
    model.one = model.two = create_layer(dtype, (24, 16))
    model.rest = nn.ModuleList([model.one])
    packing.pack(model)
    assert isinstance(model.one, PackedLinear)
    assert model.one is model.two is model.rest[0]
