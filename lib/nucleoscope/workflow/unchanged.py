"""Whether a grid is as it was when Snakemake had nothing to do, without starting Snakemake, which takes seconds.

Contract: Snakemake decides and this module remembers. `describe` sums up every file that the graph reads or writes, so
an equal description has the same answer; whatever differs, even without any effect, leaves the answer to Snakemake.
A file counts as another one if its size, its place on the disk or any of its times is another, also the time that
programs which restore dates cannot set. Importing this is quick.
"""

import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nucleoscope
from nucleoscope.atomic import write_json
from nucleoscope.store import results
from nucleoscope.workflow import grid

FOLDERS = ("book", "lib", "notebooks", "profiles", "scripts", str(Path(nucleoscope.__file__).parent))
FILES = ("CHANGELOG.md", "CITATION.cff", "README.md", "Snakefile", "_config.yml", "_build/html/.built")
MEMORY = Path(".snakemake", "nucleoscope")  # beside Snakemake's own records, with which it is removed
SEEN, BUILT, SETTLED = "seen", "built", "settled"  # before Snakemake started; after its jobs; with nothing to do


def describe(config: dict[str, Any]) -> str:
    """The SHA-256 of a grid and of the state of all files that decide what Snakemake would do for it."""
    return _hash(
        ["grid", json.dumps(config, sort_keys=True, default=str), *describe_sources(config), *describe_results(config)]
    )


def describe_sources(config: dict[str, Any]) -> list[str]:
    """The state of what no job writes: one line for each file of the project, and for each data set that is a file."""
    datasets = {entry.parameters["dataset_name"] for entry in grid.plan_runs(config).values()}
    files = [*FILES[:-1], *filter(os.path.isfile, map(os.path.expanduser, datasets))]
    return [sys.executable, *_list_states([*files, *_walk(FOLDERS)])]


def describe_results(config: dict[str, Any]) -> list[str]:
    """The state of what jobs write, with everything else in the folder of the results."""
    return _list_states([FILES[-1], *_walk([str(results.locate_folder(config["results_dir"]))])])


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(lines).encode(errors="surrogateescape")).hexdigest()


def _walk(folders: Iterable[str]) -> Iterator[str]:
    """The files and folders below some folders, through links too; what Python compiles does not count."""
    visited: set[tuple[int, int]] = set()
    for top in dict.fromkeys(map(os.path.realpath, folders)):
        for folder, inner, files in os.walk(top, followlinks=True):
            try:
                found = os.stat(folder)
            except OSError:  # removed in this moment: without it the list is another one
                continue
            if (found.st_dev, found.st_ino) in visited:  # a link that leads back
                inner.clear()
                continue
            visited.add((found.st_dev, found.st_ino))
            inner[:] = sorted(name for name in inner if name != "__pycache__")
            yield from (os.path.join(folder, name) for name in (*inner, *sorted(files)))


def _list_states(paths: Iterable[str]) -> list[str]:
    """A line for each path. Of a folder only its name counts: its times change whenever Python compiles a module."""
    lines = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError as error:
            lines.append(f"{path} {error.errno}")
            continue
        times = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        lines.append(f"{path} {'' if stat.S_ISDIR(found.st_mode) else times}")
    return lines


# What is remembered: one file for each grid and target


def _locate(config: dict[str, Any], target: str) -> Path:
    return MEMORY / f"{_hash([target, json.dumps(config, sort_keys=True, default=str)])[:16]}.json"


def _recall(config: dict[str, Any], target: str) -> dict[str, str]:
    """What is remembered by the names `SEEN`, `BUILT` and `SETTLED`; nothing if the file is missing or damaged."""
    try:
        return results.read_json(_locate(config, target))
    except (OSError, ValueError):
        return {}


def is_settled(config: dict[str, Any], target: str) -> bool:
    """Whether nothing has changed since Snakemake had nothing to do for a target; else remembers what it will see."""
    now = describe(config)
    if _recall(config, target).get(SETTLED) == now:
        return True
    _remember(config, target, {SEEN: now})
    return False


def note_built(config: dict[str, Any], target: str, now: str) -> None:
    """Remembers the description ``now`` of a state in which Snakemake would have nothing to do, after its jobs."""
    _remember(config, target, _recall(config, target) | {BUILT: now})


def settle(config: dict[str, Any], target: str) -> None:
    """To be called when Snakemake has succeeded after `is_settled`: remembers that it has nothing to do, if that is so.

    It had nothing to do if it left everything as it was. If jobs have run, `note_built` must have been told of exactly
    the present state.
    """
    now, found = describe(config), _recall(config, target)
    if now in (found.get(SEEN), found.get(BUILT)):
        _remember(config, target, {SETTLED: now})


def _remember(config: dict[str, Any], target: str, what: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # of a folder that cannot be written to: Snakemake is then asked each time
        MEMORY.mkdir(parents=True, exist_ok=True)
        write_json(_locate(config, target), what)
