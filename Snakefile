"""The pipeline as a graph: one job a cell (a model on a data set) from a grid in YAML, then the analyses, then the book.

    snakemake --cores all --configfile scripts/grids/default.yml           # measures and analyses
    snakemake --cores all --configfile scripts/grids/default.yml -- book   # and builds the book
    snakemake --profile scripts/slurm --configfile scripts/grids/study.yml   # the same, as jobs of Slurm

profiles/default/ holds what all of them do, --keep-going first. A cell runs when the ledger says that
it lacks something: Snakemake's own records do not count there, so results of any origin are taken as
they are, or measured again where their settings differ from the grid's. When cells have failed, the
graph is run once more as it is: without them, so that the analyses and the book are of what is there.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

from nucleoscope.models import gpus
from nucleoscope.store import results
from nucleoscope.workflow import graph, grid, logs, status

if not config:  # a grid of one's own is taken as it is: Snakemake would add the default's parameters to it
    configfile: "scripts/grids/default.yml"

try:
    for path in workflow.overwrite_configfiles if workflow.is_main_process else []:
        grid.load(path, check=False)  # Snakemake's own loader takes the second of two equal keys
    CELLS = grid.cells(config)
except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")

RESULTS = config["results_dir"]
LOGS = f"{RESULTS}/{status.LOGS}"
ANALYSES = f"{RESULTS}/{results.ANALYSES}"
PAGES = [f"{RESULTS}/{results.PAGES}/{name}.ipynb" for name in ("index", "theory", "twelve")]
AS_IT_IS = "NUCLEOSCOPE_AS_IT_IS" in os.environ  # no cell is measured: see onerror
INTERRUPTED = []  # signals
if AS_IT_IS:
    envvars: "NUCLEOSCOPE_AS_IT_IS"  # jobs elsewhere must see the same graph
AGAIN = "interrupted: the same command goes on where this was"

# What runs here shares this machine; what a cluster runs has its own.
HERE = workflow.is_main_process and workflow.resource_settings.nodes is None
GPUS = gpus.names() if HERE else []
if HERE and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(GPUS))
if not workflow.is_main_process:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a compute node: scripts/prefetch.py has been there before

# A job that was started for a cell need not ask about the others.
LACKING = {folder: why for folder, entry in CELLS.items() if workflow.is_main_process and (why := status.lacking(folder, entry))}
NOTEBOOKS = [f"{folder}/{results.NOTEBOOK}" for folder in CELLS]
if AS_IT_IS:
    NOTEBOOKS = [path for path in NOTEBOOKS if Path(path).is_file()]
# Cells that were measured without this grid are analysed too, and those whose notebook failed.
analysed = {str(Path(path).parent) for path in NOTEBOOKS}
OTHERS = [str(results.measurements(folder)) for folder in results.cells(RESULTS) if str(folder) not in analysed]
# The rule below knows only cells that are to run: what has no rule is taken as it is.
forced = graph.forces(sys.argv[1:]) or not workflow.is_main_process
TO_RUN = [] if AS_IT_IS else list(CELLS) if forced else list(LACKING)


def modules(*names):
    """The modules that a notebook computes with: when they change it runs again."""
    return [f"lib/nucleoscope/{name}.py" for name in names]


def renewed(wildcards):
    """For a cell whose files stand there with other settings a file newer than those: it runs again."""
    notebook = Path(wildcards.folder, results.NOTEBOOK)
    if wildcards.folder not in LACKING or not notebook.is_file():
        return []
    stamp = Path(".snakemake/renewed", quote(wildcards.folder, safe=""))
    if workflow.is_main_process:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        if notebook.stat().st_mtime > time.time() - 2:  # a fast clock dated it, or one that counts in seconds
            with contextlib.suppress(OSError):  # another user's
                os.utime(notebook, (time.time() - 60,) * 2)
        stamp.write_text(f"{time.time_ns()}: {LACKING[wildcards.folder]}\n")
    return str(stamp)


def tried(name):
    """A file that is newer than what a failed try has left there, which Snakemake takes for done; else an old one."""
    stamp, log = Path(".snakemake/renewed", quote(f"{RESULTS}/{name}", safe="")), Path(LOGS, f"{name}.log")
    if workflow.is_main_process:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        if not stamp.exists():
            stamp.touch()
            os.utime(stamp, (1, 1))
        if log.is_file() and logs.failed(log):
            stamp.write_text(f"{time.time_ns()}\n")
    return str(stamp)


def there():
    """How many GPUs the cells share here; None on a cluster."""
    return workflow.global_resources["gpu"].value if HERE else None


def cell_threads(wildcards):
    return graph.threads(CELLS[wildcards.folder], there(), workflow.cores) if HERE else 4


def cell_job(wildcards):
    """Options of scripts/job.py: the log, and which choice of GPUs."""
    choice = graph.gpu_choice(CELLS[wildcards.folder], there(), bool(GPUS))
    return graph.options({"log": status.log_file(wildcards.folder), "gpus": choice})


def everywhere(wildcards):
    """All cores here, a few on a cluster."""
    return workflow.cores if HERE else 4


wildcard_constraints:
    folder="|".join(map(re.escape, TO_RUN)) or "(?!)",


rule all:
    input:
        NOTEBOOKS,
        expand("{folder}/{file}", folder=ANALYSES, file=results.ANALYSIS_FILES),


rule analyses:
    input:
        tried("analyses"),
        NOTEBOOKS,
        OTHERS,
        "notebooks/correlation.py",
        "notebooks/fits.py",
        modules("stats/bootstrap", "stats/correlation", "stats/curves", "stats/fits", "views/figures", "views/panels", "stats/sample", "quantities", "store/mapped_records", "store/results", "views/tables"),
    output:
        [update(f"{ANALYSES}/{file}") for file in results.ANALYSIS_FILES],
    threads: everywhere
    params:
        job=graph.options({"log": f"{LOGS}/analyses.log"}),
        options=graph.options({"results_dir": RESULTS, **config.get("analyses", {})}),
    shell:
        "{sys.executable:q} scripts/job.py {params.job} -- {sys.executable:q} scripts/correlation_eval.py {params.options}"


rule page:
    input:
        lambda wildcards: tried(wildcards.name),
        NOTEBOOKS,
        OTHERS,
        "notebooks/{name}.py",
        modules("stats/bootstrap", "stats/correlation", "views/figures", "views/examples", "quantities", "store/mapped_records", "store/results", "views/strip", "views/token_text", "stats/theory"),
    output:
        update(f"{RESULTS}/{results.PAGES}/{{name}}.ipynb"),
    threads: everywhere
    params:
        job=lambda wildcards: graph.options({"log": f"{LOGS}/{wildcards.name}.log"}),
        options=graph.options({"results_dir": RESULTS}),
    shell:
        "{sys.executable:q} scripts/job.py {params.job} -- {sys.executable:q} scripts/run_notebook.py {wildcards.name} {output:q} {params.options}"


# Sphinx touches only the pages that change, so a file of its own says when the book was built.
rule book:
    input:
        rules.all.input,
        PAGES,
        [str(path) for folder in ("book", "scripts", "lib") for path in Path(folder).rglob("*.*") if path.is_file() and "__pycache__" not in path.parts],
        ["_config.yml", "CHANGELOG.md", "CITATION.cff", "README.md"],
    output:
        touch("_build/html/.built"),
    params:
        job=graph.options({"log": f"{LOGS}/book.log"}),
        options=graph.options({"results_dir": RESULTS}),
    shell:
        "{sys.executable:q} scripts/job.py {params.job} -- {sys.executable:q} scripts/build_book.py {params.options}"


# --overwrite, because the grid decides: a cell runs again when its parameters here have changed.
# Its notebook stands for the cell, because it is written last. Measurements and run.json are none of
# Snakemake's: of a job that fails it removes the outputs, or puts older ones back in their place, and
# what was measured before the failure would be lost. update(), because the notebook that is there
# must stay until it is replaced. The log is none of Snakemake's, which would empty it each time.
rule cell:
    input:
        renewed,
    output:
        update(f"{{folder}}/{results.NOTEBOOK}"),
    params:
        job=cell_job,
        options=lambda wildcards: graph.options(CELLS[wildcards.folder].parameters),
    threads: cell_threads
    resources:
        nodes=1,  # Slurm would gather the GPUs of a cell from several
        gpu=lambda wildcards: graph.gpus(CELLS[wildcards.folder], there()),
        mem_mb=lambda wildcards: grid.mebibytes(CELLS[wildcards.folder].memory or "32G"),
        runtime=lambda wildcards: grid.minutes(CELLS[wildcards.folder].time or "4h"),
    shell:
        "{sys.executable:q} scripts/job.py {params.job} -- {sys.executable:q} scripts/correlation_pipeline.py {params.options} --overwrite"


def interrupt(number, frame):
    INTERRUPTED.append(number)
    raise KeyboardInterrupt


def uncaught(kind, error, traceback):
    """Ctrl-C where Snakemake does not expect it is no reason for a traceback."""
    if kind is KeyboardInterrupt:
        print(AGAIN, file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if workflow.is_main_process:
    signal.signal(signal.SIGINT, interrupt)
    sys.excepthook = uncaught


def silence():
    """Why Slurm does not answer, in one line; nothing where it does. Snakemake would ask a minute for each cell."""
    try:
        asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=150)
        words = (asked.stderr or f"sinfo ended with status {asked.returncode}") if asked.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        words = (getattr(error, "stderr", None) or b"").decode() or str(error)
    return words.strip().partition("\n")[0]


def finish():
    """After failures: what depends on failed cells is made from the others, by this same command."""
    failed = any(status.lacking(folder, entry) for folder, entry in CELLS.items())
    if failed and graph.goes_on(workflow.dag_settings.targets) and not workflow.touch and results.cells(RESULTS):
        print("\nSome cells failed; now the analyses of those that are there.", file=sys.stderr)
        done = subprocess.run(graph.again(sys.argv[1:]), env=os.environ | {"NUCLEOSCOPE_AS_IT_IS": "1"})
        if done.returncode:
            print("\nNot all could be made from the cells that are there.", file=sys.stderr)


onstart:
    if workflow.is_main_process and workflow.executor_plugin.name == "slurm" and (why := silence()):
        sys.exit(f"error: Slurm does not answer: {why}")


onsuccess:
    if not AS_IT_IS:
        print(status.summary(config), file=sys.stderr)


onerror:
    if INTERRUPTED:
        print(AGAIN, file=sys.stderr)
    elif not AS_IT_IS:
        finish()
        print(status.summary(config), file=sys.stderr)
