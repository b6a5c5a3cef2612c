"""The pipeline as a graph: one job a cell (a model on a data set) from a grid in YAML, then the analyses, then the book.

    snakemake --cores all --configfile scripts/grids/default.yml        # measures and analyses
    snakemake --cores all --configfile scripts/grids/default.yml book   # and builds the book
"""

import shlex
import sys
from pathlib import Path

from nucleoscope import results

if not config:  # a grid of one's own is taken as it is: Snakemake would add the default's parameters to it
    configfile: "scripts/grids/default.yml"

CELLS = {
    str(results.cell_folder(config["results_dir"], dataset, model, config.get("parameters", {}).get("text_column"))): {
        **config.get("parameters", {}),
        "model_name": model,
        "dataset_name": dataset,
        "results_dir": config["results_dir"],
    }
    for model in config["models"]
    for dataset in config["datasets"]
}
if len(CELLS) < len(config["models"]) * len(config["datasets"]):
    sys.exit("error: two models or two data sets of the grid share a short name, and so a results folder")


def options(parameters):
    """Parameters as command-line options."""
    return shlex.join(word for name, value in parameters.items() for word in (f"--{name}", str(value)))


def modules(*names):
    """The modules that a notebook computes with: when they change it runs again."""
    return [f"lib/nucleoscope/{name}.py" for name in names]


ANALYSES = f"{config['results_dir']}/{results.ANALYSES}"
MEASURED = [f"{folder}/{results.MEASUREMENTS}" for folder in CELLS]
# Cells that were measured without this grid are analysed too.
OTHERS = [str(results.measurements(folder)) for folder in results.cells(config["results_dir"]) if str(folder) not in CELLS]


PAGES = [f"{config['results_dir']}/{results.PAGES}/{name}.ipynb" for name in ("index", "theory", "twelve")]


rule all:
    input:
        expand("{folder}/{file}", folder=CELLS, file=(results.RUN_INFO, results.NOTEBOOK)),
        expand("{folder}/{file}", folder=ANALYSES, file=results.ANALYSIS_FILES),


rule analyses:
    input:
        MEASURED,
        OTHERS,
        "notebooks/correlation.py",
        "notebooks/fits.py",
        modules("bootstrap", "correlation", "curves", "fits", "figures", "panels", "tables"),
    output:
        [update(f"{ANALYSES}/{file}") for file in results.ANALYSIS_FILES],
    threads: workflow.cores
    params:
        options=options({"results_dir": config["results_dir"], **config.get("analyses", {})}),
    shell:
        "{sys.executable:q} scripts/correlation_eval.py {params.options}"


rule page:
    input:
        MEASURED,
        OTHERS,
        "notebooks/{name}.py",
        modules("bootstrap", "correlation", "figures", "theory"),
    output:
        update(f"{config['results_dir']}/{results.PAGES}/{{name}}.ipynb"),
    threads: workflow.cores
    params:
        options=options({"results_dir": config["results_dir"]}),
    shell:
        "{sys.executable:q} scripts/run_notebook.py {wildcards.name} {output:q} {params.options}"


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
        options=options({"results_dir": config["results_dir"]}),
    shell:
        "{sys.executable:q} scripts/build_book.py {params.options}"


# A cell uses all cores: two at once would only take turns. --overwrite, because the grid decides:
# a cell runs again when its parameters here have changed. update(), because what is there must
# stay until it is replaced: Snakemake removes outputs before a job, and those of a failed job.
rule cell:
    output:
        update(f"{{folder}}/{results.MEASUREMENTS}"),
        update(f"{{folder}}/{results.RUN_INFO}"),
        update(f"{{folder}}/{results.NOTEBOOK}"),
    wildcard_constraints:
        folder="|".join(map(re.escape, CELLS)),
    params:
        options=lambda wildcards: options(CELLS[wildcards.folder]),
    threads: workflow.cores
    shell:
        "{sys.executable:q} scripts/correlation_pipeline.py {params.options} --overwrite"
