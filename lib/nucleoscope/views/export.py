"""Writes a run, or some prompts of it, to one file for other programs or for sharing: csv, parquet or html.

Contract: the files of a run in, one file out, which appears only when it is complete; the model is not needed. The
tokens' texts are in the files; for those of earlier versions, the tokenizer is used if it can be had without the
network.
"""

import html
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from nucleoscope.atomic import write_atomically
from nucleoscope.models.token_bytes import TokenDecoder
from nucleoscope.names import escape_line
from nucleoscope.store import results
from nucleoscope.store.candidates import CANDIDATES, describe_staleness
from nucleoscope.store.context import join_split
from nucleoscope.store.local_tokenizers import find_tokenizer
from nucleoscope.store.run_names import describe_run
from nucleoscope.store.run_names import split as split_name
from nucleoscope.views import export_file, tables, texts
from nucleoscope.views.strip import compute_background
from nucleoscope.views.token_text import Reader, make_encodable
from nucleoscope.wording import MEASURE_AGAIN

AT_ONCE = 100  # prompts whose candidates are in memory
STYLE = (
    ":root{color-scheme:light dark}body{max-width:60rem;margin:1.5rem auto;padding:0 1rem;font-family:sans-serif;"
    "line-height:1.5}h1{font-size:1.3rem}"
)


def write(folder: Path, output: str | Path, prompts: Sequence[int] | None = None, candidates: bool = False) -> str:
    """Writes a run, or some of its ``prompts``, to ``output``, in the format of its ending; what was written, in words.

    ``candidates``: a row for each candidate of each token, instead of each token. ValueError or OSError, in one line,
    for what cannot be written.
    """
    ending, output = export_file.check_name(output, candidates), Path(output)
    export_file.check_place(folder, output)
    known = results.load_records(folder, prompts, fields=("prompt",))
    tokenizer = find_tokenizer(folder)
    if ending == ".html":
        chosen = list(known) if prompts else texts.choose_texts(len(known))
        page = _render_page(folder, {number: known[number]["prompt"] for number in chosen}, tokenizer)
        with write_atomically(output) as stream:
            stream.write(page.encode())
        part = "" if len(chosen) == len(known) else f" (of {len(known):,}: choose others with --prompt)"
        return f"{output}: {len(chosen):,} {'text' if len(chosen) == 1 else 'texts'}{part}"
    parts = _tabulate_candidates(folder, list(known), tokenizer) if candidates else _tabulate(folder, known, tokenizer)
    rows, lacking = _write_table(parts, output, ending, candidates)
    remark = "; the column text is empty, because the tokenizer is not on this machine" if lacking else ""
    what, number = "candidates" if candidates else "tokens", len(known)
    return f"{output}: {rows:,} {what} of {number:,} prompt{'s' * (number != 1)}{remark}"


def _tabulate(folder: Path, prompts: Collection[int], tokenizer: object) -> Iterator[pd.DataFrame]:
    """The tokens of some prompts, with a column for each setting that the run's folder is named after."""
    model, named = split_name(folder.name)
    table = results.load_run(results.find_measurements(folder), model, folder.parent.name)
    table = table[table["prompt"].isin(prompts)].assign(**named)
    if tokenizer is not None and table["text"].isna().any():
        decoder = TokenDecoder(tokenizer)
        split = [decoder.split_text(group["token"].tolist()) for _, group in table.groupby("prompt", sort=False)]
        table = table.assign(text=pd.array([text for part in split for text in part], dtype="str"))
    ahead = ["model", "dataset", *named, "prompt", "step", "token", "text"]
    yield table[[*ahead, *(name for name in table if name not in ahead)]]


def _tabulate_candidates(folder: Path, prompts: list[int], tokenizer: object) -> Iterator[pd.DataFrame]:
    """The candidates of some prompts, some prompts at a time, with the same columns before as tokens have."""
    if problem := describe_staleness(folder):
        place = escape_line(str(folder / CANDIDATES))
        advice = f"so the column 'similarity' is empty: {MEASURE_AGAIN}"
        print(f"warning: '{place}' is {problem}, {advice}", file=sys.stderr)
    model, named = split_name(folder.name)
    names = {"model": model, "dataset": folder.parent.name, **named}
    for start in range(0, len(prompts), AT_ONCE):
        table = results.tabulate_candidates(folder, prompts[start : start + AT_ONCE], tokenizer)
        for place, (name, value) in enumerate(names.items()):
            kind = "str" if isinstance(value, str) else type(value)  # also where there are no rows
            table.insert(place, name, pd.Series(value, table.index, dtype=kind))
        yield table


def _write_table(parts: Iterator[pd.DataFrame], output: Path, ending: str, candidates: bool) -> tuple[int, bool]:
    """Writes the parts of a table, of candidates or of tokens; how many rows it has, and whether texts are missing."""
    rows, lacking, writer = 0, False, None
    with write_atomically(output) as stream:
        for place, part in enumerate(parts):
            if ending == ".csv":
                text = tables.format_csv(part.astype(results.STORED) if candidates else part)
                stream.write((text if place == 0 else text.partition("\n")[2]).encode())
            else:
                table = pa.Table.from_pandas(part, preserve_index=False)
                writer = writer or parquet.ParquetWriter(stream, table.schema)
                writer.write_table(table)
            rows, lacking = rows + len(part), lacking or bool(part["text"].isna().any())
        if writer is not None:
            writer.close()
    return rows, lacking


def _render_page(folder: Path, prompts: dict[int, str], tokenizer: object) -> str:
    """A page that needs nothing else: the strip of one text, or a menu of several. ValueError without a tokenizer."""
    if tokenizer is None:
        if not (folder / results.RUN_INFO).is_file():
            why = f"'{folder}' has no {results.RUN_INFO}, which names the model"
        else:
            name = results.read_recorded(folder)["model_name"]
            why = f"that of '{name}' is not on this machine (scripts/prefetch.py downloads it)"
        raise ValueError(f"a page needs the model's tokenizer, but {why}: write csv or parquet instead")
    table = join_split(results.load_run(results.find_measurements(folder), folder.name, folder.parent.name), folder)
    background, reader, mode = compute_background(table), Reader(tokenizer), results.read_mode(folder)
    if len(prompts) == 1:
        (body,) = texts.render_strips(folder, reader, prompts, background, mode)
    else:
        found = dict(texts.build_texts(folder, reader, prompts, background, mode))
        body = texts.render_texts(folder, prompts, table, background, found, reader)
    title = html.escape(make_encodable(describe_run(folder.name, folder.parent.name)))
    number = f", prompt {next(iter(prompts))}" if len(prompts) == 1 else ""
    explained = (
        "Point at a token, tap it, or reach it with the arrow keys: its card shows what the model could have chosen. "
        "Prompts and tokens are counted from 0. Made with Nucleoscope."
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}{number}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{title}{number}</h1>\n<p>{explained}</p>\n{body}</body>\n</html>\n"
    )
