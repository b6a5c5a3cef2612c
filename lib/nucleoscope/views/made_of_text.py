"""The sentences of the page "What it is made of" and of the front page: each says what the tables show.

Contract: only `load` reads files. Tables are those of `specification`, `null_models` and `explained`, or as their csv
files are read; nothing is computed but counts, extremes and comparisons. A sign is called positive or negative only if
the 95% interval does not contain 0.
"""

import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.stats.explained import NOTICEABLE
from nucleoscope.stats.null_models import GAUSSIAN, NULLS, OBSERVED, SAME_K
from nucleoscope.stats.specification import ALL, CHOICES, NEGATIVE, POSITIVE, UNDECIDED, classify
from nucleoscope.store.run_names import describe_run
from nucleoscope.store.run_settings import (
    Head,
    describe_head,
    describe_head_settings,
    list_heads,
    list_varied,
    select_head,
    sort_head,
)
from nucleoscope.variants import CANDIDATE_SETS
from nucleoscope.views.made_of_figures import USUAL, choose_nucleus, is_pooled, list_groups
from nucleoscope.views.numbers import format_bounded, format_number, format_percent, format_range, format_top_p
from nucleoscope.views.tables import (
    NO_INTERVAL,
    NO_TOKENS,
    VERDICTS,
    begin_sentence,
    describe_varied,
    load_table,
    merge_sentences,
    split_by_settings,
)
from nucleoscope.views.token_text import escape_name
from nucleoscope.wording import count, join_names, name_part

MEASURE = (
    "to measure them, add the line `variants: default` to a grid's `parameters`, or repeat a run's command with "
    "`--variants=default --overwrite`"
)
EXPLAINED = (
    "The coefficient depends on which tokens count as candidates (`top_p`) and on how embeddings are compared: as they "
    "are (`raw`), or after removing their mean and the three directions in which they vary most (`all_but_top_3`). The "
    "bands show what the number of candidates alone would give: the coefficient if each token's candidates were "
    "exchanged for those of another token with the same number of candidates. The intervals in the figure and in the "
    "text come from leaving out groups of prompts; those in the table at the end of this page can differ slightly."
)  # below the front page's figure
NOTHING = f"No run has variants of its candidate sets: {MEASURE}."
NAMED = 3  # a sentence names that many models and as many data sets; more are counted
SIGNS = (NEGATIVE, POSITIVE, UNDECIDED)
WORDS = {
    SAME_K: "sets exchanged among tokens of equal k",
    "other_step": "the likeliest tokens of another step",
    "random": "random tokens",
    "frequency_matched": "tokens of the same frequency",
    "norm_matched": "tokens of the same norm",
    GAUSSIAN: "hidden states without a text",
}


def describe_left_out(found: Collection, missing: Mapping[tuple[str, str], str]) -> str:
    """Which runs have no variants and how to get them; which are analysed is said first.

    ``missing`` are the others, as `candidate_tables.find_measured` returns them.
    """
    without = [key for key, reason in missing.items() if not reason]
    text = f"{count(len(found), 'run')} {'has' if len(found) == 1 else 'have'} variants of the candidate sets."
    if not found:
        text = NOTHING if without or not missing else "No run has variants of its candidate sets that can be read."
    elif without:
        names = ", ".join(escape_name(describe_run(*key)) for key in without)
        why = "it has none" if len(without) == 1 else "they have none"
        text += f" Left out, because {why}: {names}; {MEASURE}."
    unreadable = [(key, reason) for key, reason in missing.items() if reason]
    for key, reason in unreadable:
        text += f" Left out: {escape_name(describe_run(*key))} ({escape_name(reason)})."
    return text


def describe_not_shown(missing: Mapping[tuple[str, str], str]) -> str:
    """Which runs a figure of variants leaves out, because they have none; "" if it shows all.

    ``missing`` are the runs without, as `candidate_tables.find_measured` returns them. Those whose file is damaged are
    named by `describe_left_out`.
    """
    names = [escape_name(describe_run(*key)) for key, reason in missing.items() if not reason]
    if not names:
        return ""
    they, include = ("it has", "includes it") if len(names) == 1 else ("they have", "includes them")
    return (
        f"Not in the figure, because {they} no variants of the candidate sets: {join_names(names)}. "
        f"The section *Run by run* {include}."
    )


class Lead(NamedTuple):
    """What sentences are about: the rows of a mean over runs or of the only run, and how a sentence about them begins.

    ``where`` says which of several it is, such as "with top_p 0.95"; "" if there is only one. ``source`` says in
    brackets what a number is from, beside ``where``. ``head`` is that of the rows.
    """

    rows: pd.DataFrame
    of: str
    where: str
    source: str
    head: Head


def list_leads(table: pd.DataFrame) -> list[Lead]:
    """The mean over runs, or the only run; for each value of settings that vary for one model on one data set.

    Of a table without rows, one without rows.
    """
    if table.empty:
        return [Lead(table, "", "", "", {})]
    groups = list_groups(table)
    varied = list_varied([head for head in groups if not is_pooled(head)])
    leads: dict[str, Head] = {}
    for head in groups:  # means come first
        leads.setdefault(describe_head_settings(head, varied), head)
    found = []
    for values, head in sorted(leads.items(), key=lambda lead: sort_head(lead[1], varied)):
        rows = select_head(table, head)
        of, source = escape_name(describe_head(head)), escape_name(f"{head['Model']} on {head['Dataset']}")
        if is_pooled(head):
            runs = count(int(rows["runs"].max()), "run") + (f" with {escape_name(values)}" if values else "")
            of, source = f"Over {runs}", f"mean over {count(int(rows['runs'].max()), 'run')}"
            pooled = [each for each in groups if not is_pooled(each)]
            pooled = [each for each in pooled if describe_head_settings(each, varied) == values]
            source += _name_pooled(pooled, int(rows["runs"].max()))
        found.append(Lead(rows, of, f"with {escape_name(values)}" if len(leads) > 1 else "", source, head))
    return found


def _name_pooled(heads: list[Head], runs: int) -> str:
    """The models and data sets that a mean is over, after a colon: by name if they are few, else how many."""
    models, datasets = (list(dict.fromkeys(head[name] for head in heads)) for name in ("Model", "Dataset"))
    if len(heads) != runs:  # a run without this coefficient is not in the mean
        return ""
    if len(models) * len(datasets) == runs and max(len(models), len(datasets)) <= NAMED:
        models, datasets = (join_names(map(escape_name, names)) for names in (models, datasets))
        return f": {models} on {datasets}"
    return f": {count(len(models), 'model')} on {count(len(datasets), 'data set')}"


def _join(describe: Callable[[Lead], str], table: pd.DataFrame, between: str = "\n\n", counted: bool = True) -> str:
    """What is said of each lead of a table, and what is the same for several of them once (`merge_sentences`)."""
    return between.join(_say_of_each(describe, table, counted))


def _say_of_each(describe: Callable[[Lead], str], table: pd.DataFrame, counted: bool) -> list[str]:
    said = []
    for lead in list_leads(table):
        text, bare = describe(lead), describe(lead._replace(where=""))
        said.append(("" if text == bare else lead.where, bare))  # what says itself where it is true begins as it is
    return merge_sentences(said, counted)


def _begin(lead: Lead, text: str) -> str:
    """A text that does not say what it is about, after words that do if there are several."""
    return begin_sentence(lead.where, text)


def explain_varied(table: pd.DataFrame) -> str:
    """A sentence on settings that vary for one model on one data set, and what is not counted together; "" if none."""
    text = describe_varied(table)
    if "top_p" in list_varied(list_heads(table)):
        text += (
            " The `top_p` of a run is that of the nucleus from which its tokens were drawn; the candidate sets below, "
        )
        text += "such as `top_p_0.9`, were measured in every run."
    return text


def describe_over_top_p(specifications: pd.DataFrame, statistic: str = "Spearman") -> str:
    """Sentences on the sign of the coefficient over top_p, one for each geometry."""
    return _join(lambda lead: _describe_over_top_p(lead, statistic), specifications)


def _describe_over_top_p(lead: Lead, statistic: str) -> str:
    names = {each.name: each.value for each in CANDIDATE_SETS if each.rule == "top_p"}
    rows, of = lead.rows, lead.of
    rows = rows[rows["candidates"].isin(list(names)) & (rows["statistic"] == statistic) & rows["r"].notna()]
    if rows.empty:
        return _begin(lead, "No coefficient could be computed for any top_p.")
    rows = rows.assign(top_p=rows["candidates"].map(names)).sort_values("top_p")
    texts, changing = [], []
    for geometry, part in rows.groupby("geometry", sort=False):
        signs = set(part["sign"])
        if {NEGATIVE, POSITIVE} <= signs:
            changing.append(str(geometry))
        texts.append(f"* `{geometry}`: {_describe_signs(part)}")
    if changing:
        head = f"depends on top_p in {join_names(f'`{name}`' for name in changing)}"
    elif len(decided := {sign for sign in rows["sign"] if sign in (NEGATIVE, POSITIVE)}) > 1:
        head = "depends on the geometry, but within each geometry not on top_p"
    elif decided:
        only = rows["sign"].isin(list(decided)).all()
        head = f"is {decided.pop()} {'for every top_p in every geometry' if only else 'wherever it is clear'}"
    else:
        head = "is not clear for any top_p in any geometry"
    about = of if is_pooled(lead.head) else f"For {of}"
    begin = f"{about}, the sign of {statistic}'s correlation between entropy and cosine similarity"
    return f"{begin} {head}.\n\n" + "\n".join(texts)


def explain_figure(specifications: pd.DataFrame, geometries: Collection[str]) -> str:
    """What the front page's figure shows, for readers, and whether the sign of each of its lines changes."""
    lines = _join(lambda lead: _begin(lead, _describe_lines(lead, geometries)), specifications, " ", counted=False)
    return f"{EXPLAINED} {lines}"


def _describe_lines(lead: Lead, geometries: Collection[str]) -> str:
    rows = lead.rows
    names = {each.name: each.value for each in CANDIDATE_SETS if each.rule == "top_p"}
    rows = rows[rows["candidates"].isin(list(names)) & (rows["statistic"] == "Spearman") & rows["r"].notna()]
    rows = rows[rows["geometry"].isin(list(geometries))]
    verdicts: dict[tuple[str, str], list[str]] = {}  # geometries by what is said of them, a verb and a predicate
    for geometry in geometries:
        signs = list(rows.loc[rows["geometry"] == geometry, "sign"])
        clear = {sign for sign in signs if sign in (NEGATIVE, POSITIVE)}
        if not signs:
            continue
        if len(clear) > 1:
            verdict = ("changes", "sign along the curve")
        elif clear:
            always = "at every point" if set(signs) == clear else "wherever its sign is clear"
            verdict = ("is", f"{clear.pop()} {always}")
        else:
            verdict = ("has", "no clear sign at any point")
        verdicts.setdefault(verdict, []).append(f"`{geometry}`")
    if not verdicts:
        return "No coefficient could be computed for any point of the figure."
    plural = {"changes": "change", "is": "are", "has": "have"}
    said = [
        f"the coefficient for {found[0]} {verb} {predicate}"
        if len(found) == 1
        else f"the coefficients for {join_names(found)} {plural[verb]} {predicate.replace('its sign', 'their sign')}"
        for (verb, predicate), found in verdicts.items()
    ]
    # a menu above the figure selects a mean over runs or one of them
    where, rest = (
        ("In the mean over the runs", "; single runs can differ") if is_pooled(lead.head) else ("In the figure", "")
    )
    bare = _describe_bare_points(rows.assign(top_p=rows["candidates"].map(names)))
    return f"{where}, {join_names(said)}{rest}.{bare}"


def _describe_bare_points(rows: pd.DataFrame) -> str:
    """A sentence, after a space, on where points of a figure have no interval or no band; "" if all have both."""
    lacking: dict[str, list[float]] = {}
    for top_p, part in rows.groupby("top_p"):
        missing = {"an interval": part["low"].isna().any(), "a band": part[f"{SAME_K} low"].isna().any()}
        if what := " or ".join(name for name, is_missing in missing.items() if is_missing):
            lacking.setdefault(what, []).append(top_p)
    parts = [f"for {what} at top_p {join_names(f'{value:g}' for value in values)}" for what, values in lacking.items()]
    return f" There are too few tokens or prompts {join_names(parts)}." if parts else ""


def _describe_signs(part: pd.DataFrame) -> str:
    """ "negative at top_p 0.5 and 0.7, undecided at 0.9; from -0.30 [..] at 0.5 to 0.20 [..] at 0.99"."""
    kinds = []
    for sign in (NEGATIVE, UNDECIDED, POSITIVE, ""):
        said = sign or "without an interval"
        values = part.loc[part["sign"] == sign, "top_p"]
        if len(values) == len(part) > 1:
            kinds = [f"{said} throughout"]
        elif len(values):
            kinds.append(f"{said} at {join_names(f'{value:g}' for value in values)}")
    first, last = part.iloc[0], part.iloc[-1]
    ends = [f"{format_bounded(row['r'], row['low'], row['high'])} at {row['top_p']:g}" for row in (first, last)]
    return ", ".join(kinds) + "; " + (f"from {ends[0]} to {ends[1]}" if len(part) > 1 else ends[0])


def describe_nulls(
    null_statistics: pd.DataFrame, geometry: str = "raw", statistic: str = "Spearman", usual: float = USUAL
) -> str:
    """Sentences on which null models reproduce the coefficient of the nucleus in one geometry.

    The candidate set is that of the top_p nearest to the runs' own, or, if it is the same in all runs, to ``usual``.
    """
    return _join(lambda lead: _describe_nulls(lead, geometry, statistic, usual), null_statistics)


def _describe_nulls(lead: Lead, geometry: str, statistic: str, usual: float) -> str:
    rows, of = lead.rows, lead.of
    candidates = choose_nucleus(lead.head, set(rows["candidates"]), usual)
    rows = rows[(rows["candidates"] == candidates) & (rows["geometry"] == geometry)].set_index("null")
    if OBSERVED not in rows.index or np.isnan(rows.loc[OBSERVED, f"{statistic} r"]):
        return _begin(
            lead, f"No run has a coefficient for its nucleus in `{geometry}`, so no null model can be compared."
        )
    seen = rows.loc[OBSERVED]
    sign = classify(seen[f"{statistic} low"], seen[f"{statistic} high"])
    value = format_bounded(*(seen[f"{statistic} {part}"] for part in ("r", "low", "high")))
    text = f"{of}, `{candidates}` in `{geometry}`: {statistic}'s coefficient is {value}."
    groups: dict[str, list[str]] = {"same": [], "other": [], "unknown": []}
    for null in NULLS:
        if null not in rows.index or np.isnan(rows.loc[null, f"{statistic} r"]):
            continue
        row = rows.loc[null]
        difference = classify(row[f"{statistic} difference low"], row[f"{statistic} difference high"])
        ratio, base = row[f"{statistic} ratio"], row[f"{statistic} observed"]
        found = f"{WORDS[null]} ({format_number(row[f'{statistic} r'])}"
        if sign in (NEGATIVE, POSITIVE) and ratio > 0:
            same = format_number(base) == format_number(seen[f"{statistic} r"])
            whole = "it" if same else f"the {format_number(base)} measured on the same tokens"
            found += f", {format_percent(ratio)} of {whole}"
        found += ")"
        groups["unknown" if not difference else "same" if difference == UNDECIDED else "other"].append(found)
    if groups["same"]:
        text += f" Not clearly different from it: {'; '.join(groups['same'])}."
    if groups["other"]:
        text += f" Clearly different from it: {'; '.join(groups['other'])}."
    if groups["unknown"]:
        text += f" Not compared, because there are too few prompts: {'; '.join(groups['unknown'])}."
    return text + ("" if any(groups.values()) else " No null model was measured.")


def describe_same_k(null_statistics: pd.DataFrame, geometry: str = "raw", usual: float = USUAL) -> str:
    """A sentence on what remains of Spearman's coefficient of the nucleus if the sets of equal k are exchanged.

    The candidate set is chosen as by `describe_nulls`.
    """
    return _join(lambda lead: _begin(lead, _describe_same_k(lead, geometry, usual)), null_statistics, "\n")


def _describe_same_k(lead: Lead, geometry: str, usual: float) -> str:
    rows = lead.rows[(lead.rows["geometry"] == geometry) & (lead.rows["null"] == SAME_K)]
    rows = rows[rows["Spearman r"].notna()]
    rows = rows[rows["candidates"] == choose_nucleus(lead.head, set(rows["candidates"]), usual)]
    if rows.empty:
        return "No coefficient could be compared with that of sets exchanged among tokens of equal k."
    row = rows.iloc[0]
    seen = lead.rows[(lead.rows["geometry"] == geometry) & (lead.rows["null"] == OBSERVED)]
    seen = seen[seen["candidates"] == row["candidates"]].iloc[0]
    left = [row[f"Spearman difference{part}"] for part in ("", " low", " high")]
    sign, whole = classify(*left[1:]), classify(seen["Spearman low"], seen["Spearman high"])
    numbers = (
        f"{format_number(row['Spearman r'])} instead of {format_number(row['Spearman observed'])} "
        f"(measured minus exchanged: {format_bounded(*left)})"
    )
    if whole in (NEGATIVE, POSITIVE) and sign in (NEGATIVE, POSITIVE) and whole != sign:
        return (
            f"Among tokens with the same number of candidates (equal k), candidates {VERDICTS[sign]}. The number of "
            f"candidates alone would give a more {whole} coefficient: if candidate sets are exchanged among tokens of "
            f"equal k, so that only the effect of k is left, it is {numbers}."
        )
    text = (
        "If candidate sets are exchanged among tokens with the same number of candidates (equal k), so that only the "
        f"effect of k is left, the coefficient is {numbers}"
    )
    if not sign:
        return f"{text}. There are too few prompts to judge the difference."
    if sign == UNDECIDED:
        return f"{text}: the number of candidates may explain all of it."
    return f"{text}: the number of candidates does not explain all of it."


def describe_ladder(explained: pd.DataFrame, geometry: str = "raw") -> str:
    """A sentence on how much k and the candidates' kind explain, and what entropy adds to them.

    On one line; a sentence for each value of settings that vary for one model on one data set.
    """
    said = [(where, _describe_ladder(rows, geometry)) for where, rows in split_by_settings(explained)]
    return " ".join(merge_sentences(said, counted=True))


def _describe_ladder(explained: pd.DataFrame, geometry: str) -> str:
    rows = explained[(explained["geometry"] == geometry) & explained["R2"].notna()]
    base, full = (rows[rows["predictors"] == name] for name in ("k + kind", "k + kind + entropy"))
    alone = rows[rows["predictors"] == "entropy"]
    if base.empty or full.empty:
        return "No run has enough tokens and prompts to say what explains cosine similarity."
    shares, points = [_format_shares(each["R2"]) for each in (alone, base)], _format_points(full["added"])
    depending = "depending on the run, " if any("between" in words for words in (*shares, points)) else ""
    adding = "raises" if ((100 * full["added"]).round(1) > 0).all() else "changes"
    text = (
        f"On held-out prompts, {depending}entropy alone explains {shares[0]} of the variance of cosine similarity "
        f"(`{geometry}`); the candidates' number, kinds (word, digit, punctuation and so on), frequencies and "
        f"embeddings' norms explain {shares[1]}, and adding entropy {adding} that by {points}."
    )
    if (pd.concat((alone["R2"], base["R2"])) < 0).any():
        text += " Where a share is negative, always predicting the mean would be better."
    known = full[full["added low"].notna()]
    if known.empty:
        return f"{text} No interval could be computed."
    helped = int((known["added low"] > NOTICEABLE).sum())
    chance = f"than the {100 * NOTICEABLE:g} percentage point that can arise by chance"
    less, more = (known["added high"] < NOTICEABLE).all(), f"clearly more {chance}"
    if len(full) == 1:
        return f"{text} This is {f'less {chance}' if less else more if helped else f'not {more}'}."
    some = " with an interval" if len(known) < len(full) else ""
    if less:
        return f"{text} In {name_part(len(known), len(known), 'run')}{some}, this is less {chance}."
    if not helped:
        return f"{text} In no run{some} is this {more}."
    return f"{text} In {name_part(helped, len(known), 'run')}{some}, this is {more}."


def _format_shares(values: pd.Series) -> str:
    return format_range(values, format_percent)


def _format_points(values: pd.Series) -> str:
    """What is added to shares, in percentage points."""
    return f"{format_range(100 * values, lambda value: format_number(value, 1))} percentage points"


def describe_specifications(tests: pd.DataFrame) -> str:
    """Sentences on how many specifications have which sign, and what survives the comparison with null models."""
    return _join(_describe_specifications, tests)


def describe_uncounted(specifications: pd.DataFrame) -> str:
    """Sentences on the combinations that `describe_specifications` does not count: those without an interval.

    "" if all have one.
    """
    return _join(_describe_uncounted, specifications).strip()


def _describe_uncounted(lead: Lead) -> str:
    rows, drawn = lead.rows, lead.rows["r"].notna()
    undefined, alone = int((~drawn).sum()), int((drawn & ~rows["sign"].isin(SIGNS)).sum())
    if not undefined + alone:
        return ""
    parts = []
    if undefined:
        parts.append(f"{undefined:,} {'has' if undefined == 1 else 'have'} no coefficient")
    if alone:
        parts.append(f"{alone:,} {'has' if alone == 1 else 'have'} a coefficient without an interval")
    text = f"{lead.of}: of {count(len(rows), 'combination')}, {join_names(parts)}, because there are too few tokens or "
    text += "prompts, or entropy or cosine similarity does not vary. Below, only combinations with an interval "
    text += "count as specifications"
    others = "one" if alone == 1 else f"{alone:,}"
    grey = f"the figure also shows the {others} without, in the colour of *undecided*"
    return f"{text}; {grey}." if alone else f"{text}."


def _describe_specifications(lead: Lead) -> str:
    rows, of = lead.rows.set_index("null"), lead.of
    if rows.empty:
        return _begin(lead, "No specification could be computed.")
    first = rows.iloc[0]
    counts = [f"{int(first[sign])} {'is' if first[sign] == 1 else 'are'} {sign}" for sign in SIGNS]
    text = (
        f"{of}: of {count(int(first['specifications']), 'specification')}, {join_names(counts)}. "
        f"{format_percent(first['share'])} of all coefficients are {first['dominant sign']}, and the median is "
        f"{format_number(first['median'])}."
    )
    exchanged = "the median of sets exchanged among tokens of equal k"
    for null, than in ((ALL, "0, its value without any relationship"), (SAME_K, exchanged)):
        if null not in rows.index:
            continue
        row = rows.loc[null]
        difference = format_bounded(row["difference"], row["difference low"], row["difference high"])
        mean = "" if null == ALL else f" ({format_number(row['reference'])})"
        verdict = {
            "": "There are too few prompts to compare it with",
            UNDECIDED: "It is not clearly different from",
        }.get(classify(row["difference low"], row["difference high"]), "It differs from")
        text += f" {verdict} {than}{mean}: the difference is {difference}."
    return text


def describe_answer(specifications: pd.DataFrame, usual: float = USUAL) -> str:
    """The front page's sentence: how similar the candidates are if the model is less sure, with the number.

    The geometry is `raw`. The candidates are those with the top_p nearest to that of the runs' own nucleus: ``usual``
    if it is the same in all runs. A second sentence says which is the nearest that gives the opposite sign, if any
    does. A list if settings vary for one model on one data set, each item with the values that it is about.
    """
    answers = [(lead.where, _describe_answer(lead, usual)) for lead in list_leads(specifications)]
    said = merge_sentences(answers, counted=True)
    return said[0] if len(said) == 1 else "\n".join(f"* {sentence}" for sentence in said)


def _describe_answer(lead: Lead, usual: float) -> str:
    names = {each.name: each.value for each in CANDIDATE_SETS if each.rule == "top_p"}
    rows = lead.rows
    rows = rows[(rows["statistic"] == "Spearman") & rows["r"].notna() & (rows["geometry"] == "raw")]
    rows = rows[rows["candidates"].isin(list(names))]
    if rows.empty:
        return NO_TOKENS
    chosen = choose_nucleus(lead.head, set(rows["candidates"]), usual)
    row, top_p = rows[rows["candidates"] == chosen].iloc[0], names[chosen]
    if row["sign"] not in VERDICTS:
        return NO_INTERVAL
    value = format_bounded(row["r"], row["low"], row["high"])
    begin = "**candidates" if lead.where else f"**In {_name_runs(rows)}, candidates"
    said = f"{begin} {VERDICTS[row['sign']]}: Spearman's coefficient is {value}** ({lead.source}; candidates are the "
    said += f"likeliest tokens that make up {format_top_p(top_p)} of the probability; "
    opposite = rows[rows["sign"] == {NEGATIVE: POSITIVE, POSITIVE: NEGATIVE}.get(row["sign"])]
    said += f"{'95% confidence intervals are' if len(opposite) else 'its 95% confidence interval is'} in brackets)."
    if len(opposite):
        other = min(opposite.to_dict("records"), key=lambda other: abs(names[other["candidates"]] - top_p))
        value = format_bounded(other["r"], other["low"], other["high"])
        said += " **But the sign depends on how many tokens count as candidates: if they make up "
        said += f"{format_top_p(names[other['candidates']])} of the probability, the coefficient is {other['sign']}, "
        said += f"{value}.**"
    return said


def _name_runs(rows: pd.DataFrame) -> str:
    return "this run" if rows["runs"].max() == 1 else "these runs"


def describe_sign_changes(specifications: pd.DataFrame) -> str:
    """A sentence on whether the sign depends on the cut and the geometry, for the front page."""
    return _join(lambda lead: _begin(lead, _describe_sign_changes(lead)), specifications, "\n")


def _describe_sign_changes(lead: Lead) -> str:
    rows = lead.rows
    rows = rows[(rows["statistic"] == "Spearman") & rows["r"].notna()]
    counts = rows["sign"].value_counts()
    negative, positive = int(counts.get(NEGATIVE, 0)), int(counts.get(POSITIVE, 0))
    if rows.empty:
        return "No other candidate set or geometry was measured."
    neither = len(rows) - negative - positive
    kinds = [(negative, "a negative coefficient"), (positive, "a positive coefficient"), (neither, "no clear sign")]
    (most, what), *others = [(number, words) for number, words in kinds if number]
    first = f"{name_part(most, len(rows), 'combination')} of candidate set and geometry (how embeddings are compared)"
    said = [f"{first} {'has' if most == 1 else 'have'} {what}"]
    said += [f"{number:,} {'has' if number == 1 else 'have'} {words}" for number, words in others]
    all_of = f"{'averaged over the runs, ' if is_pooled(lead.head) else ''}{join_names(said)}"
    all_of = all_of[0].upper() + all_of[1:]
    if len(rows) == 1:
        return f"{all_of}."
    if negative and positive:
        return f"{all_of}: the sign depends on these choices."
    if negative + positive == len(rows):
        return f"{all_of}: the sign does not depend on these choices."
    return f"{all_of}: wherever the sign is clear, it is the same." if negative or positive else f"{all_of}."


def describe_in_three(
    specifications: pd.DataFrame, null_statistics: pd.DataFrame, explained: pd.DataFrame, usual: float = USUAL
) -> str:
    """Three lines on what the coefficient is made of, for the front page; how to get them if nothing was measured.

    If settings vary for one model on one data set, there is a line for each combination of them. ``usual``: see
    `describe_answer`.
    """
    if specifications.empty:
        return f"* {NOTHING}"
    texts = (
        describe_sign_changes(specifications),
        describe_same_k(null_statistics, usual=usual),
        describe_ladder(explained),
    )
    return "\n".join(f"* {line}" for text in texts for line in text.splitlines())


def load(results_dir: str | os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """specification.csv, null_stats.csv and explained.csv as the analyses wrote them. ValueError if they have not."""
    names = ["Model", "Dataset"]
    return (
        load_table(results_dir, "specification.csv", [*names, *CHOICES, "sign"]),
        load_table(results_dir, "null_stats.csv", [*names, "candidates", "geometry", "null"]),
        load_table(results_dir, "explained.csv", [*names, "geometry", "predictors", "interval", "note"]),
    )
