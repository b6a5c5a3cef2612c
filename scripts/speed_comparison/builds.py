"""The comparison of two builds behind scripts/benchmark.py --against: the same prompts, in alternation."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from nucleoscope import hub
from nucleoscope.data import prompts
from nucleoscope.wording import count
from speed_comparison import DATASETS
from speed_comparison.tables import ComparisonRow, collect, format_table
from speed_comparison.workers import Checkout, describe_commit, find_checkout, get_own_checkout, order_pairs, run_job

PARTS = ("measure", "prefill", "score", "steps")
SETTINGS = ("model_name", "max_tokens", "prompt_format", "top_p", "device", "dtype", "batch_size")
Results = dict[str, list[tuple[dict, dict]]]  # data set -> what the two builds found in each repetition


def compare(options: argparse.Namespace) -> None:
    """Prints how this build compares with the one in ``options.against``; options are those of scripts/benchmark.py.

    Raises OSError or ValueError, in one line, for invalid input, before anything is measured.
    """
    checkouts = (get_own_checkout(), find_checkout(options.against))
    hub.check(options.model_name)
    names = options.dataset_name or DATASETS
    texts = {name: prompts.load(name, options.n_prompts, options.prompt_column).texts for name in names}
    settings = {name: getattr(options, name) for name in SETTINGS}
    # Not timed: this fails early, and fills the caches of the build and of the system for the processes that follow.
    first = [run_job(checkout, parts=[], texts=next(iter(texts.values())), **settings) for checkout in checkouts]
    print(_describe(checkouts, [found["build"] for found in first], options), flush=True)
    found: Results = {name: [] for name in names}
    for order in order_pairs(options.repeats):
        for name in names:
            pair: list[dict] = [{}, {}]
            for side in order:
                pair[side] = run_job(checkouts[side], parts=PARTS, texts=texts[name], **settings)
                seconds = pair[side]["measure"]["seconds"]
                print(f"{name}, {'the other' if side else 'this build'}: {seconds:.1f} s", file=sys.stderr, flush=True)
            found[name].append((pair[0], pair[1]))
    print(format_comparison(found))


def _describe(checkouts: Sequence[Checkout], builds: Sequence[dict], options: argparse.Namespace) -> str:
    lines = [
        f"{options.model_name}; at most {options.n_prompts} prompts per data set and {options.max_tokens} tokens per "
        f"prompt, prompt_format {options.prompt_format}, top_p {options.top_p}, batch_size {options.batch_size}; "
        f"{count(options.repeats, 'pair')}, alternating which build goes first\n"
    ]
    for label, checkout, build in zip(("this build", "the other"), checkouts, builds, strict=True):
        commit = describe_commit(checkout)
        lines.append(
            f"* {label}: {checkout.name}{f' ({commit})' if commit else ''}, {build['dtype']} on {build['device']}, "
            f"{count(build['threads'], 'thread')}, torch {build['torch']}, transformers {build['transformers']}"
        )
    return "\n".join(lines) + "\n"


def format_comparison(found: Results) -> str:
    """All tables, in Markdown."""
    tables = [
        _format_rates(found, "measure", "Measuring, tokens/s including prefill, without import and loading"),
        _format_rates(found, "prefill", "Prefill, prompt tokens/s"),
        _format_rates(found, "score", "Scoring, tokens/s (the prompts as texts)"),
        _format_steps(found, "Measuring: % of a step (everything but the forward pass)", _compute_share, 1),
        _format_steps(found, "Measuring: ms per step", lambda step: step["measuring"], 2),
        _format_steps(found, "Forward pass: ms per step", lambda step: step["forward"], 1),
        format_table("Peak memory after measuring, MiB", _list_peaks(found)),
        format_table("Before measuring, s", _list_starts(found), 1),
        format_table("Tokens", _list_counts(found)),
    ]
    return "\n".join(tables)


def _join(found: Results) -> list[tuple[list[dict], list[dict]]]:
    """For each repetition and side, the results of all data sets."""
    return [tuple(map(list, zip(*pairs, strict=True))) for pairs in zip(*found.values(), strict=True)]


def _add_total(
    found: Results, pick: Callable[[dict], float], join: Callable[[list[dict]], float]
) -> list[ComparisonRow]:
    """A row per data set and, if there are several, one of them together."""
    rows = [ComparisonRow(name, *collect(pairs, pick)) for name, pairs in found.items()]
    if len(found) > 1:
        rows.append(ComparisonRow("total", *collect(_join(found), join)))
    return rows


def _format_rates(found: Results, part: str, title: str) -> str:
    def divide(results: list[dict]) -> float:
        return sum(each[part]["tokens"] for each in results) / sum(each[part]["seconds"] for each in results)

    return format_table(title, _add_total(found, lambda result: divide([result]), divide), 1)


def _list_peaks(found: Results) -> list[ComparisonRow]:
    def find_largest(results: list[dict]) -> float:
        return max(result["measure"]["peak"] for result in results)

    rows = _add_total(found, lambda result: result["measure"]["peak"], find_largest)
    return [row._replace(label="largest") if row.label == "total" else row for row in rows]


def _list_starts(found: Results) -> list[ComparisonRow]:
    pairs = [pair for each in found.values() for pair in each]
    labels = {"import": "import", "load": "load the model", "first": "first four prompts, with any trial of the model"}
    return [
        ComparisonRow(text, *collect(pairs, lambda result, key=key: result["start"][key]))
        for key, text in labels.items()
    ]


def _list_counts(found: Results) -> list[ComparisonRow]:
    rows = []
    for name, pairs in found.items():
        for key, text in {"prompt_tokens": "in prompts", "tokens": "measured"}.items():
            rows.append(
                ComparisonRow(f"{name}, {text}", *collect(pairs, lambda result, key=key: result["measure"][key]))
            )
    return rows


def _compute_share(step: dict[str, Any]) -> float | None:
    if step["measuring"] is None:
        return None
    return 100 * step["measuring"] / (step["measuring"] + step["forward"])


def _format_steps(found: Results, title: str, pick: Callable[[dict], float | None], digits: int) -> str:
    """A row per data set, batch size and top_p; the label has the mean nucleus size of this build."""
    rows = []
    for name, pairs in found.items():
        for place, step in enumerate(pairs[0][0]["steps"]):
            label = f"{name}, batch {step['rows']}, top_p {step['top_p']} (mean k {step['k']:,.0f})"
            figures = collect(pairs, lambda result, place=place: pick(result["steps"][place]))
            rows.append(ComparisonRow(label, *figures))
    return format_table(title, rows, digits)
