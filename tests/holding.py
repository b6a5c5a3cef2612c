"""Runs that stand still behind their first batch until they are let go, so that no clock decides what a kill meets."""

import os
from collections.abc import Mapping
from pathlib import Path

CUSTOM = """
import os, pathlib, sys, time
batches = 0
def hold(event, arguments):
    global batches
    if event == "os.rename" and (path := pathlib.Path(os.fsdecode(arguments[1]))).match("batches/*.pt"):
        batches += 1
        while batches > 1 and (path.parents[2] / "hold").exists():
            time.sleep(0.05)
sys.addaudithook(hold)
"""  # Python imports it by the name sitecustomize in all processes that have its folder in their path


def create_environment(place: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The ``environment`` of such runs; their code is put down in the new folder ``place``.

    It comes last in the path, after that of `forks`, which imports what it hides.
    """
    place.mkdir()
    (place / "sitecustomize.py").write_text(CUSTOM)
    path = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(place)]))
    return {**environment, "PYTHONPATH": path}


def hold(run: Path) -> Path:
    """Has the runs of a run's folder stand still until the file that is returned is removed."""
    run.parent.mkdir(parents=True, exist_ok=True)
    file = run.parent / "hold"
    file.touch()
    return file
