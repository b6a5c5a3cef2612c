"""Times the four ways of measuring that scripts/benchmark.py names, and prints Markdown."""

import argparse
import contextlib
import json
import platform
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from nucleoscope.data import prompts
from nucleoscope.hub import shorten
from nucleoscope.measure import batching, checking, cosine, entropy, generation, model_facts, second_look, static
from nucleoscope.measure.decoding import PADDED
from nucleoscope.measure.nucleus import find_nucleus
from nucleoscope.measure.sampling import Sampler
from nucleoscope.measure.variants import create_variants, find_layout
from nucleoscope.models import loading, packing
from nucleoscope.names import suggest
from nucleoscope.settings import Settings, quote
from nucleoscope.store import results, run_folder
from nucleoscope.variants import DEFAULT, NONE
from nucleoscope.wording import count, lower_first

SIZES = (  # of which a model has none that is 0
    *("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)


class Clock:
    """Seconds and peak memory (MiB) of a block; on a GPU both are the device's."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"

    @contextlib.contextmanager
    def __call__(self) -> Iterator[SimpleNamespace]:
        taken, stop = SimpleNamespace(peak=0), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(taken, stop), daemon=True)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            torch.cuda.synchronize(self.device)
        else:
            watcher.start()
        begin = time.perf_counter()
        yield taken
        if self.cuda:
            torch.cuda.synchronize(self.device)
            taken.peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        taken.seconds = time.perf_counter() - begin
        stop.set()

    @staticmethod
    def _watch(taken: SimpleNamespace, stop: threading.Event) -> None:
        statm = Path("/proc/self/statm")
        while statm.exists() and not stop.wait(0.02):
            taken.peak = max(taken.peak, int(statm.read_text().split()[1]) * 4096 / 2**20)


@torch.inference_mode()
def measure_published(model, ids: list[int], max_tokens: int, top_p: float, ends: set[int]) -> int:
    """(a) for one prompt; returns the number of tokens measured."""
    embedding = model.get_input_embeddings().weight
    prefix, nuclei, entropies = torch.tensor([ids], device=model.device), [], []
    for _ in range(max_tokens):
        probs = torch.softmax(model(input_ids=prefix).logits[0, -1], dim=-1)
        values, order = torch.sort(probs, descending=True)
        size = torch.searchsorted(values.cumsum(0), top_p).item() + 1
        q = values[:size].float() / values[:size].float().sum()
        token = order[torch.multinomial(q, 1)]
        if token.item() in ends:
            break
        nuclei.append(order[:size])
        entropies.append(-(q * q.clamp_min(1e-12).log()).sum().item())
        prefix = torch.cat([prefix, token[None]], dim=1)
    for candidates in nuclei:
        rows = torch.nn.functional.normalize(embedding[candidates], dim=1)
        i, j = torch.triu_indices(len(rows), len(rows), offset=1)
        (rows @ rows.T)[i, j].mean().item()
    return len(nuclei)


@torch.inference_mode()
def measure_generate(model, ids: list[list[int]], max_tokens: int, top_p: float, ends: set[int]) -> int:
    """(b) for one batch; returns the number of tokens measured."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=model.device)
    output = model.generate(
        input_ids=padded,
        attention_mask=mask,
        generation_config=transformers.GenerationConfig(
            do_sample=True,
            top_p=top_p,
            top_k=0,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    embedding = model.get_input_embeddings().weight
    directions = cosine.find_directions(embedding)
    tokens = output.sequences[:, longest:]
    for step, logits in enumerate(output.logits):
        chosen = find_nucleus(logits, top_p)
        entropy.compute_nucleus_entropies(chosen.probs, chosen.offsets)
        entropy.compute_full_entropies(logits)
        cosine.compute_similarity(*chosen, directions)
        logits.log_softmax(-1).gather(-1, tokens[:, step : step + 1])
    over = torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device, dtype=tokens.dtype)).cumsum(1) > 0
    return int((~over).sum())


@torch.inference_mode()
def replay(
    model,
    ids: list[list[int]],
    max_tokens: int,
    steps: list[tuple[list[int], torch.Tensor, set[int]]],
    memory: static.StaticMemory | None = None,
) -> None:
    """(d): the forward passes and an argmax, with the same tokens and ended rows as in (c), and on the same path."""
    decoder = static.create_decoder(model, ids, max_tokens, PADDED, memory=memory)
    logits = decoder.prefill()
    for rows, tokens, ended in steps:
        assert rows == decoder.rows, "(d) must process the same rows as the run of (c) that it replays"
        logits.float().argmax(-1)
        logits = decoder.advance(tokens, ended)


def measure_ours(model, inputs, texts: list[str], batches, options) -> tuple[int, list[list]]:
    """(c); returns the number of tokens measured, and the steps of each batch for (d)."""
    recorded = []
    original = Sampler.draw

    def remember(self, logits, rows):
        tokens, ended = original(self, logits, rows)
        if len(self.steps) == 1:
            recorded.append([])
        recorded[-1].append((list(rows), tokens, set(ended)))
        return tokens, ended

    Sampler.draw = remember
    try:
        done = list(
            generation.measure(
                model,
                SimpleNamespace(eos_token_id=None),
                texts,
                inputs=inputs,
                batches=batches,
                max_tokens=options.max_tokens,
                top_p=options.top_p,
                progress=False,
            )
        )
    finally:
        Sampler.draw = original
    return sum(len(record["tokens"]) for batch in done for record in batch.records), recorded


def time_run(model, tokenizer, inputs, texts: list[str], batches, options, setting: str) -> tuple[float, float]:
    """Seconds of a run with a setting of variants, from encoded prompts to its files, and of its second look in them.

    There is no second look without a tokenizer, which random weights do not have.
    """
    clock, looking = Clock(model.device), Clock(model.device)
    with (
        tempfile.TemporaryDirectory() as place,
        run_folder.RunFolder(place, {"variants": setting}) as folder,
        clock() as taken,
    ):
        variants = create_variants(model, inputs.ids, setting)
        chosen = Settings(top_p=options.top_p, max_tokens=options.max_tokens, variants=setting)
        # without a tokenizer nothing will look at them
        kept = None if tokenizer is None else second_look.keep_states(model, inputs, chosen)
        given = {"inputs": inputs, "batches": batches, "measured_variants": variants, "folder": folder, "kept": kept}
        given |= {"max_tokens": options.max_tokens, "top_p": options.top_p, "progress": False}
        for batch in generation.measure(model, SimpleNamespace(eos_token_id=None), texts, **given):
            if kept is not None:
                folder.save_states(batch.indices, kept.take())
            folder.save_batch(batch.indices, batch.records, 0.0, (), "", batch.variants, find_layout(variants))
        looked, said = None, {}
        with looking() as again:
            if tokenizer is not None and variants is not None:
                looked, said = second_look.look(model, tokenizer, inputs, folder, chosen, variants.spaces)
        folder.finish(len(texts), said, looked=looked)
    return taken.seconds, again.seconds


def report(what: str, seconds: float) -> None:
    """Says on the standard error what was timed: the tables come last."""
    print(f"{what}: {seconds:.1f} s", file=sys.stderr, flush=True)


def compare_variants(model, tokenizer, inputs, texts: list[str], batches, options) -> None:
    """Prints what the default variants cost: the ratios of runs with them to runs without, in the order A B B A."""
    times: dict[str, list[tuple[float, float]]] = {NONE: [], DEFAULT: []}
    for number in range(options.repeats):
        for setting in (NONE, DEFAULT) if number % 2 == 0 else (DEFAULT, NONE):
            times[setting].append(time_run(model, tokenizer, inputs, texts, batches, options, setting))
            report(f"variants={setting}", times[setting][-1][0])
    plain = [seconds for seconds, _ in times[NONE]]
    whole = [seconds / one for (seconds, _), one in zip(times[DEFAULT], plain, strict=True)]
    measuring = [(seconds - look) / one for (seconds, look), one in zip(times[DEFAULT], plain, strict=True)]
    shown = [
        f"{statistics.median(ratios):.2f} times a run without ({', '.join(f'{ratio:.3f}' for ratio in ratios)})"
        for ratios in (whole, measuring)
    ]
    print(
        f"\ncost of the default variants: {shown[0]}; without the second look {shown[1]}; "
        f"a run without variants takes {statistics.median(plain):.1f} s"
    )


def load_shape(given: str) -> transformers.PreTrainedConfig:
    """The configuration in a file, or of a Llama with "key=value,...". ValueError, in one line, if there is none."""
    if Path(given).is_file():
        entries = results.read_json(Path(given), "give the config.json of a model")
        if "model_type" not in entries:
            raise ValueError(f"'{given}' has no model_type: it is not the config.json of a model")
        named, known = str(entries["model_type"]), list(transformers.CONFIG_MAPPING.keys())
        if named not in known:
            raise ValueError(
                f"'{given}': transformers does not know the model_type {quote(named)}{suggest(named, known)}"
            )
        build = partial(transformers.AutoConfig.for_model, **entries)
    else:
        entries, known = {}, transformers.LlamaConfig().to_dict()
        for pair in given.split(","):
            key, equals, text = pair.partition("=")
            if not equals:
                raise ValueError(f"random_weights: {quote(pair)} is not of the form key=value, such as hidden_size=64")
            if key not in known:
                advice = suggest(key, known) or ": use names of its config.json, such as hidden_size"
                raise ValueError(f"random_weights: a Llama has no setting {quote(key)}{advice}")
            try:
                entries[key] = json.loads(text)
            except ValueError:
                raise ValueError(
                    f"random_weights: {key} is {quote(text)}: it must be a number, true or false"
                ) from None
        build = partial(transformers.LlamaConfig, **entries)
    _check_sizes(entries)
    try:
        return build()
    except (StrictDataclassError, ArithmeticError, TypeError, ValueError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        said = re.sub(r"^\w+Error: ", "", last)  # after which validator has said it
        raise ValueError(f"random_weights: {lower_first(shorten(said))}") from None


def _check_sizes(entries: dict[str, Any]) -> None:
    """ValueError, in one line, for a size in a configuration, or in that of one of its parts, that is not above 0."""
    for key, value in entries.items():
        if isinstance(value, dict):
            _check_sizes(value)
        elif key in SIZES and isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"random_weights: {key} is {quote(value)}: it must be above 0")


def create_random_model(
    given: str | transformers.PreTrainedConfig, device: torch.device, dtype: torch.dtype | str, target: float = 1.5
):
    """A model with random weights from a configuration, the file of one, or from "key=value,..." for a Llama.

    The output layer is scaled so that the mean entropy of the next token is ``target`` nats.
    """
    config = given if isinstance(given, transformers.PreTrainedConfig) else load_shape(given)
    dtype = torch.bfloat16 if dtype == "auto" else dtype
    with torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(config.vocab_size, (64, 8), generator=generator).to(device)
    head = model.get_output_embeddings().weight
    if head.data_ptr() == model.get_input_embeddings().weight.data_ptr():  # scaling must not touch the embeddings
        model.set_output_embeddings(torch.nn.Linear(*reversed(head.shape), bias=False, device=device, dtype=dtype))
        head = model.get_output_embeddings().weight
    with torch.inference_mode():
        logits = model(input_ids=probe).logits[:, -1].float()
        low, high = 1e-3, 1e5
        for _ in range(60):
            middle = (low * high) ** 0.5
            mean = entropy.compute_full_entropies(logits * middle).entropy.mean()
            low, high = (middle, high) if mean > target else (low, middle)
        head.mul_(low)
    return packing.pack(model)


def draw_logits(vocabulary: int, size: int, rows: int, device: torch.device) -> torch.Tensor:
    """Logits (rows, V) falling as a power of the rank, in random order, with a nucleus of about ``size``."""
    ranks = torch.arange(1, vocabulary + 1, dtype=torch.float64).log()
    low, high = 0.1, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        wide = int(((-middle * ranks).softmax(0).cumsum(0) < 0.9).sum()) + 1 > size
        low, high = (middle, high) if wide else (low, middle)
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(rows)])
    return (-low * ranks).float()[order].to(device)


def time_median(call: Callable, device: torch.device, repeats: int = 5) -> float:
    clock, times = Clock(device), []
    for _ in range(repeats + 1):
        with clock() as taken:
            call()
        times.append(taken.seconds * 1e3)
    return statistics.median(times[1:])


def time_kernels(device: torch.device, rows: int) -> None:
    """Times the nucleus and cosine steps alone."""
    print(f"\n| V | d | median size of the nucleus | rows | full sort, ms | nucleus, ms | cosine, ms |\n|{'---|' * 7}")
    for vocabulary in (49_152, 128_256):
        embedding = torch.randn(vocabulary, 4096, device=device, dtype=torch.bfloat16)
        directions = cosine.find_directions(embedding)
        for size in (10, 5_000):
            logits = draw_logits(vocabulary, size, rows, device)
            chosen = find_nucleus(logits, 0.9)
            sort = time_median(lambda logits=logits: logits.sort(descending=True), device, 3)
            pick = time_median(lambda logits=logits: find_nucleus(logits, 0.9), device)
            similarity = time_median(
                lambda chosen=chosen: cosine.compute_similarity(*chosen, directions),  # noqa: B023
                device,
                3,
            )
            median = int(chosen.offsets.diff().median())
            print(f"| {vocabulary:,} | 4,096 | {median:,} | {rows} | {sort:.1f} | {pick:.1f} | {similarity:.1f} |")


def measure_bandwidth(device: torch.device) -> float:
    """The device's memory bandwidth in bytes per second, read plus written, from copying a tensor."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_median(lambda: target.copy_(source), device, 20) / 1e3)


def load(options: argparse.Namespace) -> tuple:
    """The model, its tokenizer or None, the tokenised prompts and their texts."""
    device = loading.pick_device(options.device)
    if options.random_weights:
        model = create_random_model(options.random_weights, device, loading.pick_dtype(options.dtype, device))
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(60, 180, (options.n_prompts,), generator=generator).tolist()
        vocabulary = model.config.get_text_config().vocab_size
        ids = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
        model.generation_config.eos_token_id = model.config.eos_token_id = None  # nothing ends early
        return model, None, generation.Inputs(ids), [""] * len(ids)
    model, tokenizer, _ = loading.load(options.model_name, options.dtype, options.device)
    texts = prompts.load(options.dataset_name, options.n_prompts, options.prompt_column).texts
    context = model_facts.find_context_length(model)
    model.generation_config.eos_token_id = sorted(model_facts.find_end_tokens(model, tokenizer))
    inputs = generation.encode(tokenizer, texts, options.prompt_format, context, options.max_tokens)
    return model, tokenizer, inputs, texts


def compare(options: argparse.Namespace) -> None:
    """Prints what the ways take with these ``options``, those of scripts/benchmark.py."""
    model, tokenizer, inputs, texts = load(options)
    device = model.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    size = generation.choose_batch_size(options.batch_size, model, inputs, options.max_tokens)
    batches = batching.split_batches(inputs, size)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(
        f"{options.random_weights or options.model_name}, {model.dtype}, {weights / 2**20:,.0f} MiB of weights; "
        f"{name}, {count(torch.get_num_threads(), 'thread')}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
        f"{count(len(texts), 'prompt')} ({statistics.mean(map(len, inputs.ids)):.0f} tokens on average), "
        f"at most {count(options.max_tokens, 'token')} each, batches of {size}\n",
        flush=True,
    )
    measure_ours(model, generation.Inputs(inputs.ids[:4]), texts[:4], [[0, 1, 2, 3][: len(texts)]], options)  # warm-up
    if set(options.only) & set("abcd"):
        compare_ways(model, inputs, texts, batches, options)
    if "v" in options.only:
        compare_variants(model, tokenizer, inputs, texts, batches, options)
    if "k" in options.only:
        time_kernels(device, options.kernel_rows)


def compare_ways(model, inputs, texts: list[str], batches, options) -> None:
    """Prints speed and peak memory of (c), and of those of (a), (b) and (d) that the options name."""
    device, clock = model.device, Clock(model.device)
    ends = set(model.generation_config.eos_token_id or [])
    rates, peaks = {}, {}
    times: dict[str, list[float]] = {"c": [], "d": []}
    tokens, steps = 0, []
    for _ in range(options.repeats):
        with clock() as taken:
            tokens, steps = measure_ours(model, inputs, texts, batches, options)
        times["c"].append(taken.seconds)
        peaks["c"] = taken.peak
        report("(c)", taken.seconds)
        if "d" in options.only:
            with clock() as taken:
                memory = checking.create_memory(model)
                for indices, recorded in zip(batches, steps, strict=True):
                    replay(model, [inputs.ids[i] for i in indices], options.max_tokens, recorded, memory)
            times["d"].append(taken.seconds)
            peaks["d"] = taken.peak
            report("(d)", taken.seconds)
    rates |= {part: tokens / statistics.median(seconds) for part, seconds in times.items() if seconds}
    if "b" in options.only:
        with clock() as taken:
            measured = sum(
                measure_generate(model, [inputs.ids[i] for i in batch], options.max_tokens, options.top_p, ends)
                for batch in batches
            )
        rates["b"], peaks["b"] = measured / taken.seconds, taken.peak
        report("(b)", taken.seconds)
    if "a" in options.only:
        chosen = range(0, len(texts), max(1, len(texts) // options.published_prompts))[: options.published_prompts]
        with clock() as taken:
            measured = sum(
                measure_published(model, inputs.ids[i], options.max_tokens, options.top_p, ends) for i in chosen
            )
        rates["a"], peaks["a"] = measured / taken.seconds, taken.peak
        report("(a)", taken.seconds)
    labels = {
        "a": f"(a) the study's algorithm ({count(options.published_prompts, 'prompt')})",
        "b": "(b) generate, then measure",
        "c": "(c) Nucleoscope",
        "d": "(d) forward passes alone",
    }
    print(f"| | tokens/s | speed-up of (c) | peak memory, MiB |\n|{'---|' * 4}")
    for part in sorted(rates):
        print(f"| {labels[part]} | {rates[part]:,.1f} | {rates['c'] / rates[part]:.2f} | {peaks[part]:,.0f} |")
    print(f"\n(c) took {statistics.median(times['c']):.1f} s for {count(tokens, 'token')}")
    if times["d"]:
        ratios = [c / d for c, d in zip(times["c"], times["d"], strict=True)]
        print(f"time of (c) / time of (d), run by run: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    if device.type == "cuda":
        weights = sum(parameter.nbytes for parameter in model.parameters())  # every step reads all of them once
        read = weights * sum(map(len, steps)) / measure_bandwidth(device)
        print(f"share of the memory-bandwidth limit: {read / statistics.median(times['c']):.1%}")
