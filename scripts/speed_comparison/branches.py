"""The comparison behind scripts/benchmark.py --branching: branches, and plain generation in batches as large."""

import argparse

import torch

from nucleoscope.measure import batching, branching, cosine, generation
from nucleoscope.measure.context import find_forks
from nucleoscope.measure.model_facts import find_embedding_matrix, find_end_tokens
from nucleoscope.settings import Settings
from nucleoscope.wording import count
from speed_comparison.comparison import Clock, load
from speed_comparison.tables import ComparisonRow, collect, format_table
from speed_comparison.workers import order_pairs

SIDES = ("branches", "plain generation")


def compare(options: argparse.Namespace) -> None:
    """Prints tokens per second and the peak memory of both with these ``options``.

    Plain generation has as many prompts per batch as there are branches in one on average: the prompts of the data set
    are repeated until they fill a batch.
    """
    model, _, inputs, texts = load(options)
    names = ("branch_points", "branch_length", "branch_replicates", "context_candidates", "max_tokens", "top_p")
    settings = Settings(**{name: getattr(options, name) for name in names}, batch_size=options.batch_size).check()
    batches = batching.split_batches(inputs, generation.choose_batch_size("auto", model, inputs, options.max_tokens))
    plain = {"max_tokens": options.max_tokens, "top_p": options.top_p, "progress": False}
    measured = generation.measure(model, None, texts, inputs=inputs, batches=batches, **plain)
    found = sorted(pair for batch in measured for pair in zip(batch.indices, batch.records, strict=True))
    works = [_prepare(model, inputs.ids[index], record, index, settings) for index, record in found]
    works = [work for work in works if work[1]]
    ends = find_end_tokens(model, None)
    directions = cosine.find_directions(find_embedding_matrix(model))
    groups = [
        group for work in works for group in branching.split_points(work[1], settings.branch_replicates, work[-1])
    ]
    sizes = [sum(len(point.candidates) for point in group) * settings.branch_replicates for group in groups]
    rows = round(sum(sizes) / len(sizes))
    repeated = generation.Inputs([inputs.ids[place % len(inputs.ids)] for place in range(rows)])
    print(
        f"{options.random_weights or options.model_name}, {model.dtype} on {model.device}, "
        f"{count(torch.get_num_threads(), 'thread')}; {count(len(works), 'text')}, "
        f"{count(sum(len(work[1]) for work in works), 'branch point')}, "
        f"{sum(sizes):,} branches of {settings.branch_length} tokens in batches of {rows} on average; "
        f"{count(options.repeats, 'pair')}, alternating which side goes first\n"
    )

    def branch() -> int:
        drawn = (branching.branch_text(model, *work[:3], settings, ends, directions, work[3]) for work in works)
        return sum(int((found.tokens != branching.ENDED).sum()) for found in drawn)

    def generate() -> int:
        batch = list(range(rows))
        options = {"inputs": repeated, "batches": [batch], **plain}
        measured = generation.measure(model, None, [""] * rows, **options)
        return sum(len(record["tokens"]) for each in measured for record in each.records)

    clock, pairs = Clock(model.device), []
    for order in order_pairs(options.repeats):
        pair: list[dict] = [{}, {}]
        for side in order:
            with clock() as taken:
                tokens = (branch, generate)[side]()
            pair[side] = {"speed": tokens / taken.seconds, "peak": taken.peak}
        pairs.append(pair)
    speed = ComparisonRow("drawn and measured", *collect(pairs, lambda side: side["speed"]))
    memory = ComparisonRow("peak", *collect(pairs, lambda side: side["peak"]))
    print(format_table("Tokens per second", [speed], 1, SIDES))
    print(format_table("Memory, MiB", [memory], 0, SIDES))


def _prepare(model, before: list[int], record: dict, index: int, settings: Settings) -> tuple:
    """The ids, the points, the number and the plan of one text."""
    ids = [*before, *record["tokens"].tolist()]
    forks = find_forks(record, len(before), settings.context_candidates)
    chosen = (settings.branch_points, settings.seed, index)
    points = branching.choose_points(forks, record["entropies"], record["cosines"], *chosen)
    plan = branching.plan_text(model, points[-1].position, points, settings) if points else None
    return ids, points, index, plan
