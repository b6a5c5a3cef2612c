"""All settings of a run: name, type, default, choices or range, help text, and whether it affects the results.

Contract: this is the only list of settings. The command line, the grid schema, the validation, the
comparison with an existing run.json, the explorer's fields and the reference table are derived from it,
by name; a test checks that the notebooks' parameters cells agree with it. Importing this module is fast.
"""

import math
import numbers
import os
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from datetime import date
from typing import Any

from nucleoscope import variants
from nucleoscope.names import advise, suggest
from nucleoscope.wording import join_names

MOST = 10**9  # of anything that is counted: more cannot be meant, and would fail later as an overflow
EXACT = 2**53  # whole numbers up to this are exact everywhere, also in JSON and in the live notebook
# At 1e-40, logits / T overflow float32, whose largest number is 3.4e38; at this one, those up to 1e8 do not.
LEAST_TEMPERATURE = 1e-30
DEVICES = ("cpu", "cuda", "mps", "xpu")
SINGLE = {  # settings that affect the results and have one value in each run of a model on a data set, and why
    "mode": "list the data set twice: once as it is, and once with 'mode: score' and a text_column",
    "text_column": "list the data set once for each column of texts",
    "variants": "separate the names by commas; all are measured in one run",
}
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}  # what others call a choice
LONGEST, LONGEST_PART = 4096, 255  # characters of a path, bytes of one of its parts: Linux and macOS allow no more


def _define(
    kind: type,
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    decides: bool = False,
    in_grid: bool = True,
    aliases: tuple[str, ...] = (),
    live: bool = False,
    is_date: bool = False,
    is_path: bool = False,
    pattern: str = "",
    described: str = "",
    are_variants: bool = False,
) -> Any:
    """A field of `Settings`.

    ``choices``: the allowed values of a string; for a number, strings that are allowed as well. A number
    must be at least ``least``, greater than ``above`` and at most ``most``. ``decides``: whether the setting
    affects what is measured, so that results with another value are other results. ``in_grid``: whether a grid may
    set it as a parameter. ``aliases``: other names for it on the command line. ``live``: whether the live
    notebook has a field for it. ``is_date``: a string that must be a date in ISO format. ``is_path``: a
    string that is or may be a path, in which ``~`` is the user's home. ``pattern``: a regular expression for a
    string. ``described``: what a value must be, in words, instead of those that follow from the rest.
    ``are_variants``: a string that `variants.parse` understands.
    """
    metadata = {"type": kind, "choices": choices, "least": least, "above": above, "most": most}
    metadata |= {
        "is_date": is_date,
        "is_path": is_path,
        "pattern": pattern,
        "described": described,
        "are_variants": are_variants,
        "help": help,
        "decides": decides,
        "in_grid": in_grid,
        "aliases": aliases,
        "live": live,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The settings of a run. The defaults are also available as ``Settings.max_tokens`` and so on.

    ``notebooks/measure.py`` uses prompt_format=chat, which suits the packaged model; the default is the study's.
    """

    model_name: str = _define(
        str,
        "SmolLM2-135M-Instruct",
        "model: an id on the Hugging Face Hub, a folder, a .gguf file, or the packaged default",
        decides=True,
        in_grid=False,
        live=True,
        is_path=True,
    )
    dataset_name: str = _define(
        str,
        "math",
        "data set: gsm8k, writingprompts, xsum, math, stories, articles, or a .jsonl, .csv, .parquet or .txt file",
        decides=True,
        in_grid=False,
        is_path=True,
    )
    mode: str = _define(
        str,
        "generate",
        "what to measure: the text that the model writes (generate) or existing texts (score)",
        choices=("generate", "score"),
        decides=True,
    )
    text_column: str | None = _define(
        str,
        None,
        "with mode=score: column of the data set that contains the text to measure after each prompt",
        decides=True,
    )
    n_prompts: int = _define(
        int,
        100,
        "number of prompts to use, from the start of the data set",
        least=1,
        most=MOST,
        decides=True,
        aliases=("n_samples",),
    )
    max_tokens: int = _define(
        int,
        100,
        "maximum number of tokens generated or measured per prompt",
        least=1,
        most=MOST,
        decides=True,
        live=True,
    )
    top_p: float = _define(
        float,
        0.9,
        "probability mass that the nucleus must reach, in (0, 1]",
        above=0,
        most=1,
        decides=True,
        live=True,
    )
    temperature: float = _define(
        float,
        1.0,
        "value to divide the logits by before measuring and sampling",
        least=LEAST_TEMPERATURE,
        decides=True,
        live=True,
    )
    seed: int = _define(
        int,
        0,
        "random seed for sampling; ignored with mode=score",
        least=-EXACT,
        most=EXACT,
        decides=True,
        live=True,
    )
    prompt_format: str = _define(
        str,
        "raw",
        "whether the model gets prompts unchanged (raw) or in its chat template (chat)",
        choices=("raw", "chat"),
        decides=True,
        live=True,
    )
    template_date: str = _define(
        str,
        "2024-07-26",  # what Llama 3.1's template itself assumes where it has no clock
        "the date to give the chat template as today's date",
        decides=True,
        live=True,
        is_date=True,
    )
    prompt_column: str | None = _define(
        str,
        None,
        "column that contains the prompts, if the data set is packaged or a file with columns; by default, the column "
        "named prompt",
        decides=True,
    )
    variants: str = _define(
        str,
        variants.NONE,
        "other candidate sets and geometries to measure as well: names separated by commas, such as top_k_10,centred "
        "(the book lists all of them under Method), the word 'default' for all of them, or the word "
        "'none'",
        decides=True,
        are_variants=True,
        described="be default, none, or names of candidate sets and geometries, separated by commas",
    )
    batch_size: int | str = _define(
        int, "auto", "number of prompts per batch, or auto", choices=("auto",), least=1, most=MOST
    )
    dtype: str = _define(
        str,
        "auto",
        "data type of the model's weights",
        choices=("auto", "float32", "bfloat16", "float16"),
        decides=True,
    )
    device: str = _define(
        str,
        "auto",
        "device to run on: cpu, cuda, cuda:1, ..., mps, xpu, balanced (all GPUs), or auto",
        pattern=rf"auto|balanced|({'|'.join(DEVICES)})(:[0-9]{{1,3}})?",
        described=f"be auto, balanced, or {', '.join(DEVICES[:-1])} or {DEVICES[-1]} with or without a number, "
        "such as cuda:1",
    )
    results_dir: str = _define(
        str,
        "results",
        "results folder; a run is saved in its subfolder <dataset>[-<text_column>]/<model>/",
        in_grid=False,
        is_path=True,
    )
    named_settings: str | None = _define(
        str,
        None,
        "settings whose values are added to the name of the run's folder, so that runs with different values get "
        "different folders; separated by commas, such as top_p,seed",
        in_grid=False,
    )
    overwrite: bool = _define(
        bool,
        False,
        "replace existing results that have other settings, or whose measurements or tables are damaged",
        in_grid=False,
    )
    model_revision: str | None = _define(
        str,
        None,
        "commit from which to load all files of a model on the Hub; by default, the latest",
        decides=True,
        live=True,
    )
    skip_check: bool = _define(
        bool, False, "skip the trial on short prompts that determines how prompts can be batched"
    )
    trust_remote_code: bool = _define(
        bool, False, "run the Python code that comes with the model; read it first", live=True
    )
    context: bool = _define(
        bool, False, "also measure similarity in context, in a second pass: what would follow each candidate"
    )
    context_candidates: int = _define(
        int,
        8,
        "how many of each token's likeliest candidates to compare in context, or to branch from",
        least=0,
        most=64,
        described="be a whole number from 2 to 64 (in a grid, 0 or 1 disables comparing and branching)",
    )
    context_threshold: float = _define(
        float,
        0.5,
        "mean similarity in context at or above which two groups of candidates are merged into one, in (0, 1]",
        above=0,
        most=1,
    )
    context_memory: int | str = _define(
        int,
        "auto",
        "maximum memory, in MiB, for arrays with one value per vocabulary entry while similarity in context is "
        "measured, or auto: 64 on a CPU, 1024 on a GPU",
        choices=("auto",),
        least=1,
        most=MOST,
    )
    branches: bool = _define(
        bool,
        False,
        "also continue some texts from the likeliest candidates of some tokens, to see whether the choice matters",
    )
    branch_points: int = _define(
        int,
        4,
        "number of tokens per text to branch at",
        least=0,
        most=1000,
        described="be a whole number from 1 to 1,000 (in a grid, 0 disables branching)",
    )
    branch_length: int = _define(int, 20, "number of tokens of each branch", least=1, most=MOST)
    branch_replicates: int = _define(
        int,
        3,
        "how many branches continue each candidate, each with different random numbers",
        least=1,
        most=64,
    )

    @classmethod
    def collect(cls, values: Mapping[str, Any]) -> "Settings":
        """The settings among ``values`` (a notebook's ``globals()``, say), checked; the others have their defaults."""
        return cls(**{name: values[name] for name in FIELDS if name in values}).check()

    def check(self) -> "Settings":
        """The same settings, each in its normal form (see `normalise`).

        Raises ValueError for an invalid value, if mode and text_column do not go together, or if a run's folder cannot
        be named after one of named_settings.
        """
        values = {name: getattr(self, name) for name in FIELDS}
        for name, value in values.items():
            validate(name, value)
        if self.mode == "score" and not self.text_column:
            raise ValueError("mode=score needs text_column: the column of the data set with the texts to measure")
        if self.mode != "score" and self.text_column:
            raise ValueError(
                f"text_column is '{self.text_column}', but only mode=score measures existing texts: omit "
                "text_column, or set mode=score"
            )
        if self.text_column and self.text_column == (self.prompt_column or "prompt"):
            raise ValueError(
                f"text_column is '{self.text_column}', which is also the column of the prompts: choose another column"
            )
        self.collect_named()
        return replace(self, **{name: normalise(name, value) for name, value in values.items()})

    def collect_named(self) -> dict[str, Any]:
        """The settings that the run's folder is named after, in the order of `FIELDS`; ValueError if one cannot be."""
        names = [name.strip() for name in (self.named_settings or "").split(",")] if self.named_settings else []
        for name in names:
            if len(name.split()) > 1:
                raise ValueError(f"named_settings is {quote(self.named_settings)}: separate names with commas")
            if name and name not in FIELDS:
                raise ValueError(f"named_settings: {check_varying(name)}")
            if problem := _check_nameable(name, names, self):
                raise ValueError(f"named_settings is {quote(self.named_settings)}: {problem}")
        return {name: normalise(name, getattr(self, name)) for name in list_varying() if name in names}

    def describe_measurement(self, **actual: Any) -> dict[str, Any]:
        """What run.json says: the settings that affect what is measured, updated with ``actual`` values.

        ``actual`` are the identities of model and data set, and what "auto" and short data sets became.
        """
        ignored = {"model_revision", "seed"} if self.mode == "score" else {"model_revision", "mode", "text_column"}
        return {name: getattr(self, name) for name in list_deciding() if name not in ignored} | actual


FIELDS: dict[str, Field] = {each.name: each for each in fields(Settings)}
NUMBERS = {int: numbers.Integral, float: numbers.Real}  # includes numpy's numbers
ANALYSES = {  # the options of the analyses, and the whole numbers that each may be
    "resamples": (100, 10**6),  # a 95% interval needs at least as many
    "seed": (0, EXACT),
}


def list_deciding() -> tuple[str, ...]:
    """The names of the settings that affect what is measured: results with others are other results."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["decides"])


def list_grid_parameters() -> tuple[str, ...]:
    """The names of the settings that a grid may set as parameters."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["in_grid"])


def format_results_option(results_dir: str | os.PathLike) -> str:
    """The option of a command, after a space, that names a folder of results; "" for the default, which needs none."""
    name = os.fspath(results_dir)
    return "" if name == Settings.results_dir else f" {shlex.quote(f'--results_dir={name}')}"


def list_varying() -> tuple[str, ...]:
    """The names of the settings of which a grid may list several values, all to be measured.

    Those that affect what is measured, except that a text column makes another data set, and variants are files of
    their own beside the same measurements.
    """
    return tuple(name for name in list_deciding() if name in list_grid_parameters() and name not in SINGLE)


def check_varying(name: str, mode: str = "generate") -> str:
    """Why runs cannot differ in a setting, in words that follow a colon; "" if they can."""
    known = list_varying()
    if name in SINGLE:
        return f"{name} cannot be a list: {SINGLE[name]}"
    if name in list_grid_parameters() and name not in known:
        return f"{name} cannot be a list in a grid: give it one value, without brackets"
    if name not in known:
        return f"unknown setting {quote(name)}" + advise(name, known, f": it must be one of {', '.join(known)}")
    if name == "seed" and not uses_seed(mode):
        return "seed is not used with mode=score: omit it"
    return ""


def _check_nameable(name: str, names: Sequence[str], chosen: Settings) -> str:
    """Why the folder of a run with the ``chosen`` settings cannot be named after ``name``; "" if it can.

    ``names`` are all that it is to be named after.
    """
    if not name:
        return "a name is empty: separate names with single commas"
    if names.count(name) > 1:
        return f"it contains {name} more than once: remove one"
    if name in FIELDS and name not in list_varying():
        return f"runs cannot be named after {name}: omit it"
    if problem := check_varying(name, chosen.mode):
        return problem
    if getattr(chosen, name) is None:
        return f"{name} is not set: set it, or leave it out of named_settings"
    if name == "dtype" and chosen.dtype == "auto":
        types = [choice for choice in FIELDS[name].metadata["choices"] if choice != "auto"]
        known = f"{', '.join(types[:-1])} or {types[-1]}"
        return f"dtype is auto, which stands for a different type on different machines: set it to {known}"
    return ""


def uses_seed(mode: str) -> bool:
    """Whether anything is drawn in a run, so that another seed gives other results."""
    return mode != "score"


def list_values(name: str, values: list) -> list:
    """The values that a grid lists for a setting, each in its normal form.

    ValueError, in one line, for one that is not allowed or is there twice, for an empty list, and for dtype=auto
    beside others, because it becomes one of them.
    """
    if not values:
        raise ValueError(f"{name} is an empty list: give at least one value, or leave it out")
    for value in values:
        if value is None:
            raise ValueError(f"{name} has an empty value in its list: remove it")
        validate(name, value)
    found = [normalise(name, value) for value in values]
    if twice := [value for place, value in enumerate(found) if value in found[:place]]:
        raise ValueError(f"{name} lists {quote(twice[0])} twice: remove one")
    if name == "dtype" and "auto" in found:
        others = join_names(value for value in found if value != "auto")
        advice = f"along with {others}: auto stands for one of the other types, depending on the machine, so remove it"
        raise ValueError(f"dtype lists auto {advice if others else 'alone: set dtype: auto without a list'}")
    return found


def fill_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run.json; one that did not exist yet when it was written has the value that it stood for then.

    That is its default unless it says otherwise. Model and data set get no default: every run records its own.
    """
    known = set(list_deciding()) & set(list_grid_parameters())
    return {name: FIELDS[name].default for name in FIELDS if name in known} | dict(found)


def parse(name: str, text: str) -> Any:
    """The value of a setting that a text on the command line stands for; `validate` decides whether it is allowed.

    A text that is no number stays one, so that every way of giving settings refuses it in the same words.
    """
    try:
        return FIELDS[name].metadata["type"](text)
    except ValueError:
        return text


def normalise(name: str, value: Any) -> Any:
    """A valid value in the form that runs use: Python's numbers, days as text, the user's home for ``~``."""
    facts = FIELDS[name].metadata
    if facts["is_path"]:
        return os.path.expanduser(value)
    if facts["are_variants"]:
        return variants.normalise(value)
    if isinstance(value, date):
        return value.isoformat()
    return facts["type"](value) if isinstance(value, NUMBERS.get(facts["type"], ())) else value


def validate(name: str, value: Any) -> None:
    """Raises ValueError with one line for an invalid value of a setting, KeyError for an unknown setting."""
    facts = FIELDS[name].metadata
    if (value is None and FIELDS[name].default is None) or (isinstance(value, str) and value in facts["choices"]):
        return
    if facts["are_variants"]:
        _check_variants(name, value)
    elif facts["type"] is str and not (facts["choices"] or facts["pattern"] or facts["is_date"]):
        check_text(name, value, facts["is_path"])
    elif not _is_allowed(facts, value):
        close = suggest(SHORT.get(value.lower(), value), facts["choices"]) if isinstance(value, str) else ""
        remark = _explain_text(facts, value) + close
        raise ValueError(f"{name} is {quote(value)}{remark}: it must {describe_range(name)}")


def _explain_text(facts: Mapping[str, Any], value: Any) -> str:
    """A remark on a number that is text, as 1e-1 is in YAML, which wants 1.0e-1; "" if the value is none."""
    if not isinstance(value, str) or facts["type"] not in NUMBERS:
        return ""
    try:
        number = facts["type"](value)
    except ValueError:
        return ""
    # every digit, and with a point before an exponent, without which YAML takes it for text again
    written = re.sub(r"^(-?\d+)e", r"\1.0e", repr(number))
    return f", which is read as text (write {written})" if _is_allowed(facts, number) else ""


def _check_variants(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            variants.parse(value)
            return
        except ValueError as error:
            if value.strip():
                raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name} is {quote(value)}: it must {describe_range(name)}")


def check_text(name: str, value: Any, is_path: bool = False) -> None:
    """Raises ValueError, in one line, unless ``value`` is text that can be a name; ``is_path``: or the name of a file.

    Control characters, such as NUL, and lone surrogates are in no name that can be typed, printed and saved.
    """
    wrong = None
    if isinstance(value, numbers.Number):
        wrong = "be text: put it in quotation marks"
    elif not isinstance(value, str):
        wrong = "be the path of one folder" if name == "results_dir" and isinstance(value, list) else "be text"
    elif not value.strip():
        wrong = "not be empty"
    elif any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
        wrong = "not contain control characters, line breaks or bytes that are not UTF-8"
    elif len(value) > LONGEST:
        wrong = f"have at most {LONGEST:,} characters"
    elif is_path and any(len(part.encode()) > LONGEST_PART for part in value.split("/")):
        wrong = f"have at most {LONGEST_PART} bytes in each part of a path"
    elif is_path and os.path.expanduser(value).startswith("~"):
        own = quote(f"./{value}")
        wrong = f"not begin with ~ and a name that no user has; for a file or folder of that name, write {own}"
    if wrong:
        raise ValueError(f"{name} is {quote(value)}: it must {wrong}")


def check_whole(name: str, value: Any, least: int, most: int = MOST) -> None:
    """Raises ValueError, in one line, unless ``value`` is a whole number from ``least`` to ``most``."""
    facts = {"type": int, "is_date": False, "least": least, "above": None, "most": most}
    if not _is_allowed(facts, value):
        raise ValueError(f"{name} is {quote(value)}: it must be a whole number from {least:,} to {most:,}")


_WRITER = reprlib.Repr()  # writes a few entries of a few levels: an alias in YAML can stand for a million
_WRITER.maxstring = _WRITER.maxlong = _WRITER.maxother = 5000


def quote(value: Any) -> str:
    """A value as Python writes it, in one line and shortened, for a message."""
    try:
        text = " ".join(_WRITER.repr(value).split())
    except (ValueError, RecursionError):  # Python writes no number of more than 4300 digits
        text = f"a very large {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text):,} characters)"


def _is_allowed(facts: Mapping[str, Any], value: Any) -> bool:
    kind = facts["type"]
    if facts["is_date"]:
        return _is_date(value)
    if not isinstance(value, NUMBERS.get(kind, kind)) or (isinstance(value, bool) and kind is not bool):
        return False
    if kind in NUMBERS:
        return _is_in_range(facts, value)
    if facts["pattern"]:
        return re.fullmatch(facts["pattern"], value) is not None
    return not facts["choices"]  # one of them has been found before


def _is_date(value: Any) -> bool:
    """Whether a value is a day, or text that is one: YAML reads 2024-07-26 without quotation marks as a day."""
    if type(value) is date:
        return True
    try:
        return date.fromisoformat(value).isoformat() == value
    except (TypeError, ValueError):
        return False


def _is_in_range(facts: Mapping[str, Any], value: float) -> bool:
    least, above, most = facts["least"], facts["above"], facts["most"]
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating-point numbers
        finite = False
    return (
        finite
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )


def describe_range(name: str) -> str:
    """What a setting must be, to complete a sentence: "be raw or chat", "be a number in (0, 1]"."""
    facts = FIELDS[name].metadata
    kind, choices, least, above, most = (facts[key] for key in ("type", "choices", "least", "above", "most"))
    if facts["is_date"]:
        return "be a date in the form YYYY-MM-DD, such as 2024-07-26"
    if facts["described"]:
        return facts["described"]
    words = list(choices)
    if kind is int:
        words.append(f"a whole number from {least:,} to {most:,}")
    elif kind is float:
        words.append(
            f"a number in ({above}, {most}]" if most is not None else f"a finite positive number, at least {least}"
        )
    elif kind is bool:
        words.append("True or False")
    elif not choices:
        words.append("text")
    return "be " + " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def format_reference() -> str:
    """The table of all settings, in Markdown, for the book."""
    head = "| setting | type | default | allowed | affects the results | meaning |\n|---|---|---|---|---|---|\n"
    rows = []
    for name, each in FIELDS.items():
        names = ", ".join(f"`{word}`" for word in (name, *each.metadata["aliases"]))
        allowed = describe_range(name).removeprefix("be ")
        decides = "yes" if each.metadata["decides"] else "no"
        text = each.metadata["help"].replace("<", "\\<").replace("[", "\\[")
        kind = each.metadata["type"].__name__
        rows.append(f"| {names} | {kind} | `{each.default}` | {allowed} | {decides} | {text} |")
    return head + "\n".join(rows) + "\n"
