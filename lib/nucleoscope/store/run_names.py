"""What differs between runs of one model on one data set, in the name of a run's folder: ``<model>@top_p=0.95@seed=1``.

Contract: names only; no file is read. A run has such a name if its grid lists several values of a setting, or if it was
measured with named_settings. "@" and "=" need no quotation marks in a shell, and are in no name of a model on the Hub;
Snakemake, which is given a run's folder as a wildcard when it starts a job of a cluster, would divide it at a comma.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from nucleoscope.settings import list_varying, parse, quote, validate

MARK = "@"  # begins each setting in a folder's name
UNSAFE = re.compile(r"[^\w.+-]")  # in a value; becomes ~ and the character's number, as in the addresses of the book
ENCODED = re.compile(r"~([0-9a-f]{1,6})~")


def order_model(name: str) -> tuple:
    """What names of models' folders are sorted by: the model, then the values of its settings as numbers."""
    model, named = split(name)
    places = {setting: place for place, setting in enumerate(list_varying())}
    return model, tuple((places[setting], value) for setting, value in named.items())


def order_run(key: tuple[str, str]) -> tuple:
    """What runs, (model, data set) by their folders, are sorted by: those with other settings are side by side."""
    model, values = order_model(key[0])
    return model, key[1], values


def format_suffix(named: Mapping[str, Any]) -> str:
    """The end of the name of a run's folder that says which value each of some settings has; "" without any."""
    return "".join(f"{MARK}{name}={format_value(value)}" for name, value in named.items())


def format_value(value: Any) -> str:
    """A setting's value in a folder's name: two values never become one."""
    text = f"{value!r}".removesuffix(".0") if isinstance(value, float) else str(value)
    return UNSAFE.sub(lambda found: f"~{ord(found[0]):x}~", text)


def split(name: str) -> tuple[str, dict[str, Any]]:
    """The model and the settings in the name of a run's folder; of a name without settings, the name and nothing."""
    model, found = name, {}
    while True:
        rest, _, last = model.rpartition(MARK)
        setting, _, text = last.partition("=")
        if not (rest and text and setting in list_varying() and setting not in found):
            break
        value = parse(setting, ENCODED.sub(lambda code: chr(int(code[1], 16)), text))
        try:
            validate(setting, value)
        except ValueError:
            break
        model, found = rest, {setting: value, **found}
    return model, found


def describe_settings(named: Mapping[str, Any]) -> str:
    """Settings for readers: "top_p 0.95, seed 1"."""
    return ", ".join(f"{name} {format_setting(value)}" for name, value in named.items())


def format_setting(value: Any) -> str:
    """A setting's value for readers: a number without needless decimals, text as it is."""
    return f"{value!r}".removesuffix(".0") if isinstance(value, float) else str(value)


def describe_model(name: str) -> str:
    """A model for readers, by the name of its folder: "SmolLM2-135M-Instruct, top_p 0.95"."""
    return ", ".join(filter(None, divide_model(name)))


def divide_model(name: str) -> tuple[str, str]:
    """The two parts of `describe_model`: the model, and the settings, which may be ""."""
    model, named = split(name)
    return model, describe_settings(named)


def describe_run(name: str, dataset: str) -> str:
    """A run for readers, by the names of its folders: "SmolLM2-135M-Instruct on math, top_p 0.95"."""
    model, named = divide_model(name)
    return ", ".join(filter(None, (f"{model} on {dataset}", named)))


def choose_model(wanted: str, names: Collection[str]) -> str:
    """One of the names of models' folders: the one that is wanted, or else the first of that model, or else the first.

    ``wanted`` may be a model's full name on the Hub, or a folder.
    """
    wanted = wanted.rstrip("/").rsplit("/", 1)[-1]
    same = [name for name in names if split(name)[0] == wanted]
    return wanted if wanted in names else min(same or names, key=order_model)


def describe_others(name: str, names: Collection[str]) -> str:
    """A sentence on runs of the same model with other settings; "" if there are none."""
    model = split(name)[0]
    parts = [divide_model(other) for other in sorted(names, key=order_model) if other != name]
    others = [settings for other, settings in parts if other == model and settings]
    return f"It was also measured with {'; '.join(dict.fromkeys(others))}." if others else ""


def check_model(name: str) -> None:
    """Raises ValueError, in one line, for the short name of a model that ends as if it were a run's with settings."""
    model, named = split(name)
    if named:
        raise ValueError(
            f"the model's name {quote(name)} would be read as {quote(model)} with {describe_settings(named)}: rename "
            "its folder; or, if you mean these settings, omit them from the model's name, and use named_settings (in a "
            "grid, a list of values)"
        )
