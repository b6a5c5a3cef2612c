"""From statistics to files for readers and papers: csv with every number, LaTeX with the main ones, and sentences.

Contract: frames as returned by `correlation.compute_statistics` and `fits.fit_all`; numbers are rounded
here but not computed. The LaTeX is a bare tabular for an article with the packages booktabs and
multirow; a dash marks a missing value, and a comment above the table says why it is missing.
"""

import html
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown
from pandas.api.types import is_numeric_dtype

from nucleoscope.atomic import write_atomically
from nucleoscope.names import escape_cell, escape_latex, escape_line, read_cell
from nucleoscope.stats.bootstrap import LEAST_PROMPTS, WIDTH
from nucleoscope.stats.correlation import format_power_of_ten
from nucleoscope.stats.curve_statistics import NO_RISE, REJECTED
from nucleoscope.stats.random_effects import RANDOM
from nucleoscope.stats.specification import NEGATIVE, POSITIVE, UNDECIDED, classify
from nucleoscope.store.results import ANALYSES, RUN_INFO, locate_folder, locate_measured, read_json, select
from nucleoscope.store.results import describe_gaps as describe_run_gaps
from nucleoscope.store.run_names import divide_model
from nucleoscope.store.run_settings import (
    NAMES,
    describe_head,
    describe_head_settings,
    format_values,
    list_heads,
    list_run_columns,
    list_settings,
    list_texts,
    list_varied,
    select_head,
    sort_head,
)
from nucleoscope.views.numbers import (
    FIELD,
    choose_digits,
    format_bounded,
    format_column,
    format_number,
    format_percent,
    format_range,
    format_top_p,
    show_signs,
)
from nucleoscope.views.token_text import escape_name, quote_code
from nucleoscope.wording import count, join_names, lower_first, name_part

KINDS = ("Pearson", "Spearman", "within-prompt Spearman", "partial Spearman", "within-k Spearman")
LONG, PIECE = 25, 16  # characters of a word that may break, and of its pieces
CURVE = "unimodal"  # the study's curve, the subject of the LaTeX table of the fits

WHY_EMPTY = {
    "within-prompt Spearman r": "no prompt has three tokens with more than one candidate that differ",
    "within-k Spearman r": "no two tokens with the same number of candidates differ in both quantities",
    "share of covariance": "the sign of the covariance is not clear in any run",
    "of free": "the free curve is not better than a constant",
    "held-out error": "no fit was possible without some of the prompts",
}  # why a column of a table may have no value in any row, unless the notes of the rows give another reason
VERDICTS = {
    NEGATIVE: "are *less* similar when the model is less sure",
    POSITIVE: "are *more* similar when the model is less sure",
    UNDECIDED: "are neither clearly more nor clearly less similar when the model is less sure",
}  # what the sign of a coefficient says of candidates; without an interval there is no verdict
NO_TOKENS = "There is no answer yet: no run has enough tokens with more than one candidate."
NO_INTERVAL = "There is no answer yet: no run has enough prompts for an interval of its coefficient."
NOTHING = ("No ", "There is no ")  # how our sentences begin that say what is missing
NOTHING_YET = "*There is nothing to show here yet.*"  # below a heading whose content was not measured


def write(text: str, path: Path) -> None:
    """Writes ``text`` to ``path``, atomically, and creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as stream:
        stream.write(text.encode())


def format_csv(frame: pd.DataFrame) -> str:
    """Every column, numbers with ten digits, or if they are of float32 or float16 with as many as tell these apart.

    p-values are text, in full magnitude. No text is a formula.
    """
    texts = frame.select_dtypes(exclude="number")
    safe = {
        name: texts[name].map(lambda value: escape_cell(value) if isinstance(value, str) else value) for name in texts
    }
    short = {name: _shorten(column.to_numpy()) for name, column in frame.select_dtypes("floating").items()}
    safe |= {name: _write_numbers(values) for name, values in short.items() if values.itemsize < 8}
    return frame.assign(**safe).to_csv(index=False, float_format="%.10g", lineterminator="\n")


def _shorten(values: np.ndarray) -> np.ndarray:
    """The numbers as float32 if all of them are: some quantities are float32 numbers in a column of float64.

    Whole numbers may be counts, of which float32 has no shorter form.
    """
    if values.itemsize < 8 or (values[np.isfinite(values)] % 1 == 0).all():
        return values
    short = values.astype(np.float32)
    return short if np.array_equal(short, values, equal_nan=True) else values


def _write_numbers(values: np.ndarray) -> list[str]:
    """The shortest decimals that are no other numbers of the same precision, 0.1 and not 0.1000000015; "" for NaN."""
    return ["" if text == "nan" else text.removesuffix(".0") for text in values.astype(str).tolist()]


def load_statistics(results_dir: str | os.PathLike) -> pd.DataFrame:
    """The table of the study as the analyses wrote it: `correlation.compute_statistics` of all runs.

    ValueError if the analyses have not been run.
    """
    path = locate_folder(results_dir) / ANALYSES / "correlation_stats.csv"
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist: run scripts/correlation_eval.py first")
    columns = list(pd.read_csv(path, nrows=0))
    text = {name: str for name in columns if name.endswith(" p") and "log10" not in name}
    names = [*NAMES, *list_texts(columns)]
    missing = {name: [""] for name in columns if name not in names}  # a model may be called NA, or 007
    types = {**text, **dict.fromkeys([*names, "interval", "note"], str)}
    frame = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
    frame = frame.fillna({"interval": "", "note": ""})
    return frame.assign(**{name: frame[name].map(read_cell) for name in names})


def load_table(results_dir: str | os.PathLike, file: str, text: Collection[str]) -> pd.DataFrame:
    """A table as an analysis wrote it with `format_csv`, such as specification.csv; ``text`` are columns of words.

    ValueError if the analyses have not been run.
    """
    path = locate_folder(results_dir) / ANALYSES / file
    if not path.is_file():
        raise ValueError(f"'{path}' does not exist: run scripts/correlation_eval.py first")
    columns = list(pd.read_csv(path, nrows=0))
    text = [*text, *list_texts(columns)]
    numbers = {name: [""] for name in columns if name not in text}  # a model may be called NA, or 007
    frame = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=numbers)
    return frame.assign(**{name: frame[name].map(read_cell) for name in text})


def format_correlation_tex(statistics: pd.DataFrame) -> str:
    """All coefficients of the study's pair: tokens with k > 1, Pearson, Spearman, p, within prompts, given k."""
    table = {
        "$k > 1$": statistics["tokens with k > 1"].map("{:,}".format),
        "Pearson": statistics["Pearson r"].map(_format_number),
        "$p$": statistics["Pearson log10 p"].map(_format_power),
        "Spearman": statistics["Spearman r"].map(_format_number),
        "$p$ ": statistics["Spearman log10 p"].map(_format_power),
        "within": statistics["within-prompt Spearman r"].map(_format_number),
        "given $k$": statistics["partial Spearman r"].map(_format_number),
    }
    head = (
        "% Entropy and cosine similarity over tokens with k > 1. The p-values treat tokens as independent,\n"
        "% as the published study does; the intervals of the short table do not. within: the mean of Spearman's\n"
        "% coefficients within prompts; given k: Spearman's partial coefficient.\n"
    )
    return head + _format_tabular(statistics, table)


def format_correlation_short_tex(statistics: pd.DataFrame) -> str:
    """Both coefficients with their 95% intervals."""
    table = {f"{kind} $r$": _format_bounded(statistics, f"{kind} r", kind) for kind in ("Pearson", "Spearman")}
    return _format_tabular(statistics, table)


def format_fits_tex(statistics: pd.DataFrame) -> str:
    """The study's curve for every run and pool: its parameters, then its quality compared with the other curves."""
    statistics = statistics[statistics["Bins"] == WIDTH]
    rows = statistics[statistics["Curve"] == CURVE].reset_index(drop=True)
    from nucleoscope.stats.curves import FORMULAS  # with scipy's optimisers, which only the analyses need

    names = list_run_columns(statistics)
    best = statistics[statistics["delta AICc"] == 0].groupby(names, sort=False, dropna=False)["Curve"].first()
    of = [tuple(row) for row in best.index.to_frame().astype(str).to_numpy()]
    best = dict(zip(of, best, strict=True))
    quality = {
        "peak": _format_bounded(rows, "peak", "peak"),
        "$R^2$": rows["R2 (medians)"].map(_format_number),
        r"$\Delta$AICc": rows["delta AICc"].map(lambda value: _format_number(value, 1)),
        "best": [best.get(tuple(row), "--") for row in rows[names].astype(str).to_numpy()],
        r"$R^2_\mathrm{tokens}$": rows["R2 (tokens)"].map(_format_number),
        "of spline": rows["of spline"].map(_format_number),
    }
    parameters = {
        f"${name}$": _format_bounded(rows, name, name, digits) for name, digits in (("a", 2), ("b", 2), ("c", 3))
    }
    head = f"% The curve is {FORMULAS[CURVE]}, with bins of {WIDTH};\n"
    head += "% of spline: its R2 over tokens divided by that of a spline.\n"
    return head + _format_tabular(rows, parameters) + "\n\\bigskip\n\n" + _format_tabular(rows, quality)


def _format_tabular(rows: pd.DataFrame, columns: dict) -> str:
    """A tabular with models grouped by multirow, names escaped, and the notes as comments."""
    settings = list_settings(rows)
    values = format_values(rows)
    differing = {escape_latex(name): values[name].map(escape_latex) for name in settings}
    frame = pd.DataFrame({name: list(values) for name, values in (differing | columns).items()})
    frame.index = pd.MultiIndex.from_frame(rows[NAMES])
    style = frame.style.format_index(escape_latex).hide(names=True)
    alignment = "ll" + "l" * len(settings) + "r" * len(columns)
    text = style.to_latex(hrules=True, clines="skip-last;data", multirow_align="t", column_format=alignment)
    text = text.replace(" &  & ", "Model & Data set & ", 1)
    rule = f"\\cline{{1-{len(alignment)}}}\n"
    text = text.replace(f"{rule}\\bottomrule", "\\bottomrule").replace(rule, "\\midrule\n")
    heads = rows[list_run_columns(rows)].to_dict("records")
    said = [f"{describe_head(head, ', ')}: {note}" for head, note in zip(heads, rows["note"], strict=True) if note]
    notes = [f"% {escape_line(line)}\n" for line in said]
    small = "{\\scriptsize\\setlength{\\tabcolsep}{1.5pt}%\n"  # fits the column of an article
    return "% needs \\usepackage{booktabs,multirow}\n" + "".join(notes) + small + text + "}\n"


def _format_bounded(rows: pd.DataFrame, value: str, bounds: str, digits: int = 2) -> list[str]:
    """Values with their intervals, as LaTeX; digits as in `numbers.format_bounded`."""
    cells = []
    for middle, low, high in zip(rows[value], rows[f"{bounds} low"], rows[f"{bounds} high"], strict=True):
        shown = show_signs(low, high, digits)
        interval = "" if pd.isna(low) else f" $[{_strip_markup(low, shown)}, {_strip_markup(high, shown)}]$"
        cells.append(_format_number(middle, shown) + interval)
    return cells


def _strip_markup(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}" if np.isfinite(value) else "\\infty"  # + 0.0: no -0.00


def _format_number(value: float, digits: int = 2) -> str:
    return "--" if pd.isna(value) else f"${_strip_markup(value, digits)}$"


def _format_power(log10: float) -> str:
    """The p with this log10, as LaTeX: a power of ten if it is small."""
    text = "--" if pd.isna(log10) else format_power_of_ten(log10, 1)
    mantissa, small, exponent = text.partition("e")
    return f"${mantissa}{{\\cdot}}10^{{{int(exponent)}}}$" if small else text if text == "--" else f"${text}$"


def show(frame: pd.DataFrame, as_written: Collection[str] = ()) -> HTML:
    """A table for a notebook, with its index as columns; in the book its headings sort it.

    Numbers are written as in sentences (`numbers.format_field`), but not those of the index and of the columns
    ``as_written``, which readers may copy. A line of a field ends only before an interval,
    between words or within a long one, so that a table becomes narrower where there is no room for it. A column
    ``note`` becomes a row of its own below each row that has a note. If the index has several columns, a hidden row
    before each row has them in words: on a phone, the book shows it instead, which leaves room for numbers.

    A column without a value in any row is not shown, and a sentence below the table says so, with the reason of
    `WHY_EMPTY`. A table without rows is `NOTHING_YET`.
    """
    if frame.empty:
        return HTML(f"<p><em>{html.escape(NOTHING_YET.strip('*'))}</em></p>")
    frame, empty = _drop_empty(frame)
    levels, flat = frame.index.nlevels, frame.reset_index()
    notes = flat.pop("note").fillna("") if "note" in flat else pd.Series("", index=flat.index)
    names = [describe_index(frame.index.names, values) if levels > 1 else "" for values in frame.index]
    columns = [flat.iloc[:, place] for place in range(flat.shape[1])]
    texts = [
        _list_names(column) if place < levels or column.name in as_written else format_column(column)
        for place, column in enumerate(columns)
    ]
    kinds = [' class="words"' if _has_words(column, text) else "" for column, text in zip(columns, texts, strict=True)]
    rows = []
    for name, fields, note in zip(names, zip(*texts, strict=True), notes, strict=True):
        cells = "".join(f"<td{kind}>{_write_field(field)}</td>" for kind, field in zip(kinds, fields, strict=True))
        rows += [f'<tr class="names" hidden>{_write_wide(name, len(columns))}</tr>'] if levels > 1 else []
        rows += [f"<tr>{cells}</tr>"]
        rows += [f'<tr class="note">{_write_wide(note, len(columns))}</tr>'] if note else []
    heads = (f"<th{kind}>{html.escape(str(name))}</th>" for kind, name in zip(kinds, flat.columns, strict=True))
    classes = f"dataframe sortable{f' names-{levels}' if levels > 1 else ''}"
    head = f'<thead>\n<tr style="text-align: right;">{"".join(heads)}</tr>\n</thead>'
    body = "".join(f"{row}\n" for row in rows)
    below = f"\n<p>{html.escape(_describe_empty(empty, notes))}</p>" if empty else ""
    return HTML(f'<table class="{classes}">\n{head}\n<tbody>\n{body}</tbody>\n</table>{below}')


def _drop_empty(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table without the columns that are empty from top to bottom, and their names; notes are no column."""
    empty = [name for name in frame if name != "note" and (frame[name].isna() | (frame[name] == "")).all()]
    return frame.drop(columns=empty), empty


def _describe_empty(names: Collection[str], notes: Iterable[str]) -> str:
    """Which columns are not shown, and why; a reason that the notes of rows give is not given again."""
    explained = any("given k" in note for note in notes)
    said = []
    for name in names:
        known = name in WHY_EMPTY and not (name.endswith("Spearman r") and (explained or "Spearman r" in names))
        said.append(f"{name} ({WHY_EMPTY[name]})" if known else name)
    return f"Not shown, because no row has a value: {join_names(said)}."


def _write_field(text: str) -> str:
    """A field as HTML. Its interval is an element, which the book puts below the number where there is little room."""
    value, space, interval = text.partition(" [") if FIELD.fullmatch(text) else (text, "", "")
    return f'{value} <span class="interval">[{interval}</span>' if space else break_words(text)


def _list_names(column: pd.Series) -> list[str]:
    return ["" if pd.isna(value) else str(value) for value in column]


def _has_words(column: pd.Series, texts: Sequence[str]) -> bool:
    """Whether a column is read from its left side, as words are, and not as numbers."""
    return not is_numeric_dtype(column) and any(text and not FIELD.fullmatch(text) for text in texts)


def show_settings(values: Mapping[str, object]) -> HTML:
    """A table of settings for a notebook: a row for each, those of a nested one after its name ("model sha256")."""
    flat = pd.json_normalize(dict(values), sep=" ").iloc[0]
    table = pd.DataFrame({"setting": flat.index, "value": [_list_values(value) for value in flat]})
    return show(table.set_index("setting"), as_written=("value",))


def _list_values(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def break_words(text: str) -> str:
    """A text as HTML in which long words, such as a hash, may break."""
    parts = re.split(rf"([^\s-]{{{LONG},}})", text)
    pieces = [re.findall(f".{{1,{PIECE}}}", part) if place % 2 else [part] for place, part in enumerate(parts)]
    return "".join("<wbr>".join(map(html.escape, piece)) for piece in pieces)


def _write_wide(text: str, columns: int) -> str:
    """A field as wide as the table, for words about a row."""
    return f'<td colspan="{columns}"><div>{html.escape(text)}</div></td>'


def describe_index(names: Sequence[str], values: Sequence[object]) -> str:
    """The index of a row in words: "SmolLM2-135M-Instruct, math, top_p 0.95"; without what is missing."""
    known = [(name, value) for name, value in zip(names, values, strict=True) if value != "" and not pd.isna(value)]
    return ", ".join(f"{name} {value}" if list_settings([name]) else str(value) for name, value in known)


def format_readable(statistics: pd.DataFrame, of: str = "") -> pd.DataFrame:
    """The coefficients of one pair for readers: value [interval], all runs; ``of`` as in the columns' names.

    Of the study's pair, the tokens, their share and their design effect are there too.
    """
    prefix = f"{of}: " if of else ""
    columns = _format_head(statistics)
    columns |= {f"{kind} r": _format_spans(statistics, f"{prefix}{kind}", 2, f"{prefix}{kind} r") for kind in KINDS}
    if not of:
        columns["tokens with k > 1"] = statistics["tokens with k > 1"]
        columns["share with k > 1"] = statistics["share with k > 1"].map(format_percent)
        columns["design effect"] = _format_design_effects(statistics)
        columns["prompts"] = statistics["prompts"]
    return _add_notes(columns, statistics["note"])


def _format_design_effects(statistics: pd.DataFrame) -> list[str]:
    """Design effects as texts, with a decimal if there are enough prompts (`bootstrap.LEAST_PROMPTS`) for one.

    Small ones have their first digit that is not 0, because readers divide by them.
    """
    shown = []
    for value, prompts in zip(statistics["design effect"], statistics["prompts"], strict=True):
        number = f"{value:.1g}" if value < 0.95 else format_number(value, int(prompts >= LEAST_PROMPTS))
        shown.append("" if pd.isna(value) else number)
    return shown


def format_models(combined: pd.DataFrame) -> pd.DataFrame:
    """Coefficients over models for readers, by data set: value [interval] of `random_effects.combine_coefficients`."""
    columns = {name: format_values(combined)[name] for name in ("Dataset", *list_settings(combined), "models")}
    if len(combined):
        columns |= {f"{kind} r": _format_spans(combined, kind, 2, f"{kind} r") for kind in KINDS}
    return pd.DataFrame(columns).set_index("Dataset")


def describe_place(what: str, folder: Path) -> str:
    """A sentence, in Markdown, that says in which folder files are: ``what`` is its beginning, such as "It is"."""
    return f"{what} in {quote_code(str(folder))}."


def describe_missing_means(statistics: pd.DataFrame) -> str:
    """Why there is no mean over models: a sentence for the place of their table."""
    models = statistics["Model"].nunique()
    several = "no data set has coefficients of two models with the same settings"
    why = several if models > 1 else "only one model was measured"
    return f"There is no such mean yet, because {why}." if models else "There is no such mean yet."


def split_by_settings(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of a table of statistics that may be counted together, each with the words for their settings.

    There are several, such as those "with top_p 0.95", if settings vary for one model on one data set
    (`run_settings.list_varied`); else the words are "".
    """
    if table.empty or not {"Model", "Dataset"} <= set(table):
        return [("", table)]
    heads = list_heads(table)
    varied = list_varied([head for head in heads if not head["Model"].startswith("(")])
    parts: dict[str, list[pd.DataFrame]] = {}
    for head in sorted(heads, key=lambda head: sort_head(head, varied)):
        parts.setdefault(describe_head_settings(head, varied), []).append(select_head(table, head))
    return [
        (f"with {escape_name(said)}" if len(parts) > 1 and said else "", pd.concat(rows))
        for said, rows in parts.items()
    ]


def join_sentences(describe: Callable[[pd.DataFrame], str], table: pd.DataFrame, counted: bool = False) -> str:
    """What ``describe`` says of the rows that may be counted together: one sentence, or a list of them.

    ``counted``: see `merge_sentences`.
    """
    said = merge_sentences([(where, describe(rows)) for where, rows in split_by_settings(table)], counted)
    return said[0] if len(said) == 1 else "\n".join(f"* {sentence}" for sentence in said)


def merge_sentences(said: Iterable[tuple[str, str]], counted: bool = False) -> list[str]:
    """Sentences, each with where it is true, such as "with top_p 0.95", as a reader needs them.

    What is the same everywhere is said once without these words. If it is ``counted``, that is, has numbers that are
    true of each case and not of all together, it is said once with them: "With top_p 0.9 as well as with top_p 0.95:
    there are 4 fits". What is the same in several cases is said once for all of them: "With top_p 0.9 and with top_p
    0.95: no run ...". A sentence whose words are "" begins as it is, and one that says that there is nothing counts
    nothing: it begins with one of `NOTHING`.
    """
    places: dict[tuple[str, bool], list[str]] = {}
    for where, sentence in said:
        places.setdefault((sentence, bool(where)), []).append(where)
    if len(places) == 1:
        ((sentence, _), where) = next(iter(places.items()))
        each = counted and len(where) > 1 and not sentence.startswith(NOTHING)
        return [begin_sentence(" as well as ".join(where) if each else "", sentence)]
    return [begin_sentence(join_names(where) if named else "", text) for (text, named), where in places.items()]


def begin_sentence(where: str, sentence: str) -> str:
    """A sentence after words that say where it is true, such as "with top_p 0.95"; as it is after ""."""
    return f"{where[:1].upper()}{where[1:]}: {lower_first(sentence)}" if where else sentence


def describe_answer(statistics: pd.DataFrame, top_p: float = np.nan) -> str:
    """In how many runs candidates are less similar when the model is less sure, and one number with its interval.

    A list if settings vary for one model on one data set. For a front page without variants, of which
    `made_of_text.describe_answer` says more. ``top_p`` is that of all runs, if they have one (NaN: they do not).
    """
    return join_sentences(lambda rows: _describe_answer(rows, top_p), statistics, counted=True)


def _describe_answer(statistics: pd.DataFrame, top_p: float) -> str:
    known = statistics.dropna(subset=["Spearman r"])
    if known.empty:
        return NO_TOKENS
    signs = _classify(known, "Spearman")
    if (signs == "").all():
        return NO_INTERVAL
    known, signs = known[signs != ""], signs[signs != ""]
    found = [(verdict, int((signs == sign).sum())) for sign, verdict in VERDICTS.items()]
    largest = known.loc[known["tokens with k > 1"].idxmax()]
    value = format_bounded(*(largest[f"Spearman {part}"] for part in ("r", "low", "high")))
    run = escape_name(f"{largest['Model']} on {largest['Dataset']}")
    top_p = largest.get("top_p", top_p)
    share = f"candidates are the likeliest tokens that make up {format_top_p(top_p)} of the probability; "
    source = f"{count(int(largest['prompts']), 'prompt')}; {'' if np.isnan(top_p) else share}"
    source += "its 95% confidence interval is in brackets"
    if len(known) == 1:
        verdict = next(verdict for verdict, number in found if number)
        return f"**In this run, candidates {verdict}: Spearman's coefficient is {value}** ({run}, {source})."
    parts = [f"in {name_part(number, len(known), 'run')}, candidates {verdict}" for verdict, number in found if number]
    said = "; ".join(parts)
    return (
        f"**{said[0].upper()}{said[1:]}.** In the run with the most tokens, {run}, Spearman's coefficient is {value} "
        f"({source})."
    )


def describe_coefficients(statistics: pd.DataFrame) -> str:
    """Sentences on Spearman's coefficients of all runs that have both, plain and among tokens of equal k.

    A list if settings vary for one model on one data set.
    """
    return join_sentences(_describe_coefficients, statistics, counted=True)


def _describe_coefficients(statistics: pd.DataFrame) -> str:
    known = statistics.dropna(subset=["Spearman r"])
    both = known.dropna(subset=["within-k Spearman r"])
    if known.empty:
        return "No run has enough tokens with more than one candidate for a coefficient."
    if both.empty:
        return (
            f"Spearman's correlation between entropy and cosine similarity is {format_range(known['Spearman r'])}. "
            "There is no coefficient among tokens with the same number of candidates: "
            f"{WHY_EMPTY['within-k Spearman r']}."
        )
    plain, given = both["Spearman r"], both["within-k Spearman r"]
    text = (
        f"Spearman's correlation between entropy and cosine similarity is {format_range(plain)}; "
        f"among tokens with the same number of candidates it is {format_range(given)}. "
        "Where these clearly differ, the number of candidates accounts for part of the relationship, or, if the signs "
        "differ, hides one in the opposite direction."
    )
    turned, signs = plain * given < 0, [_classify(both, kind) for kind in ("Spearman", "within-k Spearman")]
    clear = turned & (signs[0] != signs[1]) & signs[0].isin([NEGATIVE, POSITIVE]) & signs[1].isin([NEGATIVE, POSITIVE])
    if clear.all() and given.min() * given.max() > 0:
        more = "more" if given.iloc[0] > 0 else "less"
        text += (
            f" Here the signs clearly differ in {name_part(len(both), len(both), 'run')}: among tokens with the same "
            f"number of candidates, higher entropy goes with *{more}* similar candidates."
        )
        return text
    if clear.any():
        text += f" In {name_part(clear.sum(), len(both), 'run')} the signs clearly differ."
    if unclear := (turned & ~clear).sum():
        runs = name_part(unclear, len(both), "run")
        which = "Their signs differ" if len(both) == 1 else f"In {runs} their signs differ"
        text += f" {which}, but not clearly: a 95% interval contains 0 or is unknown."
    return text


def _classify(statistics: pd.DataFrame, kind: str) -> pd.Series:
    """What the interval of each coefficient says of its sign."""
    bounds = zip(statistics[f"{kind} low"], statistics[f"{kind} high"], strict=True)
    return pd.Series([classify(low, high) for low, high in bounds], index=statistics.index, dtype=object)


def describe_gaps(results_dir: str | os.PathLike, tables: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """A list, in Markdown, of what runs lack and what to try (`results.describe_gaps`); "" if no run lacks anything.

    Tokens with one candidate are mentioned where they are more than half. What is equal for several settings of one
    model on one data set is said once.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for (model, dataset), table in select(tables, columns={"prompt", "k"}).items():
        info = _read_info(locate_measured(results_dir, model, dataset) / RUN_INFO)
        if found := describe_run_gaps(info, table, least_alone=0.5):
            name, settings = divide_model(model)
            lines.setdefault((name, dataset, ". ".join(map(_capitalise, found))), []).append(settings)
    return "\n".join(
        f"* **{escape_name(', '.join(filter(None, (f'{model} on {dataset}', '; '.join(settings)))))}**: {text}."
        for (model, dataset, text), settings in lines.items()
    )


def _read_info(path: Path) -> dict[str, Any]:
    """What a run.json says; nothing if it is missing or damaged: the tokens are analysed all the same."""
    try:
        return read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        print(f"warning: {escape_line(str(error))}; until then, the run is analysed without it", file=sys.stderr)
        return {}


def _capitalise(line: str) -> str:
    return line[:1].upper() + line[1:]


def describe_varied(statistics: pd.DataFrame) -> str:
    """Sentences on settings that vary for one model on one data set, and what is not counted together; "" if none."""
    varied = list_varied(list_heads(statistics))
    if not varied:
        return ""
    names = join_names(f"`{name}`" for name in varied)
    return (
        f"Runs of one model on one data set differ in {names}. They share the model and the prompts, so they are not "
        "independent: all pools and means are over runs with the same values."
    )


def describe_comparison(common: int, published: int, measured: int) -> str:
    """A sentence on how many of the ``published`` runs are among the ``measured`` ones, and how to compare them."""
    if not common:
        return f"None of the {published} published runs was measured here, so there is nothing to compare."
    which, them = ("is", "a diamond marks it") if common == 1 else ("are", "diamonds mark them")
    said = f"{common} of the {published} published runs {which} among the {measured} measured here"
    if measured == 1:
        said = f"The run measured here is one of the {published} published runs"
    return (
        f"{said}; {them} in the "
        "figure below. The published coefficients have no intervals, and they vary with the choice of prompts as ours "
        "do: a gap of up to two interval widths is no evidence of a difference."
    )


def format_parameters(fits: pd.DataFrame, curve: str, digits: dict[str, int]) -> pd.DataFrame:
    """Parameters of one curve for readers, each to its number of digits: value [interval], all runs, pools and bins.

    Those that have none are left to `describe_missing_parameters`. A parameter that no row has is not a column.
    """
    rows = fits[(fits["Curve"] == curve) & fits[list(digits)].notna().any(axis=1)]
    columns = _format_head(rows) | {"Bins": rows["Bins"]}
    columns |= {name: _format_spans(rows, name, number) for name, number in digits.items() if rows[name].notna().any()}
    if rows["before peak"].notna().any():
        columns["before peak"] = rows["before peak"].map(format_percent)
    return _add_notes(columns, rows["note"])


def describe_missing_parameters(fits: pd.DataFrame, curve: str, names: Collection[str]) -> str:
    """A list, in Markdown, of the runs and pools for which a curve has none of these parameters, by the reason.

    The kind of bins is named where the reason does not apply to the others. "" if nothing is missing.
    """
    every = fits[fits["Curve"] == curve]
    rows = every[every[list(names)].isna().all(axis=1)]
    reasons = [_find_reason(note, "rise" in names) for note in rows["note"]]
    none = f"No fit of this curve has values of {join_names(names)}, for these reasons:"
    return _list_by_reason(rows, reasons, every, none)


def describe_fits(fits: pd.DataFrame) -> str:
    """What was done with the curves: one sentence, which says so if none could be fitted."""
    if fits["R2 (medians)"].isna().all():
        return (
            "No curve could be fitted to any run or pool; the reasons are above. Where there are too few tokens, "
            "longer or more texts help: raise `n_prompts` or `max_tokens`."
        )
    return (
        "We fitted these curves to the medians of every run and pool with enough bins, with intervals from resampled "
        "prompts, compared them by AICc and on held-out prompts, and computed how much of the variance of single "
        "tokens they explain."
    )


def _find_reason(note: str, of_rise: bool) -> str:
    """What a note says of a missing rise, if it is asked for; else the whole note."""
    said = [part for part in note.split("; ") if part.startswith(NO_RISE)]
    return said[0] if of_rise and said else note


def _list_by_reason(rows: pd.DataFrame, reasons: Sequence[str], every: pd.DataFrame, none: str) -> str:
    """Runs, pools and kinds of bins that are not in a table of ``every`` one, by the reason; "" without ``rows``.

    ``none`` introduces the list if the table has no rows.
    """
    lines = []
    for reason, those in rows.groupby(pd.Series(reasons, rows.index, dtype=object), sort=False):
        found = []
        for head in list_heads(those):
            bins = list(dict.fromkeys(select_head(those, head)["Bins"]))
            named = "" if set(bins) == set(select_head(every, head)["Bins"]) else f" ({' and '.join(bins)})"
            found.append(escape_name(describe_head(head, ", ")) + named)
        lines.append(f"* {reason}: {'; '.join(found)}")
    begin = "Not in this table, and why:" if len(rows) < len(every) else none
    return "\n".join([f"{begin}\n", *lines]) if lines else ""


def describe_missing_numbers(fits: pd.DataFrame, number: str, but: str = "") -> str:
    """A list, in Markdown, of the runs and pools of which `compare_curves` has no row for a number, by the reason.

    Those that have not even the number ``but``, which was compared before, are not named again.
    """
    heads = [*list_run_columns(fits), "Bins"]
    rows = fits[fits["Model"] != RANDOM]
    groups = rows.groupby(heads, sort=False, dropna=False)
    missing = groups[number].transform("count") == 0
    if but:
        missing &= groups[but].transform("count") > 0
    first = ~rows.duplicated(heads)
    rows, every = rows[missing & first], rows[first]
    reasons = [note or f"{number} is not defined" for note in rows["note"]]
    return _list_by_reason(rows, reasons, every, "There is nothing to compare, for these reasons:")


def show_section(table: pd.DataFrame, before: str = "", after: str = "", missing: str = "") -> list[Markdown | HTML]:
    """A table with the prose that introduces it, what is missing in it, and how to read it; all but the table in
    Markdown. Without rows, only what is missing.
    """
    if table.empty:
        return [Markdown(missing)] if missing else []
    parts = [Markdown(before), show(table), Markdown(missing), Markdown(after)]
    return [part for part in parts if part.data]


def format_counts(tests: pd.DataFrame) -> pd.DataFrame:
    """How many specifications have which sign, for readers: a row per run and null model, as in ``tests``.

    ``tests`` is `specification`'s second table.
    """
    names = ("specifications", NEGATIVE, UNDECIDED, POSITIVE)
    columns = _format_head(tests) | {name: tests[name] for name in names}
    columns |= {"null": tests["null"], "median": tests["median"].round(2)}
    columns |= {"its median": tests["reference"].round(2)}
    columns |= {"difference": _format_spans(tests, "difference", 3), "p": tests["median p"].round(2)}
    return pd.DataFrame(columns).set_index([*list_run_columns(columns), "null"])


def compare_curves(fits: pd.DataFrame, number: str, digits: int, most: float = np.inf) -> pd.DataFrame:
    """One number of every curve, curves side by side; no rows for means over models, which have none, and none for
    the runs and pools that `describe_missing_numbers` lists.

    Of numbers above ``most`` it says only that they are.
    """
    rows = format_values(fits[fits["Model"] != RANDOM])
    rows = rows.set_index([*list_run_columns(rows), "Bins"])
    found = {curve: rows[rows["Curve"] == curve][number].round(digits) for curve in rows["Curve"].unique()}
    for curve, values in found.items():
        if (values > most).any():
            shown = ["" if np.isnan(value) else f"{value:.{digits}f}" for value in values]
            found[curve] = pd.Series(shown, values.index).mask(values > most, f"> {most:g}")
    table = pd.DataFrame(found)
    return table[~(table.isna() | (table == "")).all(axis=1)]


def choose_error_digits(fits: pd.DataFrame) -> int:
    """Decimals of held-out errors that may mean something with the fewest prompts of any run."""
    fewest = fits["prompts"].min()
    return 4 if fewest >= 100 else 3 if fewest >= LEAST_PROMPTS else 2


def describe_rise(fits: pd.DataFrame) -> str:
    """A sentence on the runs in which cosine rises before it falls, pools and means over models left out.

    A list if settings vary for one model on one data set.
    """
    return join_sentences(_describe_rise, fits, counted=True)


def _describe_rise(fits: pd.DataFrame) -> str:
    runs = fits[(fits["Curve"] == "free") & ~fits["Model"].str.startswith("(") & ~fits["Dataset"].str.startswith("(")]
    known = runs[runs["rise"].notna()]
    if known.empty:
        return "No run has enough tokens and prompts to measure a rise."
    rises, falls = known["rise low"] > 0, known["rise high"] < 0
    begin = f"There {'is' if len(runs) == 1 else 'are'} {count(len(runs), 'fit')}, one for each run and kind of bins"
    if len(known) < len(runs):
        begin += f"; a rise can be measured in {len(known)} of them"
    text = f"{begin}. Cosine similarity clearly rises before it falls in {name_part(rises.sum(), len(known), 'fit')}"
    rejected = (rises & known["note"].str.startswith(REJECTED)).sum()
    if rejected:
        where = "there" if rejected == rises.sum() else f"in {rejected} of these"
        text += f", but {where} the free curve as a whole is not better than a constant"
    return f"{text}; in {falls.sum()} it is clearly lower at the supposed peak." if falls.any() else f"{text}."


def format_explained(fits: pd.DataFrame) -> pd.DataFrame:
    """alpha, beta, R2 and RMSE over tokens of the curves that were not refused, with bins of equal width."""
    rows = fits[fits["beta"].notna() & (fits["Bins"] == WIDTH)]
    columns = _format_head(rows) | {"Curve": rows["Curve"]}
    columns |= {name: _format_spans(rows, name, 3) for name in ("alpha", "beta")}
    columns |= {name: rows[f"{name} (tokens)"].round(3) for name in ("R2", "RMSE")}
    columns |= {name: rows[name].round(2) for name in ("of free", "of spline")}
    return pd.DataFrame(columns).set_index([*list_run_columns(columns), "Curve"])


def describe_unexplained(fits: pd.DataFrame) -> str:
    """Why `format_explained` has no rows."""
    fitted = fits.loc[fits["Bins"] == WIDTH, "R2 (medians)"].notna().any()
    why = "is better than a constant" if fitted else "could be fitted"
    return f"No curve with bins of equal width {why}, so none says anything about single tokens."


def _add_notes(columns: dict, notes: pd.Series) -> pd.DataFrame:
    """Rows by run and bins; a column of notes only if there are any."""
    names = [name for name in columns if name in (*list_run_columns(columns), "Bins")]
    return pd.DataFrame({**columns, **({"note": notes} if notes.any() else {})}).set_index(names)


def _format_head(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns that say which runs the rows are about, for readers."""
    return dict(format_values(rows)[list_run_columns(rows)].items())


def format_covariance(pairs: pd.DataFrame, least: float = 0.02) -> pd.DataFrame:
    """The covariance by pairs of classes for readers, of classes with at least this share of a run's tokens."""
    rows = format_values(pairs[pairs["share of tokens"] >= least].round(2))
    shares = rows.columns[rows.columns.str.startswith("share")]
    return rows.assign(**{name: rows[name].map(format_percent) for name in shares}).set_index(list_run_columns(rows))


def format_comparison(both: pd.DataFrame) -> pd.DataFrame:
    """Coefficients for readers beside the published ones, of `correlation.compute_statistics` merged with these."""
    columns = [f"{kind} r{of}" for kind in ("Pearson", "Spearman") for of in ("", " published")]
    return format_values(both)[[*list_run_columns(both), *columns]].round(2).set_index("Model")


def _format_spans(rows: pd.DataFrame, name: str, digits: int, value: str = "") -> list[str]:
    """'value [low, high]' of a column, empty if it is missing, with ``digits`` decimals or fewer; without an interval,
    the value alone.

    An interval's width has two digits that mean something; more decimals than that would only look exact.
    """
    found = zip(rows[value or name], rows[f"{name} low"], rows[f"{name} high"], strict=True)
    return [
        "" if pd.isna(x) else format_bounded(x, low, high, choose_digits(low, high, digits)) for x, low, high in found
    ]
