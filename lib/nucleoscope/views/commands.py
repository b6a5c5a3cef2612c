"""Commands as pages show them: ready to paste into a shell, in lines that fit a page.

Contract: text only; nothing is run. What a run was measured with is read from its run.json.
"""

import os
import shlex
from dataclasses import asdict
from pathlib import Path

from nucleoscope.settings import Settings, fill_defaults, format_results_option, list_deciding
from nucleoscope.store import results
from nucleoscope.store.run_names import split

PYTHON = ".venv/bin/python"
WIDE = 76  # letters of a line of code that has room beside the list of a page's sections, on a window of 1280 pixels
# What a command does not repeat: dtype is recorded as it was resolved, variants are beside the same measurements.
LEFT_OUT = ("dtype", "variants")


def find_written(results_dir: str | os.PathLike, dataset: str | None = None) -> Path | None:
    """The first run in ``results_dir`` whose texts its model wrote, of one data set or any; None if there is none."""
    for folder in results.list_runs(results_dir) if results.locate_folder(results_dir).is_dir() else []:
        try:
            list_run_options(folder)
            settings = results.read_recorded(folder)
        except (OSError, ValueError, KeyError):  # a page with another command is better than none
            continue
        if settings.get("mode", "generate") == "generate" and dataset in (None, settings["dataset_name"]):
            return folder
    return None


def list_run_options(folder: Path, mode: str = "generate") -> list[str]:
    """The options that name a measured run: its model, data set and settings other than the defaults.

    ``mode`` "score": those of a run that reads texts with the same settings, which has no seed. The revision of a model
    on the Hub is one of them, because another one is another model. OSError, ValueError or KeyError if its run.json
    does not say them.
    """
    settings, named = fill_defaults(results.read_recorded(folder)), split(folder.name)[1]
    defaults = asdict(Settings())
    settings["model_revision"] = settings.get("model", {}).get("revision")
    unused = ("seed",) if mode == "score" else ()
    shown = {name: settings[name] for name in ("model_name", "dataset_name")}
    for name in list_deciding():
        value = settings.get(name)
        if name not in (*LEFT_OUT, *shown, *unused) and value is not None and value != defaults[name]:
            shown[name] = value
    shown |= {name: value for name, value in named.items() if name not in unused}
    if kept := [name for name in named if name not in unused]:
        shown["named_settings"] = ",".join(kept)
    return [f"--{name}={shlex.quote(str(value))}" for name, value in shown.items()]


def format_pipeline(*options: str, results_dir: str | os.PathLike = Settings.results_dir) -> str:
    """The command that measures a run, with ``options`` and that of ``results_dir``: lines, all but the last with a
    backslash at their end.

    An option is never broken, however long it is.
    """
    lines = [f"{PYTHON} scripts/correlation_pipeline.py"]
    for option in filter(None, [*options, format_results_option(results_dir).strip()]):
        fits = len(lines) > 1 and len(f"{lines[-1]} {option} \\") <= WIDE
        lines[-1:] = [f"{lines[-1]} {option}"] if fits else [lines[-1], f"    {option}"]
    return " \\\n".join(lines)
