"""The comparison behind scripts/benchmark.py --context: candidates as branches of a tree, and in cached steps."""

import argparse
import time

import torch

from nucleoscope.measure import batching, context, generation
from nucleoscope.settings import Settings
from nucleoscope.wording import count
from speed_comparison.comparison import Clock, load
from speed_comparison.tables import ComparisonRow, collect, format_table
from speed_comparison.workers import order_pairs

SIDES = ("tree", "cached steps")


def generate(model, inputs: generation.Inputs, texts: list[str], options: argparse.Namespace) -> list[tuple]:
    """The ids and the forks of each text, longest first."""
    size = generation.choose_batch_size(options.batch_size, model, inputs, options.max_tokens)
    batches = batching.split_batches(inputs, size)
    settings = {"max_tokens": options.max_tokens, "top_p": options.top_p, "inputs": inputs, "batches": batches}
    found = []
    for batch in generation.measure(model, None, texts, progress=False, **settings):
        for index, record in zip(batch.indices, batch.records, strict=True):
            before = inputs.ids[index]
            forks = context.find_forks(record, len(before), options.context_candidates)
            found.append(([*before, *record["tokens"].tolist()], forks))
    return found


def compare(options: argparse.Namespace) -> None:
    """Prints the time and the peak memory of both ways with these ``options``, and how far their results differ."""
    model, _, inputs, texts = load(options)
    found = generate(model, inputs, texts, options)
    ways = context.find_ways(model).ways
    trees = [way for way in ways if way != context.STEPS]
    if not trees or context.STEPS not in ways:
        raise ValueError(f"{type(model).__name__} can be read in only one of the two ways")
    readers = [context.create_reader(model, way) for way in (trees[0], context.STEPS)]
    candidates = sum(len(fork.candidates) for _, forks in found for fork in forks)
    print(
        f"{options.random_weights or options.model_name}, {model.dtype} on {model.device}, "
        f"{count(torch.get_num_threads(), 'thread')}; {count(len(found), 'text')}, "
        f"{sum(len(forks) for _, forks in found):,} tokens with "
        f"a choice, {candidates:,} candidates; {count(options.repeats, 'pair')}, alternating which way goes first\n"
    )
    clock, pairs, largest = Clock(model.device), [], 0.0
    for order in order_pairs(options.repeats):
        pair: list[dict] = [{}, {}]
        for side in order:
            begun = time.process_time()
            with clock() as taken:
                results = [context.compare_text(readers[side], *text, Settings()) for text in found]
            pair[side] = {"seconds": taken.seconds, "peak": taken.peak, "cores": time.process_time() - begun}
            pair[side]["means"] = torch.cat([result.values["mean_similarity"] for result in results])
        largest = max(largest, float((pair[0]["means"] - pair[1]["means"]).abs().max()))
        pairs.append(pair)
    names = {"seconds": "elapsed", "cores": "of all cores together"}
    times = [ComparisonRow(text, *collect(pairs, lambda side, key=key: side[key])) for key, text in names.items()]
    memory = ComparisonRow("peak", *collect(pairs, lambda side: side["peak"]))
    print(format_table("Time, s", times, 1, SIDES))
    print(format_table("Memory, MiB", [memory], 0, SIDES))
    print(f"largest difference of a token's mean similarity: {largest:.2g}")
