"""What of a grid is measured, what is not, and why.

Contract: decides by the files of the cells and their logs alone, so that it says the same whoever
measured: the graph, a command by hand or a notebook. Importing it is quick.
"""

import functools
import hashlib
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from nucleoscope.settings import fill_defaults, list_deciding
from nucleoscope.store import results
from nucleoscope.workflow import grid, logs

LOGS = "logs"  # the folder of the logs, beside those of the data sets
MADE = ("analyses", "index", "theory", "twelve", "book")  # from all cells; their logs lie in LOGS itself
FILES = (results.MEASUREMENTS, results.RUN_INFO, results.NOTEBOOK)
SPECIAL = ("n_prompts", "seed", "dtype", "model_revision")  # compared where the grid and the mode leave no doubt
COMPARED = tuple(name for name in list_deciding() if name not in SPECIAL)


def log_file(folder: str | Path) -> Path:
    """The log of a cell's folder."""
    folder = Path(folder)
    return folder.parent.parent / LOGS / folder.parent.name / f"{folder.name}.log"


def lacking(folder: str | Path, entry: grid.Entry) -> str | None:
    """What a cell lacks of what its grid asks for, in one line; None where it is measured so.

    Files that stand there with other settings count as lacking, whoever made them. What the grid
    leaves to "auto" agrees with everything.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        settings = results.load_info(folder).get("settings")
    except ValueError as error:
        return str(error)
    if not isinstance(settings, dict):
        return f"'{folder / results.RUN_INFO}' holds no settings"
    wanted = grid.DEFAULTS | entry.parameters
    differing = _differing(folder, wanted, settings)
    if differing:
        return f"{differing[0]} is {differing[1]!r} there and {differing[2]!r} in the grid"
    return _outdated(folder, wanted, settings)


def _differing(folder: Path, wanted: dict[str, Any], settings: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first parameter that decides which tokens are measured and differs: its name, the value there, here."""
    settings = fill_defaults(settings)
    pairs = [(name, settings.get(name), wanted.get(name)) for name in COMPARED]
    if wanted["mode"] == "generate":
        pairs.append(("seed", settings.get("seed"), wanted["seed"]))
    if wanted["dtype"] != "auto":
        pairs.append(("dtype", settings.get("dtype"), wanted["dtype"]))
    commit = (settings.get("model") or {}).get("revision")
    if commit and re.fullmatch("[0-9a-f]{40}", wanted.get("model_revision") or ""):  # a branch may stand for any
        pairs.append(("model_revision", commit, wanted["model_revision"]))
    content = (settings.get("dataset") or {}).get("sha256")
    if content and (now := _content(wanted["dataset_name"])):
        pairs.append(("dataset", content, now))
    number = settings.get("n_prompts")
    # A short data set has fewer prompts than were asked for.
    if number != wanted["n_prompts"] and _parameters(folder).get("n_prompts") != wanted["n_prompts"]:
        pairs.append(("n_prompts", number, wanted["n_prompts"]))
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def _content(dataset: str) -> str | None:
    """The hash of a data set that is a file here; None for the Hub's, and where it cannot be read."""
    from nucleoscope.data import prompts

    try:
        path = prompts.locate(dataset)[0]
        return _hash(path, path.stat().st_mtime_ns)
    except (ValueError, OSError):
        return None


@functools.lru_cache
def _hash(path: Path, modified: int) -> str:
    """The hash of a file, computed once for all cells as long as it is not ``modified``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _outdated(folder: Path, wanted: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """What the notebook was given and the measurements beside it were not; they may have come after it.

    A run that fails between the two leaves an older notebook there.
    """
    asked = _parameters(folder)
    names = [*COMPARED, "n_prompts"]
    names += ["seed"] if wanted["mode"] == "generate" else []
    pairs = [(name, asked[name], wanted.get(name)) for name in names if name in asked]
    if asked.get("dtype", "auto") != "auto":
        pairs.append(("dtype", asked["dtype"], settings.get("dtype")))
    found = next((pair for pair in pairs if pair[1] != pair[2]), None)
    return f"{found[0]} is {found[1]!r} in {results.NOTEBOOK} and {found[2]!r} in the grid" if found else None


def _parameters(folder: Path) -> dict[str, Any]:
    """The parameters that the executed notebook was given; none where it was not run by papermill."""
    try:
        notebook = json.loads((folder / results.NOTEBOOK).read_text(encoding="utf-8"))
        return dict(notebook["metadata"]["papermill"]["parameters"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def summary(config: dict[str, Any]) -> str:
    """How many cells of a grid are measured, and for each that is not: why, and where its log is.

    Likewise for the analyses, the pages and the book, where their last run failed.
    """
    cells = grid.cells(config)
    open_cells = {folder: why for folder, entry in cells.items() if (why := lacking(folder, entry))}
    lines = [
        f"{len(cells) - len(open_cells)} of {len(cells)} cells are measured" + (", these are not:" * bool(open_cells))
    ]
    for folder, why in open_cells.items():
        log, (dataset, model) = log_file(folder), Path(folder).parts[-2:]
        lines.append(f"  {model} on {dataset}: {logs.reason(log, why)}")
        if results.measurements(Path(folder)):
            lines.append(f"    earlier results stay there, and are analysed: {why}")
        if log.is_file():
            lines.append(_where(log))
    for log in _failed(Path(config["results_dir"], LOGS)):
        lines += [f"{log.stem} failed when it was last made: {logs.reason(log)}", _where(log)]
    lines.append(f"logs: {config['results_dir']}/{LOGS}/<dataset>/<model>.log")
    return "\n".join(lines)


def _where(log: Path) -> str:
    """A log and when it was written: its reason may be older than the grid."""
    written = datetime.fromtimestamp(log.stat().st_mtime)
    return f"    log: {log} ({written:%Y-%m-%d %H:%M})"


def _failed(folder: Path) -> list[Path]:
    """The logs of what is made from all cells whose last run did not end well."""
    files = [folder / f"{name}.log" for name in MADE]
    return [log for log in files if log.is_file() and logs.failed(log)]
