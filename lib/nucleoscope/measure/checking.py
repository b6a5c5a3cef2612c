"""Whether a model may be measured, and how its prompts may be batched: found out by trying it on short prompts.

Contract: a model and nothing else in, a way of `decoding` out. The reference is what the model gives for one
prompt alone, without a cache, padding, mask or positions of ours. Nothing is assumed of a model's class.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from nucleoscope.measure.decoding import WAYS, create_decoder, needs_equal_lengths
from nucleoscope.measure.model_facts import find_context_length

LENGTHS = (6, 4)  # of the two prompts, longest first
STEPS = 2
# Largest difference of logits that counts as rounding, in standard deviations of the model's own logits. Reading
# padding or misnumbering positions moves them by 0.01 and more.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF = 0.5  # for bfloat16 and float16, or `NOISE` times what other shapes of tensors change, if that is more
NOISE = 4

_FOUND: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def find_way(model: PreTrainedModel, skip_check: bool = False) -> str:
    """The first of `decoding.WAYS` in which the model gives the same logits as for each prompt alone.

    The result is kept as long as the model. ``skip_check``: nothing is tried, and the first way is returned. Raises
    ValueError, in one line, if earlier logits depend on later tokens, or if no way is right.
    """
    if skip_check:
        return WAYS[0]
    if model not in _FOUND:
        _FOUND[model] = _find_way(model)
    return _FOUND[model]


@torch.inference_mode()
def _find_way(model: PreTrainedModel) -> str:
    prompts = _choose_prompts(model)
    with _quiet():
        _check_causality(model, prompts[0])
        steps = [
            [_read_alone(model, prompt[: length + step]) for step in range(STEPS + 1)]
            for prompt, length in zip(prompts, LENGTHS, strict=True)
        ]
        if not all(bool(logits.isfinite().all()) for row in steps for logits in row):
            return WAYS[0]  # measuring names the prompts with such logits
        tolerance = _choose_tolerance(model, prompts, steps)
        reasons = []
        for way in WAYS:
            try:
                error = _measure_error(model, way, prompts, steps)
            except torch.OutOfMemoryError:
                raise  # else a slower way would be taken for the right one
            except Exception as raised:  # models of all kinds raise anything; the next way is tried
                reasons.append(f"{way}: {' '.join(str(raised).split())[:80] or type(raised).__name__}")
                continue
            if error <= tolerance:
                return way
            reasons.append(f"{way}: logits differ by {error:.2g} standard deviations")
    raise ValueError(
        f"{type(model).__name__} is not supported: its logits depend on how prompts are batched ({'; '.join(reasons)})"
    )


@torch.inference_mode()
def check_causality(model: PreTrainedModel, skip_check: bool = False) -> None:
    """ValueError if changing the last token changes the logits before it: the model sees what it should predict."""
    if not skip_check and model not in _FOUND:
        _check_causality(model, _choose_prompts(model)[0])


def _check_causality(model: PreTrainedModel, ids: list[int]) -> None:
    changed = [*ids[:-1], ids[0] if ids[-1] != ids[0] else ids[1]]
    one, other = (_read(model, [row])[0, :-1].float() for row in (ids, changed))
    if not bool(one.isfinite().all()):  # measuring names the prompts with such logits
        return
    if not torch.allclose(one, other, rtol=0, atol=float(_get_tolerance(model) * one.std())):
        raise ValueError(
            f"{type(model).__name__} is not a causal language model as it is configured: each token sees those after "
            "it (for BERT and its relatives, is_decoder must be true, and the weights trained for that)"
        )


def _choose_prompts(model: PreTrainedModel) -> list[list[int]]:
    """Two prompts with the tokens of their steps; ordinary ids of the vocabulary, not those with a role."""
    config = model.config.get_text_config()
    roles = {
        value
        for name, value in [*vars(model.config).items(), *vars(config).items()]
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    size = min(config.vocab_size, model.get_input_embeddings().weight.shape[0])
    free = [index for index in range(size) if index not in roles]
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(free), (sum(LENGTHS) + len(LENGTHS) * STEPS,), generator=generator).tolist()
    ids = iter(free[place] for place in order)
    limit = find_context_length(model) or max(LENGTHS) + STEPS
    return [[next(ids) for _ in range(length + STEPS)][:limit] for length in LENGTHS]


def _read(model: PreTrainedModel, ids: list[list[int]]) -> torch.Tensor:
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return model(input_ids=torch.tensor(ids, device=model.device), **options).logits


def _read_alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The logits (V,) after the last token of one prompt."""
    return _read(model, [ids])[0, -1].float()


def _get_tolerance(model: PreTrainedModel) -> float:
    return TOLERANCES.get(model.dtype, HALF)


def _choose_tolerance(model: PreTrainedModel, prompts: list[list[int]], steps: list[list[torch.Tensor]]) -> float:
    if model.dtype in TOLERANCES:
        return TOLERANCES[model.dtype]
    alone, length = steps[0][0], LENGTHS[0]
    several = _read(model, [prompts[0][:length]] * 4)[0, -1].float()
    longer = _read(model, [prompts[0]])[0, length - 1].float()
    noise = max(float((other - alone).abs().max()) for other in (several, longer))
    return max(HALF, NOISE * noise / float(alone.std()))


def _measure_error(
    model: PreTrainedModel, way: str, prompts: list[list[int]], steps: list[list[torch.Tensor]]
) -> float:
    """The largest difference of logits from those of each prompt alone, in standard deviations of the latter."""
    batches = [[0, 1]] if not needs_equal_lengths(way) else [[0], [1]]
    largest = 0.0
    for batch in batches:
        decoder = create_decoder(model, [prompts[row][: LENGTHS[row]] for row in batch], STEPS + 1, way)
        logits = decoder.prefill()
        for step in range(STEPS + 1):
            for place, row in enumerate(batch):
                expected = steps[row][step]
                largest = max(largest, float((logits[place].float() - expected).abs().max() / expected.std()))
            if step < STEPS:
                tokens = [prompts[row][LENGTHS[row] + step] for row in batch]
                logits = decoder.advance(torch.tensor(tokens, device=model.device))
    return largest if largest == largest else float("inf")  # NaN


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what a library has to say about ways that are only tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
