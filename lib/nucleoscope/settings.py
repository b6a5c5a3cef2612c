"""Every setting of a run, once: its name, type, default, choices or range, help text, and what it decides.

Contract: this is the only list of settings. The command line, the schema of a grid, the checks, the
comparison with an older run.json, the explorer's fields and the reference table are derived from it,
by name; a test holds the notebooks' parameters cells equal to it. Importing it is quick.
"""

import math
import numbers
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any


def _setting(
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
) -> Any:
    """A field of `Settings`.

    ``choices``: all that a text may be; of a number, the texts that it may be instead. A number is at
    least ``least``, greater than ``above`` and at most ``most``. ``decides``: whether it decides which
    tokens are measured. ``in_grid``: whether a grid may set it as a parameter. ``aliases``: other names
    on the command line.
    """
    metadata = {"type": kind, "choices": choices, "least": least, "above": above, "most": most}
    metadata |= {"help": help, "decides": decides, "in_grid": in_grid, "aliases": aliases}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The settings of a run with their defaults, which are also ``Settings.max_tokens`` and so on.

    ``notebooks/run.py`` has prompt_format=chat, which suits the packaged model; the default is the study's.
    """

    model_name: str = _setting(
        str,
        "SmolLM2-135M-Instruct",
        "Hub id, folder, .gguf file, or the packaged default",
        decides=True,
        in_grid=False,
    )
    dataset_name: str = _setting(
        str, "math", "gsm8k, writingprompts, xsum, math, stories, articles, or a file", decides=True, in_grid=False
    )
    mode: str = _setting(
        str, "generate", "measure what the model writes, or a text", choices=("generate", "score"), decides=True
    )
    text_column: str | None = _setting(
        str, None, "with mode=score: column of the data set that holds the texts, one behind each prompt", decides=True
    )
    n_prompts: int = _setting(
        int, 100, "the first so many prompts of the data set", least=1, decides=True, aliases=("n_samples",)
    )
    max_tokens: int = _setting(int, 100, "tokens written or measured for each prompt, at most", least=1, decides=True)
    top_p: float = _setting(float, 0.9, "mass of the nucleus, in (0, 1]", above=0, most=1, decides=True)
    temperature: float = _setting(
        float, 1.0, "what the logits are divided by before they are measured and sampled from", above=0, decides=True
    )
    seed: int = _setting(int, 0, "of the sampling; mode=score has none", decides=True)
    prompt_format: str = _setting(
        str, "raw", "as it is, or in the model's template", choices=("raw", "chat"), decides=True
    )
    prompt_column: str | None = _setting(
        str, None, "column of a file that holds the prompts; None means prompt", decides=True
    )
    batch_size: int | str = _setting(int, "auto", "prompts worked on together, or auto", choices=("auto",), least=1)
    dtype: str = _setting(
        str, "auto", "of the weights", choices=("auto", "float32", "bfloat16", "float16"), decides=True
    )
    device: str = _setting(str, "auto", "cpu, cuda, cuda:1, ..., balanced (all GPUs), or auto")
    results_dir: str = _setting(str, "results", "where <dataset>[-<text_column>]/<model>/ is made", in_grid=False)
    overwrite: bool = _setting(bool, False, "replace results there that were made with other settings", in_grid=False)
    model_revision: str | None = _setting(
        str,
        None,
        "commit of a model on the Hub that all its files are taken from; None means the newest",
        decides=True,
    )
    trust_remote_code: bool = _setting(bool, False, "run code that comes with the model; read it first")


FIELDS: dict[str, Field] = {each.name: each for each in fields(Settings)}
NUMBERS = {int: numbers.Integral, float: numbers.Real}  # numpy's numbers are numbers too


def list_defaults() -> dict[str, Any]:
    """{name: default} of all settings."""
    return {name: each.default for name, each in FIELDS.items()}


def list_deciding() -> tuple[str, ...]:
    """The names of the settings that decide which tokens are measured."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["decides"])


def list_grid_parameters() -> tuple[str, ...]:
    """The names of the settings that a grid may have among its parameters."""
    return tuple(name for name, each in FIELDS.items() if each.metadata["in_grid"])


def fill_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run.json, where a setting that the run did not know yet has its default.

    Model and data set have none here: whatever was measured has a name.
    """
    known = set(list_deciding()) & set(list_grid_parameters())
    return {name: FIELDS[name].default for name in FIELDS if name in known} | dict(found)


def validate(name: str, value: Any) -> None:
    """Raises ValueError, in one line, for a value that a setting cannot have; KeyError for an unknown name."""
    facts = FIELDS[name].metadata
    kind, choices = facts["type"], facts["choices"]
    if (value is None and FIELDS[name].default is None) or (isinstance(value, str) and value in choices):
        return
    right_type = isinstance(value, NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
    if not right_type and not choices:
        raise ValueError(f"{name} is {value!r}: it must be of type {kind.__name__}")
    if not right_type or (kind is str and choices) or (kind in NUMBERS and not _is_in_range(facts, value)):
        raise ValueError(f"{name} is {value!r}: it must {describe_range(name)}")


def _is_in_range(facts: Mapping[str, Any], value: float) -> bool:
    least, above, most = facts["least"], facts["above"], facts["most"]
    return (
        math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )


def describe_range(name: str) -> str:
    """What a setting must be, as the end of a sentence: "be raw or chat", "lie in (0, 1]"; "" for anything."""
    facts = FIELDS[name].metadata
    choices, least, above, most = (facts[key] for key in ("choices", "least", "above", "most"))
    if above is not None:
        return f"lie in ({above}, {most}]" if most is not None else f"be a finite number above {above}"
    words = list(choices) + ([f"at least {least}"] if least is not None else [])
    if not words:
        return ""
    return "be " + (" or ".join(words) if len(words) < 3 else ", ".join(words))


def format_reference() -> str:
    """The table of all settings, in Markdown, for the book."""
    head = "| setting | type | default | allowed | decides the tokens | what it is |\n|---|---|---|---|---|---|\n"
    rows = []
    for name, each in FIELDS.items():
        names = ", ".join(f"`{word}`" for word in (name, *each.metadata["aliases"]))
        allowed = describe_range(name).removeprefix("be ").removeprefix("lie ") or "-"
        decides = "yes" if each.metadata["decides"] else "no"
        text = each.metadata["help"].replace("<", "\\<").replace("[", "\\[")
        kind = each.metadata["type"].__name__
        rows.append(f"| {names} | {kind} | `{each.default}` | {allowed} | {decides} | {text} |")
    return head + "\n".join(rows) + "\n"
