"""The notebooks of a run: one measures, on the machine with the GPU; one is the run's page.

Two others are executed if they are asked for: one measures similarity in context, one continues texts from candidates.

Contract: settings in, executed notebooks in the run's folder out. Importing this is quick, and so is refusing
settings that cannot work: torch, transformers, pandas and a notebook's process are not needed for that.
"""

import contextlib
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nucleoscope.names import advise
from nucleoscope.settings import Settings
from nucleoscope.store import branches, context, integrity, parts, results, run_folder, run_names
from nucleoscope.wording import MEASURE_AGAIN, join_names
from nucleoscope.workflow import grid, status

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
PAGE_SETTINGS = ("model_name", "dataset_name", "text_column", "results_dir", "trust_remote_code")

PASS_SETTINGS = {  # that only these notebooks use
    results.CONTEXT: ("context_candidates", "context_threshold", "context_memory"),
    results.BRANCHES: branches.SETTINGS,
}

CONTEXT_SETTINGS = (
    *PAGE_SETTINGS[:4],
    *PASS_SETTINGS[results.CONTEXT],
    *("device", "overwrite", "skip_check", "trust_remote_code"),
)
BRANCH_SETTINGS = (
    *PAGE_SETTINGS[:4],
    *PASS_SETTINGS[results.BRANCHES],
    *("batch_size", "device", "overwrite", "skip_check", "trust_remote_code"),
)


def check_name(name: str) -> None:
    """Raises ValueError, with the names there are, if no notebook has this ``name``."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
    if name not in names:
        advice = advise(name.removesuffix(".py"), names, f": it must be one of {', '.join(names)}")
        raise ValueError(f"there is no notebook '{name}'{advice}")


def locate(chosen: Settings) -> Path:
    """The folder of a run with these settings. NotADirectoryError if results_dir is a file."""
    results.check_no_file(chosen.results_dir)
    names, named = (chosen.dataset_name, chosen.model_name, chosen.text_column), chosen.collect_named()
    if not named:
        run_names.check_model(results.shorten_names(*names[:2])[1])
    return results.locate_run(chosen.results_dir, *names, named)


def _list_names(chosen: Settings, names: Collection[str]) -> dict[str, Any]:
    """The parameters of a notebook that finds a run by its names: as the model's, that of a folder that says more."""
    values = {name: getattr(chosen, name) for name in names}
    return values | ({"model_name": locate(chosen).name} if chosen.named_settings else {})


def check(chosen: Settings) -> None:
    """Raises OSError or ValueError, in one line, for settings with which notebooks/measure.py certainly fails.

    The notebook finds the same, with the same functions, but some seconds later.
    """
    from nucleoscope.data import availability  # these take a fifth of a second: a complete run need not wait for it
    from nucleoscope.models import devices

    folder = locate(chosen)
    run_folder.check(folder, chosen.overwrite)
    if _has_results(folder):
        results.check_info(folder)
    devices.check(chosen.device)
    availability.check(asdict(chosen))


def measure(chosen: Settings, if_missing: bool = False) -> None:
    """Executes notebooks/measure.py with the settings ``chosen``.

    ``if_missing``: not if the results already have these settings, which is decided by names and without
    loading the model; only a missing or damaged tokens.parquet is then written. Raises what `check` and
    `notebooks.execute` raise.
    """
    folder = locate(chosen)
    if if_missing and not status.find_missing(folder, grid.Entry(asdict(chosen))):
        print("already measured with these settings")
        _remove_residue(folder)
        _repair_tokens(folder)
        return
    if not chosen.overwrite:
        _check_existing(folder, chosen)
    check(chosen)
    _execute(results.MEASURE, folder / f"{results.MEASURE}.ipynb", asdict(chosen))
    _repair_tokens(folder)


def _remove_residue(folder: Path) -> None:
    """Removes what a process that was killed while it cleaned up has left of a finished run."""
    with contextlib.suppress(OSError):  # a folder that cannot be written to stays as it is
        run_folder.RunFolder(folder, results.load_info(folder)["settings"]).record_request()


def _repair_tokens(folder: Path) -> None:
    if status.needs_tokens(folder) and results.repair_tokens(folder):
        print(f"'{folder / results.TOKENS}' was missing or damaged: it was written again from the measurements")


def _check_existing(folder: Path, chosen: Settings) -> None:
    """Raises what notebooks/measure.py would say of finished results, as far as that needs no model.

    ValueError if the measurements are damaged, FileExistsError if they have other settings.
    """
    if not _has_results(folder):
        return
    if damage := integrity.find_damage(folder / results.MEASUREMENTS):
        raise ValueError(f"{damage}: {MEASURE_AGAIN}")
    results.read_recorded(folder)
    found = status.list_differences(folder, asdict(chosen), results.load_info(folder))
    if found and not {name for name, *_ in found} & {"model_name", "dataset_name", "dataset", "model_revision"}:
        changes = [run_folder.describe_change(*each) for each in found]
        raise FileExistsError(run_folder.describe_other(folder, changes, run_folder.advise(name for name, *_ in found)))


def _has_results(folder: Path) -> bool:
    """Whether a run was measured: its measurements are there, and what says with which settings."""
    return all((folder / name).is_file() for name in (results.RUN_INFO, results.MEASUREMENTS))


def write_page(chosen: Settings, if_measured: bool = False, given: Collection[str] = ()) -> None:
    """Executes notebooks/run.py on the results of the run with the settings ``chosen``.

    ``if_measured``: not if there are no results, which is an error otherwise. ``given``: the names of settings with
    which the results must have been measured; the page shows those of any others. Raises FileExistsError if they
    were not, and what `notebooks.execute` raises.
    """
    folder = locate(chosen)
    if if_measured and not _has_results(folder):
        print(f"{folder} has no results to show")
        return
    if not (folder / results.RUN_INFO).is_file():
        raise FileNotFoundError(
            f"'{folder}' has no results to show ({results.RUN_INFO} is missing): measure the run first"
        )
    results.check_info(folder)
    if given:
        _check_measured(folder, chosen, given)
    if not (folder / results.MEASUREMENTS).is_file():
        raise FileNotFoundError(f"'{folder}' has no {results.MEASUREMENTS}: {MEASURE_AGAIN}")
    _execute(results.PAGE, folder / results.NOTEBOOK, _list_names(chosen, PAGE_SETTINGS))


def list_unused(chosen: Settings, only: str | None, given: Collection[str]) -> list[str]:
    """A line for each option of a second pass that is ``given`` and has no effect: its notebook is not executed.

    ``only`` is the one notebook to execute: measure, page, context or branches; None for all that are asked for.
    """
    lines = [
        f"note: --only {only} does not run {name}.py: --{name} has no effect"
        for name in PASS_SETTINGS
        if name in given and only not in (None, name)
    ]
    executed = {name for name in PASS_SETTINGS if only == name or (only is None and getattr(chosen, name))}
    for name in given:
        users = [each for each, names in PASS_SETTINGS.items() if name in names]
        if users and not executed.intersection(users):
            where = f"with --only {only}" if only else f"without {' or '.join(f'--{each}' for each in users)}"
            lines.append(f"note: {name} has no effect {where}")
    return lines


def check_second_passes(chosen: Settings) -> None:
    """Raises ValueError if ``context`` or ``branches`` is set, and other settings leave nothing to measure."""
    if chosen.context:
        _check_context(chosen)
    if chosen.branches:
        _check_branches(chosen)


def _check_context(chosen: Settings) -> None:
    if chosen.context_candidates < 2:
        raise ValueError(
            f"context_candidates is {chosen.context_candidates}: at least 2 candidates are needed to compare them"
        )


def _check_branches(chosen: Settings) -> None:
    if chosen.context_candidates < 2:
        raise ValueError(
            f"context_candidates is {chosen.context_candidates}: at least 2 candidates are needed to compare branches"
        )
    if not chosen.branch_points:
        raise ValueError("branch_points is 0: at least 1 branch point per text is needed")


def measure_context(chosen: Settings, if_missing: bool = False, given: Collection[str] = ()) -> None:
    """Executes notebooks/context.py on the results of the run with the settings ``chosen``.

    ``if_missing``: not if it was measured with these settings, nor if the run was not measured, which is an error
    otherwise. ``given``: as for `write_page`. Raises ValueError if there would be nothing to compare, FileExistsError
    if the run was measured with other settings, and what `parts.check` and `notebooks.execute` raise.
    """
    folder = locate(chosen)
    _check_context(chosen)
    if if_missing and not _has_results(folder):
        print(f"{folder} has no results to measure in context")
        return
    missing = context.find_missing(folder, chosen.context_candidates, chosen.context_threshold)
    if if_missing and not missing and integrity.is_whole(folder / results.CONTEXT_NOTEBOOK):
        print("similarity in context has already been measured with these settings")
        return
    from nucleoscope.models import devices

    parts.check(folder)
    devices.check(chosen.device)
    if given:
        _check_measured(folder, chosen, given)
    wanted = chosen.context_candidates, chosen.context_threshold
    context.ContextFolder(folder, *wanted, chosen.overwrite)  # refuses another number of candidates
    _execute(results.CONTEXT, folder / results.CONTEXT_NOTEBOOK, _list_names(chosen, CONTEXT_SETTINGS))


def measure_branches(chosen: Settings, if_missing: bool = False, given: Collection[str] = ()) -> None:
    """Executes notebooks/branches.py on the results of the run with the settings ``chosen``.

    ``if_missing`` and ``given``: as for `measure_context`. Raises ValueError if there would be nothing to continue,
    FileExistsError if the run was measured, or branched, with other settings, and what `parts.check` and
    `notebooks.execute` raise.
    """
    folder, wanted = locate(chosen), asdict(chosen)
    _check_branches(chosen)
    if if_missing and not _has_results(folder):
        print(f"{folder} has no results to branch from")
        return
    missing = branches.find_missing(folder, wanted)
    if if_missing and not missing and integrity.is_whole(folder / results.BRANCHES_NOTEBOOK):
        print("branches have already been measured with these settings")
        return
    from nucleoscope.models import devices

    parts.check(folder)
    devices.check(chosen.device)
    if given:
        _check_measured(folder, chosen, given)
    branches.BranchFolder(folder, wanted, chosen.overwrite)  # refuses other settings
    _execute(results.BRANCHES, folder / results.BRANCHES_NOTEBOOK, _list_names(chosen, BRANCH_SETTINGS))


def _check_measured(folder: Path, chosen: Settings, given: Collection[str]) -> None:
    found = status.list_differences(folder, asdict(chosen), results.load_info(folder))
    if differing := [each for each in found if each[0] in given]:
        changes = [run_folder.describe_change(*each) for each in differing]
        advice = f"this command does not measure the run again: {_advise_measured([name for name, *_ in differing])}"
        raise FileExistsError(run_folder.describe_other(folder, changes, advice))


def _advise_measured(names: list[str]) -> str:
    """What to do about settings that are not those of the results in a folder, which its short names may share."""
    identity = [name for name in names if name in ("model_name", "dataset_name")]
    others = join_names(name for name in names if name not in identity)
    if not identity:
        values = "this value" if len(names) == 1 else "these values"
        return f"omit {others}, or measure with {values} first, without --only"
    omit = f" and omit {others}" if others else ""
    given = f"give the {join_names(identity)} that the results were measured with{omit}"
    return f"{given}, or measure in another --results_dir first"


def _execute(name: str, output: Path, parameters: dict[str, Any]) -> None:
    from nucleoscope.workflow import notebooks  # papermill takes two seconds to import: bad settings need not wait

    notebooks.execute(name, output, parameters)
