"""Branch points as small trees of text: the text before, its candidates, and below each its continuations.

Contract: HTML that needs no other file and no script, in the light and the dark theme. All text of a model is escaped.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from nucleoscope.stats.choice import choose_examples
from nucleoscope.store import branches, results
from nucleoscope.store.local_tokenizers import find_tokenizer
from nucleoscope.store.results import BRANCH_TABLE
from nucleoscope.store.run_names import describe_run, order_run
from nucleoscope.views import palette
from nucleoscope.views.assets import STATIC, read_compactly
from nucleoscope.views.numbers import format_percent
from nucleoscope.views.token_text import Reader, make_encodable

BEFORE = 30  # tokens of the text before a branch point
PROMPT = 120  # characters of the end of a prompt that a branch point at the beginning of a text is shown with
LISTED = 4  # candidates
TITLES = {
    "only": "The only branch point",
    "most": "The most consequential branch point",
    "median": "The median branch point",
    "least": "The least consequential branch point",
}


def show_examples(results_dir: str, runs: Mapping[tuple[str, str], Any]) -> HTML:
    """The most, the median and the least consequential branch points of all runs whose tokenizer is on this machine."""
    readers, tables = {}, []
    for model, dataset in sorted(runs, key=order_run):
        folder = results.locate_measured(results_dir, model, dataset)
        tokenizer = find_tokenizer(folder)
        if tokenizer is not None:
            readers[model, dataset] = Reader(tokenizer)
            tables.append(runs[model, dataset].points.assign(Model=model, Dataset=dataset))
    if not tables:
        return HTML("<p>No text can be shown here, because the tokenizers of the models are not on this machine.</p>")
    parts = []
    for which, point in choose_examples(pd.concat(tables, ignore_index=True)).items():
        key = point["Model"], point["Dataset"]
        folder = results.locate_measured(results_dir, *key)
        title = f"{TITLES[which]}: {describe_run(*key)}"
        parts.append(render_fork(folder, point, readers[key], title))
    return HTML(_wrap(parts))


def show_forks(folder: Path, points: pd.DataFrame, tokenizer: Any) -> HTML:
    """The same three branch points of one run, with its ``tokenizer``."""
    reader = Reader(tokenizer)
    parts = [render_fork(folder, point, reader, TITLES[which]) for which, point in choose_examples(points).items()] or [
        "<p>No text has a token to branch at.</p>"
    ]
    return HTML(_wrap(parts))


def _wrap(parts: Sequence[str]) -> str:
    style = palette.format_css() + read_compactly(STATIC / "fork.css")
    return f'<style>{style}</style><div class="nucleoscope nucleoscope-forks">{"".join(parts)}</div>'


def render_fork(folder: Path, point: pd.Series, reader: Reader, title: str) -> str:
    """One branch point as HTML; ``point`` is its row in branch_points.parquet, read from the ``folder`` of its run."""
    prompt, step = int(point["prompt"]), int(point["step"])
    record = results.load_records(folder, [prompt])[prompt]
    rows = branches.load_rows(folder, BRANCH_TABLE)
    rows = rows[(rows["prompt"] == prompt) & (rows["step"] == step)]
    taken = int(record["tokens"][step])
    numbers = f"divergence {point['divergence']:.2f}"
    if np.isfinite(point["baseline_divergence"]):
        numbers += f", of the same candidate with other random numbers {point['baseline_divergence']:.2f}"
    numbers += f"; {format_percent(point['met'])} of the pairs of branches meet again"
    shown = [part for _, part in rows.groupby("candidate", sort=True)][:LISTED]
    items = "".join(_render_candidate(part, reader, taken) for part in shown)
    hidden = rows["candidate"].nunique() - len(shown)
    noun = "candidate is" if hidden == 1 else "candidates are"
    more = f'<p class="ns-fork-muted">{hidden} less likely {noun} not shown.</p>' if hidden > 0 else ""
    return (
        f'<div class="ns-fork"><p class="ns-fork-rule">{_escape(title)}</p>'
        f'<p class="ns-fork-muted">prompt {prompt}, token {step}; {numbers}</p>'
        f'<p class="ns-fork-text">{_render_before(record, step, reader)}</p><ul>{items}</ul>{more}</div>'
    )


def _render_before(record: Mapping[str, Any], step: int, reader: Reader) -> str:
    begin = max(0, step - BEFORE)
    text = _join(reader, [int(token) for token in record["tokens"][begin:step]]) if step else ""
    if begin:
        return f"… {text}"
    prompt = str(record["prompt"])
    tail = ("… " if len(prompt) > PROMPT else "") + _escape(" ".join(prompt[-PROMPT:].split()))
    return f'<span class="ns-fork-muted">{tail}</span> {text}'


def _render_candidate(rows: pd.DataFrame, reader: Reader, taken: int) -> str:
    """A candidate with its share, and the tree of its replicates."""
    first = rows.iloc[0]
    mark = ", taken" if int(first["id"]) == taken else ""
    ways = [(list(map(int, tokens)), bool(ended)) for tokens, ended in zip(rows["tokens"], rows["ended"], strict=True)]
    name = _escape(reader.show(int(first["id"])))
    head = f'<b>{name}</b> <span class="ns-fork-muted">{first["share"]:.2f}{mark}</span>'
    return f"<li>{head}{_render_tree(ways, reader)}</li>"


def _render_tree(ways: Sequence[tuple[list[int], bool]], reader: Reader) -> str:
    """Continuations as nested lists: what several begin with in common is one node."""
    groups: dict[int | None, list[tuple[list[int], bool]]] = {}
    for tokens, ended in ways:
        groups.setdefault(tokens[0] if tokens else None, []).append((tokens, ended))
    items = []
    for begins, group in groups.items():
        if begins is None:
            items.append('<span class="ns-fork-muted">(the text ends)</span>')
            continue
        common = count_common([tokens for tokens, _ in group])
        text = f'<span class="ns-fork-text">{_join(reader, group[0][0][:common])}</span>'
        rest = [(tokens[common:], ended) for tokens, ended in group]
        if all(not tokens for tokens, _ in rest):
            times = f" ({len(group)} times)" if len(group) > 1 else ""
            note = f"{' (the text ends)' if rest[0][1] else ' …'}{times}"
            items.append(f'{text}<span class="ns-fork-muted">{note}</span>')
        else:
            items.append(text + _render_tree(rest, reader))
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def count_common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of some rows begin with."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def _join(reader: Reader, tokens: list[int]) -> str:
    """The running text of some tokens, escaped, with signs for line breaks and without spaces before it."""
    text = "".join(unit.text for unit in reader.split_units(tokens)) if tokens else ""
    return _escape(text.replace("\n", "↵ ").lstrip(" ") or "·")


def _escape(text: str) -> str:
    return html.escape(make_encodable(text))
