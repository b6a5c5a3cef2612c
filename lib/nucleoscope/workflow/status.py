"""Which runs of a grid are measured, which are not, and why.

Contract: decides by the files of the runs and their logs alone, so that it says the same whoever
measured: the graph, a command by hand or a notebook. Importing it is quick.

A job of the graph leaves a status file beside its results, however it ended: it says whether the
job succeeded, and else why not. That lets the graph continue with everything else.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nucleoscope.atomic import hash_file, write_json
from nucleoscope.names import escape_line
from nucleoscope.settings import fill_defaults, list_deciding
from nucleoscope.store import branches, context, integrity, results, run_names, variants
from nucleoscope.variants import NONE
from nucleoscope.wording import MEASURE_AGAIN
from nucleoscope.workflow import grid, logs

LOGS = "logs"  # the folder of the logs, beside those of the data sets
COMBINED_PAGES = ("index", "theory", "two_texts", "twelve", "choice")  # notebooks about all runs, pages of the book
COMBINED = ("analyses", *COMBINED_PAGES, "book")  # made from all runs; their logs are in LOGS itself
FILES = (results.MEASUREMENTS, results.RUN_INFO)
SPECIAL = ("n_prompts", "seed", "dtype", "model_revision")  # compared only if grid and mode leave no doubt
COMPARED = tuple(name for name in list_deciding() if name not in SPECIAL)
NAMED = 10  # runs in a line of the report
SUCCEEDED, FAILED, REFUSED = "succeeded", "failed", "not started"  # how a job ended
AGAIN = "run the grid again"
# what the report says of a run that is not measured, around why; the last one where that says it all
ABSENT, DAMAGED, OTHER, PLAIN = "not started ({})", "damaged: {}", "measured with other settings ({})", "{}"


def locate_log(folder: str | Path, job: str = results.MEASURE) -> Path:
    """The log of one of the jobs of a run's folder."""
    folder = Path(folder)
    ending = "log" if job == results.MEASURE else f"{job}.log"
    return folder.parent.parent / LOGS / folder.parent.name / f"{folder.name}.{ending}"


def locate_status(folder: str | Path, job: str = results.MEASURE) -> Path:
    """The status file of one of the jobs of a run's folder."""
    return Path(folder, f"{job}.status.json")


def write_status(path: Path, problem: str | None, started: bool = True) -> None:
    """Writes a job's status file: ``problem`` says in one line why the job failed; None, that it succeeded.

    ``started``: false if the job could not even be started.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"state": FAILED if started else REFUSED, "problem": problem} if problem else {"state": SUCCEEDED})


def read_problem(path: Path) -> str | None:
    """Why the job of a status file failed; None if it succeeded or has no status file."""
    return _read_status(path).get("problem")


def _read_status(path: Path) -> dict[str, str]:
    """The state and, unless it is SUCCEEDED, the problem in a status file; both are missing if there is no file."""
    if not os.path.exists(path):
        return {}
    if os.path.isdir(path):
        return {"state": FAILED, "problem": f"'{path}' is a folder: move it out of the way, then run the grid again"}
    try:
        found = results.read_json(path)
    except OSError as error:  # no permission, for instance
        return {"state": FAILED, "problem": str(error)}
    except ValueError:
        found = {}
    state, problem = found.get("state"), found.get("problem")
    if state == SUCCEEDED:
        return {"state": state}
    if state in (FAILED, REFUSED) and isinstance(problem, str) and problem:
        return {"state": state, "problem": problem}
    return {"state": FAILED, "problem": f"'{path}' does not say how the job ended: run the grid again"}


def find_missing(folder: str | Path, entry: grid.Entry) -> str | None:
    """What is missing or differs, in one line, if a run is not measured as its grid asks; else None.

    Results with other settings count as missing, no matter who measured them. A setting that the grid
    leaves at "auto" matches every value.
    """
    return _examine(Path(folder), entry)[1]


def _examine(folder: Path, entry: grid.Entry) -> tuple[str, str | None]:
    """What the report says around why a run is not measured, and why; None if it is."""
    try:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            return ABSENT if results.MEASUREMENTS in missing else DAMAGED, f"{missing[0]} is missing"
        if damage := integrity.find_damage(folder / results.MEASUREMENTS):
            return DAMAGED, f"{damage}: {MEASURE_AGAIN}"
        info = results.load_info(folder)
        results.read_recorded(folder)
        lacking = _find_missing_variants(folder, entry)
    except ValueError as error:
        return DAMAGED, str(error)
    except OSError as error:  # no permission, for instance
        return PLAIN, f"'{folder}' cannot be read ({error.strerror or error})"
    found = next(iter(list_differences(folder, entry.parameters, info)), None)
    if found and found[0] == "dataset":
        return PLAIN, f"the content of '{entry.parameters['dataset_name']}' has changed since it was measured"
    if found:
        return OTHER, f"{found[0]} is {found[1]!r} in the results but {found[2]!r} in the grid"
    return DAMAGED if (folder / variants.VARIANTS).is_file() else PLAIN, lacking


def _find_missing_variants(folder: Path, entry: grid.Entry) -> str | None:
    """Why a run has no variants although some are asked for; None if it has them, as far as a file's ends tell."""
    return variants.explain_missing(folder) if (grid.DEFAULTS | entry.parameters)["variants"] != NONE else None


def needs_tokens(folder: Path) -> bool:
    """Whether a run has measurements but no whole tokens.parquet, which takes seconds to write, without a model."""
    found = results.find_measurements(folder)
    writable = integrity.is_permitted(folder, os.W_OK)  # else analyses do without the file
    return bool(found and writable and integrity.is_whole(found) and not integrity.is_whole(folder / results.TOKENS))


def needs_context(folder: Path, entry: grid.Entry) -> bool:
    """Whether a measured run has no similarity in context with the settings of its grid, or no notebook about it."""
    if lacks_context(folder, entry):
        return bool(results.find_measurements(folder))
    return not integrity.is_whole(folder / results.CONTEXT_NOTEBOOK)


def lacks_context(folder: Path, entry: grid.Entry) -> bool:
    """Whether a run has no similarity in context with the settings of its grid, or none that the system can read."""
    wanted = grid.DEFAULTS | entry.parameters
    with contextlib.suppress(OSError):  # the job says what the system says
        return bool(context.find_missing(folder, wanted["context_candidates"], wanted["context_threshold"]))
    return True


def needs_branches(folder: Path, entry: grid.Entry) -> bool:
    """Whether a measured run has no branches with the settings of its grid, or no notebook about them."""
    with contextlib.suppress(OSError):  # the job says what the system says
        if not branches.find_missing(folder, grid.DEFAULTS | entry.parameters):
            return not integrity.is_whole(folder / results.BRANCHES_NOTEBOOK)
    return bool(results.find_measurements(folder))


def list_differences(
    folder: Path, parameters: Mapping[str, Any], info: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """The settings that affect what is measured and differ: name, value in the results, in ``parameters``.

    ``info`` is the content of the run.json in ``folder``. A file of prompts with another content is called "dataset".
    """
    wanted = grid.DEFAULTS | dict(parameters)
    settings = fill_defaults(info.get("settings") or {})
    pairs = [(name, settings.get(name), wanted.get(name)) for name in COMPARED]
    if wanted["mode"] == "generate":
        pairs.append(("seed", settings.get("seed"), wanted["seed"]))
    if wanted["dtype"] != "auto":
        pairs.append(("dtype", settings.get("dtype"), wanted["dtype"]))
    model, dataset = (found if isinstance(found := settings.get(name), dict) else {} for name in ("model", "dataset"))
    commit = model.get("revision")
    if commit and re.fullmatch("[0-9a-f]{40}", wanted.get("model_revision") or ""):  # a branch can mean any commit
        pairs.append(("model_revision", commit, wanted["model_revision"]))
    content = dataset.get("sha256")
    if content and (now := _hash_dataset(wanted["dataset_name"])):
        pairs = [pair for pair in pairs if pair[0] != "dataset_name" or not _is_moved(*pair[1:])]
        pairs.append(("dataset", content, now))
    number = settings.get("n_prompts")
    # a short data set has fewer prompts than were requested
    if number != wanted["n_prompts"] and _read_requested(folder, info) != wanted["n_prompts"]:
        pairs.append(("n_prompts", number, wanted["n_prompts"]))
    return [pair for pair in pairs if pair[1] != pair[2] and pair[::2] != ("variants", NONE)]  # more is no difference


def _is_moved(there: str, here: str) -> bool:
    """Whether two names of data sets can be of one file in two places: a packaged set is read in its own way."""
    from nucleoscope.data import prompts

    packaged = there in prompts.PACKAGED or here in prompts.PACKAGED
    return not packaged and Path(there).suffix.lower() == Path(here).suffix.lower()


def _hash_dataset(name: str) -> str | None:
    """The hash of a data set in a local file; None for one on the Hub, and if the file cannot be read."""
    from nucleoscope.data import prompts

    try:
        path = prompts.locate(name)[0]
        return _hash(path, path.stat().st_mtime_ns)
    except (ValueError, OSError):
        return None


@functools.lru_cache
def _hash(path: Path, modified: int) -> str:
    """The hash of a file, computed once for all runs unless the file is ``modified``."""
    return hash_file(path)


def _read_requested(folder: Path, info: Mapping[str, Any]) -> int | None:
    """How many prompts a run was asked for; version 0.1.0 kept that in its notebook only."""
    if "n_prompts_requested" in info:
        return info["n_prompts_requested"]
    try:
        notebook = json.loads((folder / results.NOTEBOOK).read_text(encoding="utf-8"))
        return notebook["metadata"]["papermill"]["parameters"]["n_prompts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(config: dict[str, Any], combined: Collection[str] = COMBINED) -> bool:
    """Whether every run of a grid is measured and nothing made from the runs has failed.

    ``combined``: of what is made from all runs, only this counts.
    """
    runs = grid.plan_runs(config)
    return not (
        any(find_missing(folder, entry) for folder, entry in runs.items())
        or any(read_problem(locate_status(folder, job)) for folder in runs for job in _list_jobs(runs[folder]))
        or _list_failed_logs(Path(config["results_dir"], LOGS), combined)
    )


def summarise(config: dict[str, Any], combined: Collection[str] = COMBINED) -> str:
    """How many runs of a grid are measured, and for each of the others why not and where its log is.

    Also names the pages, and of ``combined`` the analyses and the book, whose last attempt failed.
    """
    runs = grid.plan_runs(config)
    examined = {folder: _examine(Path(folder), entry) for folder, entry in runs.items()}
    missing = {folder: (said, why) for folder, (said, why) in examined.items() if why}
    lines = [_count_measured(len(runs), len(missing))]
    for folder, (said, why) in missing.items():
        lines.append(f"  {_name_run(folder)}: {_explain(folder, said, why)}")
        if integrity.is_whole(results.find_measurements(Path(folder)) or Path(folder, results.MEASUREMENTS)):
            lines.append("    the analyses use its earlier results")
        lines += _format_log(locate_log(folder))
    for folder in runs:
        for job, what in _list_jobs(runs[folder]).items():
            if folder not in missing and (problem := read_problem(locate_status(folder, job))):
                lines += [
                    f"  {what} {_name_run(folder)} failed: {_shorten(problem)}",
                    *_format_log(locate_log(folder, job)),
                ]
    for log in _list_failed_logs(Path(config["results_dir"], LOGS), combined):
        lines += [
            f"  the last attempt to make {_describe(log.stem)} failed: {_shorten(logs.explain(log))}",
            *_format_log(log),
        ]
    lines += _name_others(config["results_dir"], runs)
    if os.path.isdir(Path(config["results_dir"], LOGS)):
        lines.append(f"logs: {config['results_dir']}/{LOGS}/<dataset>/<model>.log")
    return "\n".join(map(escape_line, lines))


def _count_measured(total: int, missing: int) -> str:
    """How many runs of a grid are measured; a colon follows if others, which are to be listed, are not."""
    if total == 1:
        return "the only run has not been measured:" if missing else "the only run has been measured"
    rest = f"; {'this one has' if missing == 1 else 'these have'} not:" if missing else ""
    return f"{total - missing:,} of {total:,} runs have been measured{rest}"


def _name_others(results_dir: str, runs: Collection[str]) -> list[str]:
    """A line that names the measured runs that a grid does not list, perhaps any more: the analyses use them."""
    found = {(run.name, run.parent.name): run for run in results.list_runs(results_dir)}
    repeats = results.find_repeats(results_dir, found)
    others = [run for key, run in found.items() if str(run) not in runs and key not in repeats]
    if not others:
        return []
    names = [_name_run(run) for run in others[:NAMED]]
    names += [f"{len(others) - NAMED:,} more"] if len(others) > NAMED else []
    what = "1 run" if len(others) == 1 else f"{len(others):,} runs"
    return [
        f"the analyses also use {what} in '{results_dir}' that the grid does not list: {'; '.join(names)}; to leave a "
        "run out, move its folder away"
    ]


def _list_jobs(entry: grid.Entry) -> dict[str, str]:
    """The jobs of a run, and what each makes, to precede the run's name."""
    jobs = {results.MEASURE: "the notebook of", results.PAGE: "the page of"}
    jobs |= {results.CONTEXT: "similarity in context of"} if entry.wants_context else {}
    return jobs | ({results.BRANCHES: "branches of"} if entry.wants_branches else {})


def _shorten(problem: str) -> str:
    """What a failed command said of it, after the word "failed"."""
    return problem.removeprefix("error: ")


def _name_run(folder: str | Path) -> str:
    dataset, model = Path(folder).parts[-2:]
    return run_names.describe_run(model, dataset)


def _explain(folder: str, said: str, why: str) -> str:
    """Why a run is not measured: its last attempt's own error, or, from `_examine`, what is the matter and why."""
    log, path = locate_log(folder), locate_status(folder)
    found = _read_status(path)
    if found.get("state") == REFUSED and not (log.is_file() and log.stat().st_mtime > path.stat().st_mtime):
        return found["problem"]
    begun = Path(folder, "batches", "settings.json")
    if os.path.isfile(begun) and not (
        os.path.isfile(log) and (logs.is_running(log) or log.stat().st_mtime > begun.stat().st_mtime)
    ):
        # a command run by hand, which has no log: neither the last attempt of the graph nor the results tell of it
        return (
            "a command run by hand was interrupted: repeat it to resume, or run the grid to measure with the grid's "
            "settings"
        )
    if os.path.isfile(log) and (said == ABSENT or logs.is_running(log) or logs.has_failed(log)):
        return logs.explain(log, why)
    if said == DAMAGED and why.endswith("is missing"):
        why += f": {AGAIN}"
    return said.format(re.sub(r"repeat the run's command with .*--overwrite$", AGAIN, why))  # a grid has no --overwrite


def _format_log(log: Path) -> list[str]:
    """The line that names a log and says when it was written, because its reason may be older than the grid."""
    if not os.path.isfile(log):
        return []
    return [f"    log: {log} ({datetime.fromtimestamp(log.stat().st_mtime):%Y-%m-%d %H:%M})"]


def _describe(name: str) -> str:
    return {"analyses": "the analyses", "book": "the book"}.get(name, f"page '{name}'")


def _list_failed_logs(folder: Path, combined: Collection[str]) -> list[Path]:
    """The logs of what is made from all runs, of those whose last attempt failed."""
    files = [folder / f"{name}.log" for name in COMBINED if name in combined]
    return [log for log in files if log.is_file() and logs.has_failed(log)]
