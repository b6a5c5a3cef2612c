"""Whether a model may be measured, and how its prompts may be batched: found out by trying it on short prompts.

Contract: a model and nothing else in, a way of `decoding` out. The reference is what the model gives for one
prompt alone, without a cache, padding, mask or positions of ours. Nothing is assumed of a model's class.
"""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from nucleoscope.measure import static
from nucleoscope.measure.decoding import PADDED, WAYS, needs_equal_lengths, read_prefix
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix
from nucleoscope.measure.prefix import SharedPrefix, find_shared_ids
from nucleoscope.measure.static import StaticMemory, create_decoder

# Of the prompts, longest first; shorter if the model's context is. A single token may be taken for a later step.
LENGTHS = (6, 4, 1)
STEPS = 2
SHARED = 2  # tokens that two of the prompts begin with
# Largest difference of logits that counts as rounding, in standard deviations of the model's own logits. Reading
# padding or misnumbering positions moves them by 0.01 and more; in bfloat16 and float16 (`HALF`), rounding does too.
TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6}
HALF = 0.5
# Where tensors have the same shapes, or numbers 24 bits, less counts as rounding: `NOISE` times what a batch of equal
# rows changes, but at least this.
NOISE, LEAST, LEAST_HALF = 4, 1e-4, 2**-8


class Trial(NamedTuple):
    """Prompts, longest first, each followed by the tokens of its steps; ``lengths`` are those of the prompts.

    The first two begin with the same ``shared`` tokens; the last, with its steps, is what the first begins with.
    """

    ids: list[list[int]]
    lengths: tuple[int, ...]
    steps: int
    shared: int


class Finding(NamedTuple):
    """What was found out about a model: the way of decoding, and what is right in the way `PADDED`.

    ``shares``: prompts may share what they begin with. ``static``: on the static path; never on a device that has none.
    """

    way: str
    shares: bool = False
    static: bool = False


_FOUND: WeakKeyDictionary[PreTrainedModel, Finding] = WeakKeyDictionary()


def find_way(model: PreTrainedModel, skip_check: bool = False) -> str:
    """The first of `decoding.WAYS` in which the model gives the same logits as for each prompt alone.

    The result is kept as long as the model. ``skip_check``: nothing is tried, and the first way is returned. Raises
    ValueError, in one line, if the model fails, if earlier logits depend on later tokens, or if no way is right.
    """
    if skip_check:
        return WAYS[0]
    return _get_finding(model).way


def is_tried(model: PreTrainedModel) -> bool:
    """Whether `find_way` knows its result, and returns at once."""
    return model in _FOUND


def _get_finding(model: PreTrainedModel) -> Finding:
    if model not in _FOUND:
        _FOUND[model] = _try_ways(model)
    return _FOUND[model]


def choose_prefix(
    model: PreTrainedModel, rows: Sequence[list[int]], skip_check: bool = False, ends: list[int] | None = None
) -> list[int]:
    """The tokens that all ``rows`` begin with (`prefix.find_shared_ids`), or none if they must be read with each.

    That is the case if the trial of `find_way` failed, gave other logits, or was skipped.
    """
    ids = [] if skip_check else find_shared_ids(rows, ends)
    return ids if ids and can_share(model, skip_check) else []


def can_share(model: PreTrainedModel, skip_check: bool = False) -> bool:
    """Whether rows can begin with keys and values that were read once for all of them; False if nothing was tried."""
    try:
        return not skip_check and _get_finding(model).shares
    except ValueError:  # texts can be read by more models than prompts can be continued by
        return False


def create_memory(model: PreTrainedModel, skip_check: bool = False) -> StaticMemory | None:
    """The memory that the batches of a run share on the static path, or None if they are decoded dynamically.

    That is the case if the trial of `find_way` was skipped, or failed on this path.
    """
    chosen = not skip_check and static.suits(model) and _get_finding(model).static
    return StaticMemory(model) if chosen else None


@torch.inference_mode()
def _try_ways(model: PreTrainedModel) -> Finding:
    prompts = choose_prompts(model)
    with silence():
        first = _read(model, [prompts.ids[0]])[0]
        begins = [ids == prompts.ids[0][: len(ids)] for ids in prompts.ids]
        texts = [first if known else _read(model, [ids])[0] for ids, known in zip(prompts.ids, begins, strict=True)]
        if not all(map(is_distribution, texts)):
            return Finding(WAYS[0])  # measuring names the prompts with such logits
        steps, rounding = _choose_reference(model, prompts, texts)
        if model.dtype in TOLERANCES:  # at most: some models compute a step slightly differently from a text
            tolerance = min(get_tolerance(model), rounding)
        else:  # at least: rounding may send a token to another expert
            tolerance = max(get_tolerance(model), rounding)
        reasons = []
        for way in WAYS:
            try:
                error = _measure_error(model, way, prompts, steps)
            except torch.OutOfMemoryError:
                raise  # else a slower way would be taken for the right one
            except Exception as raised:  # models of all kinds raise anything; the next way is tried
                reasons.append(f"{way}: {shorten_error(raised, 80)}")
                continue
            if error <= tolerance:
                trial = model, prompts, steps, tolerance
                return Finding(way, _shares_prefix(*trial), _is_static(*trial)) if way == PADDED else Finding(way)
            reasons.append(f"{way}: logits differ by {error:.2g} standard deviations")
    raise ValueError(
        f"{type(model).__name__} is not supported: its logits depend on how prompts are batched ({'; '.join(reasons)})"
    )


def _choose_reference(
    model: PreTrainedModel, prompts: Trial, texts: list[torch.Tensor]
) -> tuple[list[list[torch.Tensor]], float]:
    """The logits (V,) of each prompt after each step, read alone, and what counts as rounding. ValueError if two-way.

    ``texts`` are the logits (T, V) of texts that begin with each prompt and its steps. Where later tokens and the
    length of a text change nothing, they have those of all steps. Else each prompt is read again for each step.
    """
    ids, last = prompts.ids[0], prompts.lengths[0] - 1
    prompt, other = ids[: last + 1], _find_other_token(ids[: last + 1])
    changed = prompt if other is None else [*prompt[:-1], other]
    batch = _read(model, [prompt, prompt, prompt, changed])
    least = _get_least_rounding(model)
    if not measure_difference(batch[3, :last], batch[0, :last]) <= least:  # or the batch has changed something
        _check_causality(model, ids, texts[0])
    difference = measure_difference(batch[0, last], texts[0][last])
    if difference <= least / NOISE:  # less than what counts as rounding, by the length and by the batch together
        return [
            [text[length - 1 + step] for step in range(prompts.steps + 1)]
            for text, length in zip(texts, prompts.lengths, strict=True)
        ], least
    steps = [
        [read_alone(model, row[: length + step]) for step in range(prompts.steps + 1)]
        for row, length in zip(prompts.ids, prompts.lengths, strict=True)
    ]
    return steps, max(least, NOISE * measure_difference(batch[0, last], steps[0][0]))


@torch.inference_mode()
def check_causality(model: PreTrainedModel, skip_check: bool = False) -> None:
    """ValueError if changing the last token changes the logits before it: the model sees what it should predict.

    ValueError as well, in one line, if the model fails.
    """
    if not skip_check and model not in _FOUND:
        with silence():
            _check_causality(model, choose_prompts(model).ids[0])


def _check_causality(model: PreTrainedModel, ids: list[int], text: torch.Tensor | None = None) -> None:
    """``text``: the logits (T, V) of ``ids`` alone, if they are known."""
    other = _find_other_token(ids)
    if other is None:  # a context, or a vocabulary, of one
        return
    one = (_read(model, [ids])[0] if text is None else text)[:-1]
    if not is_distribution(one):  # measuring names the prompts with such logits
        return
    difference = measure_difference(_read(model, [[*ids[:-1], other]])[0, :-1], one)
    if difference and difference > min(get_tolerance(model), _measure_rounding(model, ids)):
        switches = [name for name in ("is_decoder", "causal") if getattr(model.config, name, None) is False]
        advice = f" ({switches[0]} must be true, and the weights trained for that)" if switches else ""
        raise ValueError(
            f"{type(model).__name__} is not a causal language model as it is configured: each token sees those after "
            f"it{advice}"
        )


def _find_other_token(ids: list[int]) -> int | None:
    """One of ``ids`` that the last of them is not; None if they are all the same."""
    return next((token for token in ids if token != ids[-1]), None)


def choose_prompts(model: PreTrainedModel) -> Trial:
    """Ordinary ids of the vocabulary, not those with a role, as far as they fit in the model's context."""
    config = model.config.get_text_config()
    roles = {
        value
        for name, value in [*vars(model.config).items(), *vars(config).items()]
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    rows = range(min(config.vocab_size, find_embedding_matrix(model).shape[0]))
    free = [index for index in rows if index not in roles] or list(rows)
    lengths, steps = _choose_lengths(find_context_length(model))
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(free), (sum(lengths) + len(lengths) * steps,), generator=generator).tolist()
    ids = iter(free[place] for place in order)
    rows = [[next(ids) for _ in range(length + steps)] for length in lengths]
    shared = min(SHARED, *(length - 1 for length in lengths[:2]))
    rows[1][:shared] = rows[0][:shared]
    rows[-1] = rows[0][: len(rows[-1])]
    return Trial(rows, lengths, steps, shared)


def _choose_lengths(limit: int | None) -> tuple[tuple[int, ...], int]:
    """`LENGTHS` and `STEPS`, or what a context of ``limit`` positions has room for: padding first, then steps."""
    if limit is None or limit >= max(LENGTHS) + STEPS:
        return LENGTHS, STEPS
    steps = max(0, min(STEPS, limit - 2))
    longest = max(1, min(LENGTHS[0], limit - steps))
    return (longest, *(max(1, min(length, longest - 1)) for length in LENGTHS[1:])), steps


def _read(model: PreTrainedModel, ids: list[list[int]]) -> torch.Tensor:
    """Logits (B, T, V) without a cache. ValueError, in one line, if the model fails."""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    try:
        return model(input_ids=torch.tensor(ids, device=model.device), **options).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models of all kinds raise anything
        raise ValueError(
            f"{type(model).__name__} cannot be measured: it fails on a prompt of {len(ids[0])} tokens "
            f"({shorten_error(error)})"
        ) from error


def shorten_error(error: Exception, most: int = 160) -> str:
    """What a library says, in one line of at most ``most`` characters, and the kind of error if it says one word."""
    text = " ".join(str(error).split())
    text = text if " " in text and not isinstance(error, KeyError) else f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= most else text[: most - 3] + "..."


def read_alone(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """The logits (V,) after the last token of one prompt."""
    return _read(model, [ids])[0, -1]


def is_distribution(logits: torch.Tensor) -> bool:
    """Whether logits have neither NaN nor +inf; -inf stands for a token that is impossible."""
    return not bool((logits.isnan() | logits.isposinf()).any())


def measure_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of logits, in standard deviations of those that are expected; inf if it is NaN.

    Tokens that a model excludes, by -inf or by the lowest number there is, must be the same, and count for nothing.
    """
    possible = expected > torch.finfo(expected.dtype).min / 2
    if not torch.equal(possible, found > torch.finfo(found.dtype).min / 2):
        return float("inf")
    wanted = expected[possible].float()
    largest = float((found[possible].float() - wanted).abs().max()) if len(wanted) else 0.0
    if largest == 0:
        return 0.0
    spread = max(float(wanted.std(correction=0)), torch.finfo(torch.float32).tiny)
    return largest / spread if largest == largest else float("inf")


def get_tolerance(model: PreTrainedModel) -> float:
    """The largest difference of logits that counts as rounding, in standard deviations of the model's own logits."""
    return TOLERANCES.get(model.dtype, HALF)


def _get_least_rounding(model: PreTrainedModel) -> float:
    """The difference of logits that counts as rounding in any case, in standard deviations of the model's own."""
    return min(LEAST, TOLERANCES[model.dtype]) if model.dtype in TOLERANCES else LEAST_HALF


def _measure_rounding(model: PreTrainedModel, ids: list[int]) -> float:
    """What counts as rounding by what a batch of equal rows changes, which is nothing but the order of sums."""
    difference = measure_difference(_read(model, [ids] * 4)[0, -1], read_alone(model, ids))
    return max(_get_least_rounding(model), NOISE * difference)


def _measure_error(model: PreTrainedModel, way: str, prompts: Trial, steps: list[list[torch.Tensor]]) -> float:
    """The largest difference of logits from those of each prompt alone, in standard deviations of the latter."""
    rows = list(range(len(prompts.ids)))
    batches = [[row] for row in rows] if needs_equal_lengths(way) else [rows]
    return max(_measure_batch_error(model, way, prompts, steps, batch) for batch in batches)


def _measure_batch_error(
    model: PreTrainedModel,
    way: str,
    prompts: Trial,
    steps: list[list[torch.Tensor]],
    batch: list[int],
    prefix: SharedPrefix | None = None,
    memory: StaticMemory | None = None,
) -> float:
    """The error of some of the prompts, decoded together, in each of the ``steps`` that are given."""
    openings = [prompts.ids[row][: prompts.lengths[row]] for row in batch]
    last = len(steps[0]) - 1
    decoder = create_decoder(model, openings, last + 1, way, prefix, memory)
    logits, largest = decoder.prefill(), 0.0
    for step in range(last + 1):
        for place, row in enumerate(batch):
            largest = max(largest, measure_difference(logits[place], steps[row][step]))
        if step < last:
            tokens = [prompts.ids[row][prompts.lengths[row] + step] for row in batch]
            logits = decoder.advance(torch.tensor(tokens, device=model.device))
    return largest


def _shares_prefix(model: PreTrainedModel, prompts: Trial, steps: list[list[torch.Tensor]], tolerance: float) -> bool:
    """Whether two prompts have the same logits if what they begin with is read once and not with each."""
    if not prompts.shared:
        return False
    try:
        prefix = read_prefix(model, prompts.ids[0][: prompts.shared])
        begun = [row[:2] for row in steps]  # one step: the second is computed from the same kind of cache
        return _measure_batch_error(model, PADDED, prompts, begun, [0, 1], prefix) <= tolerance
    except torch.OutOfMemoryError:
        raise
    except Exception:  # models of all kinds raise anything; then each prompt is read whole
        return False


def _is_static(model: PreTrainedModel, prompts: Trial, steps: list[list[torch.Tensor]], tolerance: float) -> bool:
    """Whether the logits of steps that are captured, or could be, are the same; if not, a line says so."""
    if not static.suits(model) or not prompts.steps:
        return False
    memory = StaticMemory(model)
    try:
        error = _measure_batch_error(model, PADDED, prompts, steps, list(range(len(prompts.ids))), memory=memory)
    except torch.OutOfMemoryError:
        raise
    except Exception as raised:  # models of all kinds raise anything; then each step is launched kernel by kernel
        static.report_failure(shorten_error(raised, 80))
        return False
    if error > tolerance and not memory.failure:
        static.report_failure(f"logits differ by {error:.2g} standard deviations")
    return error <= tolerance and not memory.failure


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what a library has to say about ways that are only tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
