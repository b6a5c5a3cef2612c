"""What the Snakefile and its rules need to know: every path, the shares of a machine, what must run again.

Contract: nothing here starts a job, and importing this is quick. `Graph` is the one object that knows
all paths; what it says depends on a grid, the files in its results folder and the machine.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from nucleoscope.models import devices, gpus
from nucleoscope.settings import Settings
from nucleoscope.store import integrity, locking, results
from nucleoscope.wording import join_names
from nucleoscope.workflow import dependencies, grid, logs, status, stopping, unchanged

SECOND_PASSES = (results.CONTEXT, results.BRANCHES)  # jobs that need the model of a measured run again
COMBINED_PAGES = status.COMBINED_PAGES
PLAIN_PAGES = tuple(name for name in COMBINED_PAGES if name != "two_texts")  # whose notebooks write nothing besides
CLUSTER_TRIES = 3  # how often a cluster runs a job before its failure is recorded
CLUSTER_THREADS = 4
SPECIAL = re.compile(r"[{}\r\n]")  # Snakemake takes what is in braces for a wildcard, and line breaks confuse it


def format_options(parameters: dict[str, Any]) -> str:
    """Parameters as command-line options; True is a flag, None and False are left out."""
    return shlex.join(
        f"--{name}" if value is True else f"--{name}={value}"  # a value may begin with a dash
        for name, value in parameters.items()
        if value is not None and value is not False
    )


def count_gpus(entry: grid.Entry, available: int | None) -> int:
    """GPUs of a run; on a machine with fewer, all of those. ``available`` is None on a cluster."""
    return entry.gpus if available is None else min(entry.gpus, available)


def count_threads(entry: grid.Entry, available: int, cores: int) -> int:
    """With a GPU, a run's share of the cores. Without one it uses all of them, but leaves one to a page beside it.

    Such a run reads libraries and the model on one core for seconds, and a page has a lower priority for the system.
    """
    own = count_gpus(entry, available)
    return max(1, cores * own // available) if own else max(1, cores - 1)


def decide_visible_gpus(entry: grid.Entry, available: int | None, found: bool) -> int | None:
    """How many GPUs scripts/job.py takes for a run; None leaves what the run sees as it is.

    A run that asks for none must see none anywhere: not every Slurm hides those of others. Else
    Slurm has made its own choice, and a machine where no GPU was ``found`` has nothing to choose.
    """
    if entry.gpus == 0:
        return 0
    return count_gpus(entry, available) if available is not None and found else None


@contextlib.contextmanager
def _name_files(workflow: Any) -> Iterator[None]:
    """Adds the files of a grid to a ValueError, unless some of the grid comes from the command line."""
    try:
        yield
    except ValueError as error:
        named = [] if workflow.config_settings.config else workflow.configfiles
        files = join_names(f"'{path}'" for path in named)
        raise ValueError(f"{files}: {error}" if files else str(error)) from None


class Graph:
    """The paths and needs of all jobs of a grid's ``config``, for one of Snakemake's ``workflow`` objects.

    Raises ValueError or OSError, in one line, for an invalid grid.
    """

    def __init__(self, config: dict[str, Any], workflow: Any):
        for path in workflow.configfiles if workflow.is_main_process else []:  # also the Snakefile's own default
            grid.load(path, check=False)  # Snakemake's own loader silently takes the last of duplicate keys
        self.config, self.workflow = config, workflow
        with _name_files(workflow):
            self.runs = grid.plan_runs(config)
        self.results_dir = config["results_dir"]
        self.analyses = f"{self.results_dir}/{results.ANALYSES}"
        self.python = sys.executable
        # jobs that run here share this machine; jobs of a cluster have their own
        self.here = workflow.is_main_process and workflow.resource_settings.nodes is None
        self.gpus = gpus.list_names() if self.here else []
        self.tries = 1 if self.here else CLUSTER_TRIES
        # A cluster's job is a Snakemake of its own, which would retry by the rule although it is told --retries 0.
        self.retries = self.tries if workflow.is_main_process else 0
        # a job that was started for one run need not look at the others
        runs = self.runs if workflow.is_main_process else {}
        self.missing = {folder: why for folder, entry in runs.items() if (why := status.find_missing(folder, entry))}
        reasons = self._find_unavailable() if self.missing else {}
        self.unavailable = {folder: "; ".join(several) for folder, several in reasons.items()}
        self._before = self._describe_fixed() if workflow.is_main_process else []
        if self.missing and workflow.is_main_process:
            for folder in (self.results_dir, self.analyses, f"{self.results_dir}/{status.LOGS}"):
                locking.check_writable(Path(folder))  # no job could even say that it failed
        for reason in dict.fromkeys(reason for several in reasons.values() for reason in several):
            print(f"error: {reason}", file=sys.stderr)
        if self.unavailable and len(self.unavailable) == len(self.runs) and not results.list_runs(self.results_dir):
            sys.exit(1)

    def _find_unavailable(self) -> dict[str, list[str]]:
        """The missing runs without a model, data set, device or folder to write to, and why; each is tried once."""
        from nucleoscope.data import availability  # here: a graph with nothing to measure need not wait for it

        # unset, jobs of a cluster do not use the network: see prepare
        offline = not self.here and os.environ.get("HF_HUB_OFFLINE", "1").lower() in ("1", "on", "yes", "true")
        runs = {folder: self.runs[folder].parameters for folder in self.missing}
        found = availability.find_unavailable(runs, offline)
        for folder, parameters in runs.items() if self.here else ():
            try:
                devices.check(parameters.get("device", Settings.device))
            except ValueError as error:
                found.setdefault(folder, [str(error)])
        for folder in runs:  # a run that another process measures is no reason: its job says so
            try:
                locking.check_writable(Path(folder))
                locking.check_writable(status.locate_log(folder).parent)
            except OSError as error:
                found.setdefault(folder, [str(error)])
        return found

    # Paths

    def locate_page(self, name: str) -> str:
        """The executed notebook of a page about all runs; ``name`` may be a wildcard."""
        return f"{self.results_dir}/{results.PAGES}/{name}.ipynb"

    def list_analyses(self) -> list[str]:
        """The files that the analyses leave."""
        return [f"{self.analyses}/{file}" for file in results.ANALYSIS_FILES]

    def list_text_pairs(self) -> list[str]:
        """The files that the page about the data sets' texts and the models' leaves, the page first."""
        return [self.locate_page("two_texts"), *(f"{self.analyses}/{file}" for file in results.TEXT_PAIR_FILES)]

    def list_statuses(self, job: str) -> list[str]:
        """The status files of all runs of the grid for one of their jobs; a second pass only if asked for.

        A run that cannot be measured and has no earlier results gets nothing that is made from its results.
        """
        none = {run for run in self.unavailable if job != results.MEASURE and not results.find_measurements(Path(run))}
        if job == results.CONTEXT:
            none |= {folder for folder, entry in self.runs.items() if not entry.wants_context}
        elif job == results.BRANCHES:
            none |= {folder for folder, entry in self.runs.items() if not entry.wants_branches}
        return [str(status.locate_status(folder, job)) for folder in self.runs if folder not in none]

    def list_measurements(self, folder: str) -> list[str]:
        """What the page of a run and the analyses read of it: its files, or if it will be measured first, that job.

        A job that only checks that a run is measured is not among them: it changes nothing that they read.
        """
        if folder in self.missing and folder not in self.unavailable:
            return [str(status.locate_status(folder))]
        return [path for name in status.FILES if os.path.isfile(path := str(Path(folder, name)))]

    def list_context(self, folder: str) -> list[str]:
        """What the page of a run reads of its similarity in context: the files, or the job that will write them."""
        entry = self.runs[folder]
        available = folder not in self.unavailable or results.find_measurements(Path(folder))
        if entry.wants_context and available and (folder in self.missing or status.lacks_context(Path(folder), entry)):
            return [str(status.locate_status(folder, results.CONTEXT))]
        return [path for name in results.CONTEXT_FILES if os.path.isfile(path := str(Path(folder, name)))]

    def list_all_measurements(self) -> list[str]:
        """What the analyses read: the runs of the grid, and runs in the same folder that the grid does not list."""
        others = [folder for folder in self.list_others() if not SPECIAL.search(str(folder))]
        found = [path for folder in self.runs for path in self.list_measurements(folder)]
        measured = [Path(folder) for folder in self.runs if folder not in self.missing or folder in self.unavailable]
        places = [folder / name for folder in [*measured, *others] for name in results.VARIANT_FILES]
        found += [str(path) for path in places if os.path.isfile(path)]
        return found + [str(results.find_measurements(folder)) for folder in others]

    def list_branches(self) -> list[str]:
        """What the page about branches reads: the files of runs that have some, and the jobs that will write them."""
        jobs = self.list_statuses(results.BRANCHES)
        folders = [*map(Path, self.runs), *self.list_others()]
        files = [folder / name for folder in folders for name in results.BRANCH_FILES]
        return jobs + [path for path in map(str, files) if os.path.isfile(path) and not SPECIAL.search(path)]

    def list_others(self) -> list[Path]:
        """The measured runs in the results folder that the grid does not list."""
        return [folder for folder in results.list_runs(self.results_dir) if str(folder) not in self.runs]

    def list_analysed(self) -> list[str]:
        """The folders of all runs that the analyses read: if one is added or removed, they run again."""
        found = {*map(str, self.list_others()), *self.runs}
        return sorted(SPECIAL.sub(lambda sign: f"~{ord(sign[0]):x}~", folder) for folder in found)

    def list_dependencies(self, name: str) -> list[str]:
        """The files that a notebook is made from; ends the program with one line if they cannot be determined."""
        try:
            return dependencies.list_dependencies(f"notebooks/{name}.py")
        except (OSError, ValueError) as error:
            sys.exit(f"error: {error}")

    def match_folders(self, unavailable: bool) -> str:
        """A regular expression for the folders of the runs that are ``unavailable``, or of those that are not."""
        found = [re.escape(folder) for folder in self.runs if (folder in self.unavailable) == unavailable]
        return "|".join(found) or "(?!)"  # which matches nothing

    def list_book_sources(self) -> list[str]:
        """The files of this project that the book is made from, besides notebooks."""
        folders = (Path(folder).rglob("*.*") for folder in ("book", "scripts", "lib/nucleoscope"))
        files = [path for found in folders for path in found if path.is_file() and not _is_incidental(path)]
        return [*map(str, files), "_config.yml", "CHANGELOG.md", "CITATION.cff", "README.md"]

    # Jobs

    def format_job(self, name: str) -> str:
        """Options of scripts/job.py for a job about all runs."""
        return format_options({"log": f"{self.results_dir}/{status.LOGS}/{name}.log"})

    def format_run_job(self, folder: str, job: str, attempt: int) -> str:
        """Options of scripts/job.py for one of the jobs of a run; ``attempt`` counts from 1."""
        choice = None
        if job != results.PAGE:
            choice = decide_visible_gpus(self.runs[folder], self._count_available(), bool(self.gpus))
        options = {"log": status.locate_log(folder, job), "status": status.locate_status(folder, job), "gpus": choice}
        if job != results.PAGE and self.count_machines(folder):
            options["threads"] = self.workflow.cores  # all, also the one that `count_threads` leaves to a page
        if job == results.PAGE and self.here:
            options["nice"] = True
        return format_options(options | {"tries_left": self.tries - attempt})

    def format_settings(self, folder: str) -> str:
        """Options of scripts/correlation_pipeline.py for a run."""
        return format_options(self.runs[folder].parameters)

    def _measures(self, folder: str, attempt: int, job: str) -> bool:
        """Whether a job measures a run; else it only says that the run is measured, or why it failed."""
        due = job in SECOND_PASSES or folder in self.missing or not self.workflow.is_main_process
        return attempt <= self.tries and due

    def count_gpus(self, folder: str, attempt: int, job: str = results.MEASURE) -> int:
        """GPUs of a job that measures a run, or reads it again."""
        return count_gpus(self.runs[folder], self._count_available()) if self._measures(folder, attempt, job) else 0

    def count_memory(self, folder: str, attempt: int, job: str = results.MEASURE) -> int:
        """MiB of such a job."""
        return grid.parse_memory(self.runs[folder].memory if self._measures(folder, attempt, job) else "2G")

    def count_minutes(self, folder: str, attempt: int, job: str = results.MEASURE) -> int:
        """Minutes that such a job may take."""
        return grid.parse_time(self.runs[folder].time if self._measures(folder, attempt, job) else "10m")

    def count_threads(self, folder: str) -> int:
        """Cores of the job that measures a run."""
        if not self.here:
            return CLUSTER_THREADS
        return count_threads(self.runs[folder], self._count_available(), self.workflow.cores)

    def count_machines(self, folder: str) -> int:
        """1 for a run that uses all cores of this machine: two at once would only take turns."""
        return int(self.here and not count_gpus(self.runs[folder], self._count_available()))

    def count_analysis_threads(self) -> int:
        """Cores of the analyses: those of `count_all_threads` that are not needed for the pages of new runs."""
        new = sum(not os.path.isfile(path) for path in self.list_statuses(results.PAGE))
        return max(1, self.count_all_threads() - new)

    def count_all_threads(self) -> int:
        """Cores of a job about all runs beside which none runs: all of this machine, a few of a cluster's."""
        return self.workflow.cores if self.here else CLUSTER_THREADS

    def _count_available(self) -> int | None:
        """How many GPUs the runs share here; None on a cluster."""
        return self.workflow.global_resources["gpu"].value if self.here else None

    # The course of the graph

    def force_run_job(self, folder: str, job: str) -> list[str]:
        """Plans a job of a run whatever the dates are, if a file that it writes is missing or cut off, or if it failed.

        An input function calls this, so that it concerns only jobs that belong to the targets; it adds no inputs.
        """
        path, place = status.locate_status(folder, job), Path(folder)
        if job == results.MEASURE:
            due = folder in self.missing or status.needs_tokens(place)
        elif job == results.CONTEXT:
            due = status.needs_context(place, self.runs[folder])
        elif job == results.BRANCHES:
            due = status.needs_branches(place, self.runs[folder])
        else:
            due = results.find_measurements(place) and not integrity.is_whole(place / results.NOTEBOOK)
        if due or status.read_problem(path):
            self._force([str(path)])
        return []

    def force_job(self, name: str, outputs: list[str]) -> list[str]:
        """As `force_run_job` for a job about all runs, also if an output is cut off, or missing beside others.

        A job that failed leaves older outputs, which look complete.
        """
        log = Path(self.results_dir, status.LOGS, f"{name}.log")
        there = [os.path.isfile(path) for path in outputs]
        damaged = any(found and not integrity.is_whole(Path(path)) for path, found in zip(outputs, there, strict=True))
        if damaged or (any(there) and not all(there)) or (log.is_file() and logs.has_failed(log)):
            self._force(outputs)
        return []

    def _force(self, outputs: list[str]) -> None:
        if self.workflow.is_main_process:  # a cluster's job runs what it was started for
            self.workflow.dag.forcefiles.update(outputs)  # as --forcerun, which is read before the Snakefile

    def prepare(self) -> None:
        """Sets up the process that runs the graph: GPUs and the machine as resources, Ctrl-C, the network of jobs."""
        if not self.workflow.is_main_process:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a compute node: scripts/prefetch.py has run before
            return
        if self.here and "gpu" not in self.workflow.global_resources:
            self.workflow.register_resource("gpu", len(self.gpus))
        if self.here:
            self.workflow.register_resource("machine", 1)
        signal.signal(signal.SIGINT, stopping.interrupt)
        sys.excepthook = _end_quietly

    def check_before_start(self) -> None:
        """Ends the program with one line if Slurm does not answer; from now on, signals stop the jobs too."""
        if not self.workflow.is_main_process:
            return
        stopping.watch()
        if self.workflow.executor_plugin.name == "slurm" and (why := _ask_slurm()):
            sys.exit(f"error: Slurm does not respond: {why}")

    def report(self) -> None:
        """Prints what is measured and what failed; ends the program with status 1 if anything failed."""
        if stopping.arrived:
            print(stopping.AGAIN, file=sys.stderr)
            return
        jobs = [str(job.wildcards.get("name", job.rule.name)) for job in self.workflow.dag.jobs]
        print(status.summarise(self.config, jobs), file=sys.stderr)
        if not status.is_complete(self.config, jobs):
            sys.exit(1)
        self._note_built()

    def _note_built(self) -> None:
        """Remembers for `unchanged` that nothing would be planned now, if that is certain."""
        now = unchanged.describe(self.config)  # first: what changes from here on makes it another state
        self.missing = {}  # as the next graph will find
        if self._before != self._describe_fixed() or not all(map(self._is_current, self.workflow.dag.jobs)):
            return
        names = {job.rule.name for job in self.workflow.dag.jobs}
        for target in ("all", "book") if "book" in names else names & {"all"}:
            unchanged.note_built(self.config, target, now)

    def _describe_fixed(self) -> list[str]:
        """What must be the same before and after all jobs: the sources, and which runs are analysed."""
        return [*unchanged.describe_sources(self.config), *self.list_analysed()]

    def _is_current(self, job: Any) -> bool:
        """Whether none of a job's outputs is older than what it reads, which may have been measured since the start."""
        read = [*job.input]
        if job.rule.name in ("page", *SECOND_PASSES):
            read += self.list_measurements(job.wildcards.folder)
            read += self.list_context(job.wildcards.folder) if job.rule.name == "page" else []
        elif job.rule.name in ("analyses", "combined_page", "two_texts"):
            read += self.list_all_measurements()
        try:
            latest = max((os.path.getmtime(path) for path in read), default=0)
            return all(os.path.getmtime(path) >= latest for path in job.output)
        except OSError:  # a file is gone
            return False


def _is_incidental(path: Path) -> bool:
    """Whether a tool left a file beside the sources: Python, JupyterLab, or an editor."""
    return path.name.endswith(("~", ".pyc")) or any(part.startswith(".") for part in path.parts)


def _end_quietly(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Prints one line instead of a traceback for Ctrl-C at a moment when Snakemake does not expect it."""
    if kind is KeyboardInterrupt:
        print(stopping.AGAIN, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def _ask_slurm() -> str:
    """Why Slurm does not answer, in one line; "" if it does. Snakemake would ask for a minute for each run."""
    try:
        asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=150)
        words = (asked.stderr or f"sinfo ended with status {asked.returncode}") if asked.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        words = (getattr(error, "stderr", None) or b"").decode() or str(error)
    return words.strip().partition("\n")[0]
