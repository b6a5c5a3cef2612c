"""The two notebooks of a run: one measures, on the machine with the GPU; the other one is the run's page.

Contract: settings in, executed notebooks in the run's folder out. Importing this is quick.
"""

from pathlib import Path
from typing import Any

from nucleoscope import settings
from nucleoscope.store import results
from nucleoscope.workflow import grid, notebooks, status

PAGE_SETTINGS = ("model_name", "dataset_name", "text_column", "results_dir", "trust_remote_code")


def locate(given: dict[str, Any]) -> Path:
    """The folder of a run with these settings. ValueError, in one line, for a setting that cannot work."""
    for name, value in given.items():
        settings.validate(name, value)
    names = ("results_dir", "dataset_name", "model_name", "text_column")
    return results.locate_run(*(given[name] for name in names))


def measure(given: dict[str, Any], if_missing: bool = False) -> None:
    """Executes notebooks/measure.py with the settings ``given``.

    ``if_missing``: not if the results already have these settings, which is decided by names and without
    loading the model; only a missing or damaged tokens.parquet is then written. Raises what `notebooks.execute` raises.
    """
    folder = locate(given)
    if if_missing and not status.find_missing(folder, grid.Entry(given)):
        print(f"{folder} has already been measured with these settings")
        if status.needs_tokens(folder) and results.repair_tokens(folder):
            print(f"{folder / results.TOKENS} was missing or damaged: it was written again from the measurements")
        return
    notebooks.execute(results.MEASURE, folder / f"{results.MEASURE}.ipynb", given)


def write_page(given: dict[str, Any], if_measured: bool = False) -> None:
    """Executes notebooks/run.py on the results of the run with the settings ``given``.

    ``if_measured``: not if there are no results. Raises what `notebooks.execute` raises.
    """
    folder = locate(given)
    if if_measured and not (folder / results.RUN_INFO).is_file():
        print(f"{folder} has no results to show")
        return
    notebooks.execute(results.PAGE, folder / results.NOTEBOOK, {name: given[name] for name in PAGE_SETTINGS})
