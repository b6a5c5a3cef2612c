"""What the Snakefile reckons with: the shares of a machine, options of commands, the pass after failures.

Contract: plain functions of their arguments, which start nothing; importing them is quick.
"""

import re
import shlex
import sys
from collections.abc import Iterable
from typing import Any

from nucleoscope.workflow.grid import Entry

TARGETS = {"all", "analyses", "book"}  # what can be made from the cells that are there


def options(parameters: dict[str, Any]) -> str:
    """Parameters as command-line options; True is a flag, None and False are left out."""
    return shlex.join(
        word
        for name, value in parameters.items()
        if value is not None and value is not False
        for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    )


def gpus(entry: Entry, there: int | None) -> int:
    """GPUs of a cell; on a machine with fewer, all of those. ``there`` is None on a cluster."""
    return entry.gpus if there is None else min(entry.gpus, there)


def threads(entry: Entry, there: int, cores: int) -> int:
    """Without a GPU a cell uses all cores: two at once would only take turns. With one, its share of them."""
    mine = gpus(entry, there)
    return max(1, cores * mine // there) if mine else cores


def gpu_choice(entry: Entry, there: int | None, found: bool) -> int | None:
    """How many GPUs scripts/job.py takes for a cell; None leaves what the cell sees as it is.

    A cell that asks for none must see none anywhere: not every Slurm hides those of others. Else
    Slurm has made its own choice, and a machine where no GPU was ``found`` has nothing to choose.
    """
    if entry.gpus == 0:
        return 0
    return gpus(entry, there) if there is not None and found else None


def forces(words: Iterable[str]) -> bool:
    """Whether Snakemake's options ask to run again what is there: -F, -nF, -Rcell, --forcerun=cell, ..."""
    return any(re.match(r"--force(all|run)?(=|$)|-[nkpq]*[fFR]", word) for word in words)


def goes_on(targets: Iterable[str]) -> bool:
    """Whether these targets can be made without the cells that failed."""
    return set(map(str, targets)) <= TARGETS


def again(arguments: list[str]) -> list[str]:
    """The command of a second pass, with the ``arguments`` of the first."""
    # One word: an option of its own would take the targets that stand behind it for its values.
    return [sys.executable, "-m", "snakemake", "--quiet=host", *arguments]
