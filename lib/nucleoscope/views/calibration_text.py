"""The sentences and the table of the page about a data set's texts and the model's: each says what the numbers show.

Contract: pairs as found by `text_pairs`, tables as returned by `two_texts`; nothing is computed but differences of
means, counts and comparisons. A difference is given a sign only if its 95% interval does not contain 0.
"""

import os
from collections.abc import Collection

import numpy as np
import pandas as pd

from nucleoscope import quantities
from nucleoscope.settings import Settings
from nucleoscope.stats.bootstrap import JACKKNIFE, LEVEL
from nucleoscope.stats.calibration import (
    ALL,
    CLOPPER_PEARSON,
    EXCESS,
    EXCESS_GIVEN,
    EXISTING,
    GIVEN,
    LEFT_OUT,
    NEAR_END,
    OUTSIDE,
    SURPRISAL,
    WRITTEN,
    adjust_by_holm,
)
from nucleoscope.stats.specification import NEGATIVE, POSITIVE, UNDECIDED, classify
from nucleoscope.store.text_pairs import FoundPairs, Pair, Run, list_obstacles, name_pairs
from nucleoscope.views.commands import find_written, format_pipeline, list_run_options
from nucleoscope.views.numbers import choose_digits, format_bounded, format_number, format_percent
from nucleoscope.views.token_text import escape_name
from nucleoscope.wording import count, join_names

HOW = """To get a pair, take a data set that has texts of its own, and measure it twice with the same settings: once
with the model writing, and once with it reading the texts of a column. The packaged `math` has short answers{already}:

```bash
{commands}
```

or list it twice in a grid:

```yaml
datasets:
  - math
  - {{name: math, mode: score, text_column: answer}}
```

Then build the book again, with the same grid as before."""
ALREADY = ", and the model has already written its own texts for it, so only the answers are missing"
EXPLAIN_OUTSIDE = """A point is the mean over a bin of tokens: further right, the model was less sure. All bins have
about the same number of tokens. The bars are the intervals of what was measured, over prompts.
The dashed line is the share that would be outside if tokens were drawn from p, the mean of 1 − m, and
the band contains at least 95% of the shares that would then occur by chance; its ends are quantiles of
the Poisson binomial distribution. By chance, about one point in twenty is outside its band, so the
sentences count a bin only if it is outside after Holm's correction for the number of bins."""
AT_ZERO = """The diamonds of the model's text are all at 0, because its tokens were drawn from the nucleus."""
CERTAIN = """Where none of a bin's tokens or all of them are outside, the bar is the interval of Clopper and
Pearson for independent tokens."""
EXPLAIN_SURPRISAL = """The dashed line and band of each colour show what is expected of the data set's text if its
tokens were drawn from p, as if the model were calibrated on it, and of the model's text because its tokens were drawn
from the nucleus. On the first line, surprisal equals full entropy. A point above its line means more
surprise than expected, one below it less. The bands are normal approximations, which are rough
where surprisal is mostly near 0, and one point in twenty is outside by chance, so no single
bin is judged."""
ENDING = "the end-of-text token, to which the model gives a probability at each step, while no recorded token is one"
EXPLAIN_GIVEN = """No recorded token is an end of a text, but the model gives ends a probability e at each step. What
is expected, full entropy and surprisal are therefore those given that the text continues: the probabilities of the
tokens that end a text are set to 0, and all others are divided by 1 − e."""
TITLES = {
    EXCESS: "surprisal minus full entropy (nats)",
    EXCESS_GIVEN: "surprisal minus full entropy, given no end (nats)",
    "outside": "tokens outside the nucleus",
    "likeliest": "tokens that are the likeliest one",
}
SHARES = ("outside", "likeliest", "end_probability")


def describe_found(
    found: FoundPairs, measured: Collection[str], results_dir: str | os.PathLike = Settings.results_dir
) -> str:
    """Which pairs are compared, what is special about each, which runs have no partner, and how to get a pair.

    ``results_dir`` is where a pair is to be measured.
    """
    lines = []
    for name, pair in zip(name_pairs(found.pairs), found.pairs, strict=True):
        if name in measured:
            lines.append(f"* {_describe_pair(name, pair)}")
    text = "\n".join(lines)
    if lines:
        text = f"{len(lines)} {'pair was' if len(lines) == 1 else 'pairs were'} measured.\n\n{text}"
    else:
        text = "No data set was measured both ways, so there is nothing to compare yet.\n\n"
        text += describe_measuring(results_dir)
    if found.alone:
        alone = "\n".join(f"* {_explain_alone(run, found.written)}" for run in found.alone)
        text += f"\n\nThese texts were measured without a run of the model's own for the same prompts:\n\n{alone}"
    return text


def describe_measuring(results_dir: str | os.PathLike = Settings.results_dir) -> str:
    """How to get a pair whose runs are in ``results_dir``, in Markdown."""
    reading = ("--mode=score", "--text_column=answer")
    if folder := find_written(results_dir, "math"):
        options = list_run_options(folder, mode="score")
        return HOW.format(already=ALREADY, commands=format_pipeline(*options, *reading, results_dir=results_dir))
    both = ("--dataset_name=math", "--prompt_format=chat")
    commands = [format_pipeline(*both, *more, results_dir=results_dir) for more in ((), reading)]
    return HOW.format(already="", commands="\n".join(commands))


def _describe_pair(name: str, pair: Pair) -> str:
    settings = pair.existing.settings
    text = f"{escape_name(name)}: {count(pair.n_prompts, 'prompt')}, up to {count(pair.max_tokens, 'token')} of each "
    text += f"text, `top_p` {settings['top_p']:g}, temperature {settings['temperature']:g}, prompt format "
    text += f"`{settings['prompt_format']}`"
    differing = pair.list_differences()
    shortened = [f"`{each}` is {one} and {other}" for each, one, other in differing if each != "dtype"]
    if shortened:
        text += f"; {join_names(shortened)} in the two runs, and only what both have is compared"
    for each, one, other in differing:
        if each == "dtype":
            text += f"; the texts were read in {one} and written in {other}, so p differs a little between the two"
    return f"{text}."


def _explain_alone(run: Run, written: list[Run]) -> str:
    """Why a run that measured existing texts has no partner: what differs in the run that is nearest to one."""
    name = escape_name("{1} on {0}, ".format(*run.names) + run.settings["text_column"])
    near = [(list_obstacles(run, other), other) for other in written]
    near = [(why, other) for why, other in near if "model" not in why and "dataset" not in why]
    if not near:
        return f"{name}: run the command that measured it again without `mode` and `text_column`."
    why, other = min(near, key=lambda each: len(each[0]))
    words = [f"`{each}` is {run.settings.get(each)} for it and {other.settings.get(each)} there" for each in why]
    return f"{name}: the nearest run of the model's own is no partner, because {join_names(words)}."


def format_text_means(comparison: pd.DataFrame) -> pd.DataFrame:
    """The means of one pair for readers: value [interval] of both texts and their difference."""
    comparison = comparison[comparison["quantity"].ne("end_probability") | comparison[EXISTING].notna()]
    columns = {"mean of": [TITLES.get(name) or quantities.find_title(name) for name in comparison["quantity"]]}
    for part, title in {EXISTING: "data set's text", WRITTEN: "model's text", "difference": "difference"}.items():
        values = comparison[["quantity", part, f"{part} low", f"{part} high"]].itertuples(index=False, name=None)
        unit = " points" if part == "difference" else "%"
        columns[title] = [_format_mean(*row, unit) for row in values]
    return pd.DataFrame(columns).set_index("mean of")


def _format_mean(name: str, value: float, low: float, high: float, unit: str) -> str:
    if np.isnan(value):
        return ""
    if name in SHARES:
        return _format_share(value, low, high, unit)
    return format_bounded(value, low, high, choose_digits(low, high, 1) if name == "k" else 2)


def _format_share(value: float, low: float, high: float, unit: str = "%") -> str:
    """ "13.6% [11.3, 16.0]"."""
    bounds = "" if np.isnan([low, high]).any() else f" [{format_number(100 * low, 1)}, {format_number(100 * high, 1)}]"
    return f"{format_number(100 * value, 1)}{unit}{bounds}"


def describe_interval(comparison: pd.DataFrame) -> str:
    """How the intervals were computed, in a sentence."""
    kinds = set(comparison["interval"])
    how = "leaving out each prompt in turn" if kinds == {JACKKNIFE} else "resampling prompts"
    how += (
        ", or leaving out one prompt at a time if there are fewer than 30"
        if JACKKNIFE in kinds and len(kinds) > 1
        else ""
    )
    return (
        f"Brackets are 95% intervals, from {how}; the two texts of a prompt are kept together. A difference is the "
        "data set's text minus the model's. Cosine similarity is a mean over tokens with more than one candidate."
    )


def describe_text_difference(name: str, comparison: pd.DataFrame) -> str:
    """Sentences on surprisal and full entropy in the two texts of the pair of this name."""
    rows, prompts = comparison.set_index("quantity"), int(comparison["prompts"].max())
    if not prompts:
        return f"**{escape_name(name)}**: no prompt has both texts."
    surprisal = {
        POSITIVE: "the data set's text surprises the model more than its own",
        NEGATIVE: "the data set's text surprises the model less than its own",
        UNDECIDED: "neither text clearly surprises the model more",
    }
    entropy = {
        POSITIVE: "it is less sure about what comes next in the data set's text",
        NEGATIVE: "it is surer about what comes next in the data set's text",
        UNDECIDED: "it is not clearly surer about what comes next in either text",
    }
    return (
        f"**{escape_name(name)}**: over {count(prompts, 'prompt')}, the mean surprisal is "
        f"{_describe_difference(rows.loc['surprisal'], surprisal)} Before it sees a token, its mean full entropy is "
        f"{_describe_difference(rows.loc['full_entropy'], entropy)}"
    )


def _describe_difference(row: pd.Series, words: dict[str, str]) -> str:
    """ "2.07 nats in the data set's text and 1.14 in the model's: ... (difference 0.93 [0.74, 1.13])."."""
    if np.isnan(row["difference"]):
        return "unknown in one of the texts."
    said = words.get(
        classify(row["difference low"], row["difference high"]), "there are too few prompts for an interval"
    )
    bounded = format_bounded(row["difference"], row["difference low"], row["difference high"])
    return (
        f"{format_number(row[EXISTING])} nats in the data set's text and {format_number(row[WRITTEN])} in the model's: "
        f"{said} (difference {bounded})."
    )


def describe_ends(bins: pd.DataFrame) -> str:
    """What the expectations are given, and which pairs have a text that was measured without the probability of an end.

    Those include the end in their expectations.
    """
    given = bins[GIVEN].astype(bool)
    older = list(dict.fromkeys(bins.loc[~given, "pair"]))
    text = EXPLAIN_GIVEN if given.any() else ""
    if older:
        names = "" if not given.any() else f" of {join_names([f'**{escape_name(name)}**' for name in older])}"
        text += (
            f"{' ' if text else ''}An earlier version measured texts{names} without the probability of an end. Their "
            "expectations include it, so a calibrated model would differ a little from them, more so if its texts are "
            "short. To correct that, measure them again, in another `results_dir`."
        )
    return text


def describe_outside(bins: pd.DataFrame) -> str:
    """Sentences for each pair on the tokens outside the nucleus, beside what a calibrated model would give."""
    return "\n\n".join(
        _describe_outside(str(name), *_split(rows)) for name, rows in bins.groupby("pair", sort=False)
    ) or _say_unknown(bins)


def explain_outside(bins: pd.DataFrame) -> str:
    """How to read the figure of the tokens outside the nucleus, with the kinds of intervals that it has."""
    certain = bins.loc[bins["bin"] != ALL, f"{OUTSIDE} interval"].eq(CLOPPER_PEARSON).any()
    written = bins.loc[(bins["bin"] != ALL) & (bins["text"] == WRITTEN), OUTSIDE]
    drawn = len(written) and (written == 0).all()
    parts = [EXPLAIN_OUTSIDE, *[AT_ZERO] * bool(drawn), *[CERTAIN] * bool(certain)]
    if bins[GIVEN].any():
        where = "Here" if bins[GIVEN].all() else "Where the probability of an end is known,"
        parts.append(f"{where} m is the mass given that the text continues.")
    return " ".join(parts)


def describe_surprisal(bins: pd.DataFrame) -> str:
    """Sentences for each pair on surprisal, beside what p and the nucleus would lead one to expect."""
    return "\n\n".join(
        _describe_surprisal(str(name), *_split(rows)) for name, rows in bins.groupby("pair", sort=False)
    ) or _say_unknown(bins)


def _say_unknown(bins: pd.DataFrame) -> str:
    return "" if len(bins) else "No token has a rank and a surprisal: measure again with this version."


def _split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the existing and of the written texts, all tokens first."""
    existing, written = (rows[rows["text"] == text] for text in (EXISTING, WRITTEN))
    return existing, written


def _describe_outside(name: str, existing: pd.DataFrame, written: pd.DataFrame) -> str:
    text = f"**{escape_name(name)}**: "
    if len(existing):
        row, parts = existing.iloc[0], existing[existing["bin"] != ALL]
        if row[OUTSIDE] == row[f"{OUTSIDE} expected"] == 0:
            text += "no token of the data set's text can be outside, because the nucleus contains all tokens."
        else:
            text += (
                f"{_format_columns(row, OUTSIDE)} of the {count(int(row['tokens']), 'token')} of the data set's text "
                f"{'is' if row['tokens'] == 1 else 'are'} outside the nucleus. If tokens were drawn from "
                f"{_name_source(row)}, {format_percent(row[f'{OUTSIDE} expected'], 1)} would be. The difference is "
                f"{_format_points(row)}: {_judge(row, OUTSIDE)}.{_name_interval(row)} {_describe_bins(parts)}"
            )
            text += _describe_ends(parts) + _describe_left_out(row)
    else:
        text += "ranks or surprisals of the data set's text are unknown: measure it again."
    if len(written):
        row = written.iloc[0]
        outside, total = round(row[OUTSIDE] * row["tokens"]), int(row["tokens"])
        if outside:
            text += f" Of the {count(total, 'token')} of the model's text, {outside:,} "
            text += "is outside." if outside == 1 else "are outside."
        else:
            text += (
                f" None of the {count(total, 'token')} of the model's text is outside, by construction: they were "
                "drawn from the nucleus."
            )
    return text


def _name_source(row: pd.Series) -> str:
    return "p given that the text continues" if row[GIVEN] else "p"


def _describe_left_out(row: pd.Series) -> str:
    """How many tokens of a text take no part, and why."""
    if not (number := int(row[LEFT_OUT])):
        return ""
    ends = f"an end of the text was all but certain (above {NEAR_END:g}), the token is one, or " if row[GIVEN] else ""
    return f" Left out: {count(number, 'token')}, because {ends}a number is unknown."


def _format_columns(row: pd.Series, name: str) -> str:
    return _format_share(*(row[f"{name}{end}"] for end in ("", " low", " high")))


def _format_points(row: pd.Series) -> str:
    parts = [row[f"{OUTSIDE} difference{end}"] for end in ("", " low", " high")]
    return _format_share(*parts, " points")


JUDGEMENTS = {
    (
        OUTSIDE,
        POSITIVE,
    ): "the text leaves the nucleus more often than the model's probabilities say, so on this text the "
    "model is too sure",
    (
        OUTSIDE,
        NEGATIVE,
    ): "the text leaves the nucleus less often than the model's probabilities say, so on this text the "
    "model is less sure than it could be",
    (OUTSIDE, UNDECIDED): "this text does not show whether the nucleus is too narrow or too wide",
    (SURPRISAL, POSITIVE): "the text is more surprising than the model expects, so on this text the model is too sure",
    (SURPRISAL, NEGATIVE): "the text is less surprising than the model expects, so on this text the model is less sure "
    "than it could be",
    (SURPRISAL, UNDECIDED): "this text does not show whether the model is too sure or not sure enough",
}


def _judge(row: pd.Series, name: str) -> str:
    sign = classify(row[f"{name} difference low"], row[f"{name} difference high"])
    if (name, sign) not in JUDGEMENTS:
        return "there are too few prompts for an interval"
    if row[GIVEN]:
        return JUDGEMENTS[name, sign]
    due = "a difference may be hidden by" if sign == UNDECIDED else "or the difference comes from"
    return f"{JUDGEMENTS[name, sign]}, {'and ' if sign == UNDECIDED else ''}{due} {ENDING}"


def _name_interval(row: pd.Series) -> str:
    certain = row[f"{OUTSIDE} interval"] == CLOPPER_PEARSON
    return " The interval is that of Clopper and Pearson for independent tokens." if certain else ""


def _describe_bins(parts: pd.DataFrame) -> str:
    """In how many bins the share outside differs from what is expected there, after Holm's correction."""
    if len(parts) < 2:
        return ""
    sure = adjust_by_holm(parts[f"{OUTSIDE} p"].to_numpy(dtype=float)) <= 1 - LEVEL
    above = (parts[f"{OUTSIDE} difference"] > 0).to_numpy()
    counts = {"above": int((sure & above).sum()), "below": int((sure & ~above).sum())}
    found = [
        f"{number} {'is' if number == 1 else 'are'} {side} what is expected there"
        for side, number in counts.items()
        if number
    ]
    found = found or ["none differs clearly from what is expected there"]
    return f"Of the {len(parts)} bins of full entropy, {join_names(found)} (5% level, Holm's correction)."


def _describe_ends(parts: pd.DataFrame) -> str:
    """The shares of the first and the last bin."""
    if len(parts) < 2:
        return ""
    first, last = parts.iloc[0], parts.iloc[-1]
    words = [
        f"{_format_columns(row, OUTSIDE)} instead of {format_percent(row[f'{OUTSIDE} expected'], 1)}"
        for row in (first, last)
    ]
    return (
        f" Where the model is surest (full entropy up to {first['to']:.2f} nats), {words[0]} are outside; where it is "
        f"least sure (from {last['from']:.2f}), {words[1]}."
    )


def _describe_surprisal(name: str, existing: pd.DataFrame, written: pd.DataFrame) -> str:
    text = f"**{escape_name(name)}**: "
    if len(existing):
        row = existing.iloc[0]
        text += (
            f"{'given that the text continues, ' if row[GIVEN] else ''}the data set's text has a mean surprisal of "
            f"{_format_nats(row, SURPRISAL)} nats, and the model expects "
            f"{format_number(row[f'{SURPRISAL} expected'])}, its mean full entropy. The difference is "
            f"{_format_nats(row, f'{SURPRISAL} difference')}: {_judge(row, SURPRISAL)}."
        )
    else:
        text += "ranks or surprisals of the data set's text are unknown: measure it again."
    if len(written):
        row = written.iloc[0]
        sign = classify(row[f"{SURPRISAL} difference low"], row[f"{SURPRISAL} difference high"])
        said = {
            UNDECIDED: "which is not clearly different from 0, as it should be",
            "": "from too few prompts for an interval",
        }.get(sign, "which is not 0: by chance, one text in twenty has such a difference")
        if not row[GIVEN] and sign not in (UNDECIDED, ""):
            said = f"which is not 0: it may come from {ENDING}, or be chance"
        text += (
            f" The model's text has {_format_nats(row, SURPRISAL)}; tokens drawn from the nucleus have an expected "
            f"surprisal of {format_number(row[f'{SURPRISAL} expected'])}, so the difference is "
            f"{_format_nats(row, f'{SURPRISAL} difference')}, {said}. Its full entropy, the expectation of tokens that "
            f"were drawn from all of p, is {format_number(row['full entropy'])}.{_describe_left_out(row)}"
        )
    return text


def _format_nats(row: pd.Series, name: str) -> str:
    return format_bounded(*(row[f"{name}{end}"] for end in ("", " low", " high")))
