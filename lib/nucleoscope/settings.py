"""All settings of a run: name, type, default, choices or range, help text, and whether it affects the tokens.

Contract: this is the only list of settings. The command line, the grid schema, the validation, the
comparison with an existing run.json, the explorer's fields and the reference table are derived from it,
by name; a test checks that the notebooks' parameters cells agree with it. Importing this module is fast.
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import date
from typing import Any


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
    live: str = "",
    is_date: bool = False,
) -> Any:
    """A field of `Settings`.

    ``choices``: the allowed values of a string; for a number, strings that are allowed as well. A number
    must be at least ``least``, greater than ``above`` and at most ``most``. ``decides``: whether the setting
    affects which tokens are measured. ``in_grid``: whether a grid may set it as a parameter. ``aliases``:
    other names for it on the command line. ``live``: its name in the live notebook, if that has a field for
    it. ``is_date``: a string that must be a date in ISO format.
    """
    metadata = {"type": kind, "choices": choices, "least": least, "above": above, "most": most}
    metadata |= {
        "is_date": is_date,
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
        live="model",
    )
    dataset_name: str = _define(
        str,
        "math",
        "data set: gsm8k, writingprompts, xsum, math, stories, articles, or a .jsonl, .csv, .parquet or .txt file",
        decides=True,
        in_grid=False,
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
        decides=True,
        aliases=("n_samples",),
    )
    max_tokens: int = _define(
        int, 100, "maximum number of tokens generated or measured per prompt", least=1, decides=True, live="max_tokens"
    )
    top_p: float = _define(
        float,
        0.9,
        "probability mass that the nucleus must reach, in (0, 1]",
        above=0,
        most=1,
        decides=True,
        live="top_p",
    )
    temperature: float = _define(
        float,
        1.0,
        "value to divide the logits by before measuring and sampling",
        above=0,
        decides=True,
        live="temperature",
    )
    seed: int = _define(int, 0, "random seed for sampling; not used with mode=score", decides=True, live="seed")
    prompt_format: str = _define(
        str,
        "raw",
        "whether the model gets prompts unchanged (raw) or in its chat template (chat)",
        choices=("raw", "chat"),
        decides=True,
        live="format",
    )
    template_date: str = _define(
        str,
        "2024-07-26",  # what Llama 3.1's template itself assumes where it has no clock
        "the day that a chat template with today's date takes for today",
        decides=True,
        live="date",
        is_date=True,
    )
    prompt_column: str | None = _define(
        str,
        None,
        "column that contains the prompts, if the data set is a file; by default, the column named prompt",
        decides=True,
    )
    batch_size: int | str = _define(int, "auto", "number of prompts per batch, or auto", choices=("auto",), least=1)
    dtype: str = _define(
        str,
        "auto",
        "data type of the model's weights",
        choices=("auto", "float32", "bfloat16", "float16"),
        decides=True,
    )
    device: str = _define(str, "auto", "device to run on: cpu, cuda, cuda:1, ..., balanced (all GPUs), or auto")
    results_dir: str = _define(
        str,
        "results",
        "results folder; a run is saved in its subfolder <dataset>[-<text_column>]/<model>/",
        in_grid=False,
    )
    overwrite: bool = _define(bool, False, "replace existing results that have other settings", in_grid=False)
    model_revision: str | None = _define(
        str,
        None,
        "commit from which to load all files of a model on the Hub; by default, the latest",
        decides=True,
        live="revision",
    )
    skip_check: bool = _define(
        bool, False, "do not try the model on two short prompts first, which finds out how prompts can be batched"
    )
    trust_remote_code: bool = _define(
        bool, False, "run the Python code that comes with the model; read it first", live="trust_remote_code"
    )

    @classmethod
    def collect(cls, values: Mapping[str, Any]) -> "Settings":
        """The settings among ``values`` (a notebook's ``globals()``, say), checked; the others have their defaults."""
        return cls(**{name: values[name] for name in FIELDS if name in values}).check()

    def check(self) -> "Settings":
        """Returns itself; raises ValueError for an invalid value, or if mode and text_column do not go together."""
        for name in FIELDS:
            validate(name, getattr(self, name))
        if self.mode == "score" and not self.text_column:
            raise ValueError("mode=score needs text_column: the column of the data set with the texts to measure")
        if self.mode != "score" and self.text_column:
            raise ValueError(f"text_column is '{self.text_column}', but only mode=score measures existing texts")
        return self

    def describe_measurement(self, **actual: Any) -> dict[str, Any]:
        """What run.json says: the settings that affect which tokens are measured, updated with ``actual`` values.

        ``actual`` are the identities of model and data set, and what "auto" and short data sets became.
        """
        ignored = {"model_revision", "seed"} if self.mode == "score" else {"model_revision", "mode", "text_column"}
        return {name: getattr(self, name) for name in list_deciding() if name not in ignored} | actual


FIELDS: dict[str, Field] = {each.name: each for each in fields(Settings)}
NUMBERS = {int: numbers.Integral, float: numbers.Real}  # includes numpy's numbers


def list_deciding() -> tuple[str, ...]:
    """The names of the settings that affect which tokens are measured."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["decides"])


def list_grid_parameters() -> tuple[str, ...]:
    """The names of the settings that a grid may set as parameters."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["in_grid"])


def fill_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run.json; one that did not exist yet when it was written has its default.

    Model and data set get no default: every run records its own.
    """
    known = set(list_deciding()) & set(list_grid_parameters())
    return {name: FIELDS[name].default for name in FIELDS if name in known} | dict(found)


def validate(name: str, value: Any) -> None:
    """Raises ValueError with one line for an invalid value of a setting, KeyError for an unknown setting."""
    facts = FIELDS[name].metadata
    kind, choices = facts["type"], facts["choices"]
    if (value is None and FIELDS[name].default is None) or (isinstance(value, str) and value in choices):
        return
    right_type = isinstance(value, NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
    if not right_type and not choices:
        raise ValueError(f"{name} is {value!r}: it must be of type {kind.__name__}")
    if facts["is_date"] and not _is_date(value):
        raise ValueError(f"{name} is {value!r}: it must {describe_range(name)}")
    if not right_type or (kind is str and choices) or (kind in NUMBERS and not _is_in_range(facts, value)):
        raise ValueError(f"{name} is {value!r}: it must {describe_range(name)}")


def _is_date(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def _is_in_range(facts: Mapping[str, Any], value: float) -> bool:
    least, above, most = facts["least"], facts["above"], facts["most"]
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )


def describe_range(name: str) -> str:
    """What a setting must be, to complete a sentence: "be raw or chat", "be in (0, 1]"; "" if anything is allowed."""
    facts = FIELDS[name].metadata
    choices, least, above, most = (facts[key] for key in ("choices", "least", "above", "most"))
    if facts["is_date"]:
        return "be a date, such as 2024-07-26"
    if above is not None:
        return f"be in ({above}, {most}]" if most is not None else f"be a finite number above {above}"
    words = list(choices) + ([f"at least {least}"] if least is not None else [])
    if not words:
        return ""
    return "be " + " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def format_reference() -> str:
    """The table of all settings, in Markdown, for the book."""
    head = "| setting | type | default | allowed | affects the tokens | meaning |\n|---|---|---|---|---|---|\n"
    rows = []
    for name, each in FIELDS.items():
        names = ", ".join(f"`{word}`" for word in (name, *each.metadata["aliases"]))
        allowed = describe_range(name).removeprefix("be ") or "-"
        decides = "yes" if each.metadata["decides"] else "no"
        text = each.metadata["help"].replace("<", "\\<").replace("[", "\\[")
        kind = each.metadata["type"].__name__
        rows.append(f"| {names} | {kind} | `{each.default}` | {allowed} | {decides} | {text} |")
    return head + "\n".join(rows) + "\n"
