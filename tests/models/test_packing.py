"""Packed weights: the same products, the same weights to whoever looks at them, and no more memory."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import tiny
from nucleoscope.measure import model_facts
from nucleoscope.models import loading, packing
from nucleoscope.models.packing import PackedLinear

SHAPES = [(3, 5), (192, 576), (576, 1536), (130, 77), (4864, 896)]  # outputs, inputs
pytestmark = pytest.mark.skipif(not packing._can_pack(), reason="NO BFLOAT16 UNITS: packed weights are untested here")


def create_layer(shape: tuple[int, int], bias: bool = False) -> nn.Linear:
    torch.manual_seed(sum(shape))
    return nn.Linear(shape[1], shape[0], bias=bias).bfloat16()


def create_model(**config):
    return tiny.create_model(**config).bfloat16()


def count_packed(model: nn.Module) -> int:
    return sum(isinstance(module, PackedLinear) for module in model.modules())


@torch.inference_mode()
def compute_logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(12).view(2, 6)).logits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_product_is_as_exact_as_that_of_torch(shape, bias):
    layer = create_layer(shape, bias)
    packed = PackedLinear(layer, shared=False)
    for rows in (1, 2, 25, 100, 257):
        x = torch.randn(rows, shape[1]).bfloat16()
        exact = linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        found, own = packed(x), layer(x)
        assert found.dtype == own.dtype
        # a correctly rounded result is off by at most 2^-9 of itself; sums in float32 add a little where terms cancel
        allowed = exact.abs() * 2**-8 + 1e-5
        assert ((found.double() - exact).abs() <= allowed).all()
        assert (found.double() - exact).abs().mean() <= 1.01 * (own.double() - exact).abs().mean() + 1e-12


@torch.inference_mode()
def test_of_the_packaged_models_shapes_every_bit_is_the_same():
    for shape in ((576, 576), (192, 576), (1536, 576), (576, 1536)):
        layer = create_layer(shape)
        packed = PackedLinear(layer, shared=False)
        for rows in (1, 3, 25, 88, 100, 128, 1000):
            x = torch.randn(rows, 1, shape[1]).bfloat16()
            assert torch.equal(packed(x), layer(x))


@torch.inference_mode()
def test_any_shape_of_input_is_taken():
    layer = create_layer((24, 16), bias=True)
    packed = PackedLinear(layer, shared=False)
    x = torch.randn(4, 7, 16).bfloat16()
    for each in (x, x[:, -1:], x[0, 0], x[:0], x.transpose(0, 1)):
        # of other inputs, torch rounds the product before it adds the bias
        torch.testing.assert_close(packed(each), layer(each.contiguous()))


def test_a_models_logits_stay_what_they_were():
    for kind in ("llama", "mistral", "qwen3"):
        model = create_model(kind=kind)
        before = compute_logits(model)
        packing.pack(model)
        assert count_packed(model) > 5
        torch.testing.assert_close(compute_logits(model), before)


def test_weights_are_what_they_were_and_take_as_much_memory():
    model = create_model()
    weights, size = copy.deepcopy(model.state_dict()), model_facts.count_weight_bytes(model)
    packing.pack(model)
    assert model_facts.count_weight_bytes(model) == size
    for _ in range(3):
        found = model.state_dict()
        assert list(found) == list(weights)
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert count_packed(model) == sum(type(module) is not nn.Linear for module in list_linear(model))


def list_linear(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def test_a_packed_model_is_saved_as_any_other(tmp_path):
    model, tokenizer = create_model(), tiny.create_tokenizer()
    expected = tiny.hash_weights(model)
    tiny.save(tmp_path, packing.pack(model), tokenizer)
    loaded = loading.load(str(tmp_path), "bfloat16", "cpu").model
    assert count_packed(loaded) == count_packed(model)
    assert tiny.hash_weights(loaded) == expected


def test_code_that_reads_a_weight_again_and_again_gets_an_ordinary_layer():
    layer = create_layer((24, 16))
    packed, x = PackedLinear(layer, shared=False), torch.randn(3, 16).bfloat16()
    with torch.inference_mode():
        assert torch.equal(packed.weight, layer.weight)
        assert packed.packed is not None
        assert torch.equal(packed.weight, layer.weight)
        assert packed.packed is None
        assert packed.weight is packed.weight
        assert torch.equal(packed(x), layer(x))


def test_gradients_are_those_of_an_ordinary_layer():
    layer = create_layer((24, 16))
    packed, x = PackedLinear(layer, shared=False), torch.randn(3, 16).bfloat16().requires_grad_()
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    (found,) = torch.autograd.grad(packed(x).sum(), x)
    assert torch.equal(found, expected)


def test_an_output_layer_that_is_the_embedding_too_is_packed_beside_it(monkeypatch):
    model = create_model(tie_word_embeddings=True)
    before = compute_logits(model)
    packing.pack(model)
    head = model.get_output_embeddings()
    assert isinstance(head, PackedLinear)
    assert head.weight is model.get_input_embeddings().weight
    assert model_facts.find_output_matrix(model) is None
    torch.testing.assert_close(compute_logits(model), before)
    monkeypatch.setattr(packing, "MOST_BESIDE", 10)
    assert type(packing.pack(create_model(tie_word_embeddings=True)).get_output_embeddings()) is nn.Linear


def test_what_cannot_or_need_not_be_packed_stays_as_it_is():
    assert not count_packed(packing.pack(tiny.create_model()))  # float32
    model = create_model()
    first, second, third, *others = list_linear(model)
    first.register_forward_hook(lambda *_: None)
    second.forward = first.forward
    third.weight.data = third.weight.data.float()
    packing.pack(model)
    assert {type(layer) for layer in (first, second, third)} == {nn.Linear}
    assert set(list_linear(model)) >= {first, second, third}
    assert count_packed(model) == len(others)


def test_a_layer_that_is_used_twice_is_one_layer():
    model = nn.Module()
    model.one = model.two = create_layer((24, 16))
    model.rest = nn.ModuleList([model.one])
    packing.pack(model)
    assert isinstance(model.one, PackedLinear)
    assert model.one is model.two is model.rest[0]
