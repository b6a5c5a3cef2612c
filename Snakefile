"""The pipeline as a graph of jobs, from a grid in YAML: measure each run, show it on a page, analyse all, build the book.

    snakemake --cores all --configfile scripts/grids/default.yml             # measures, pages and analyses
    snakemake --cores all --configfile scripts/grids/default.yml -- book     # and the book
    snakemake --profile scripts/slurm --configfile scripts/grids/study.yml   # as jobs of Slurm

The rules are in scripts/rules/, one file for each kind of job. Whether a run is measured is decided by
its files and not by Snakemake's records, so results of any origin are used. A job depends on its
notebook and on the modules that this notebook imports. profiles/default/ has options of all commands.
"""

import re
import sys

from nucleoscope.workflow import graph

if not config:  # a grid of the user's own is used as it is: Snakemake would merge the default's parameters into it

    configfile: "scripts/grids/default.yml"


try:
    GRAPH = graph.Graph(config, workflow)
except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
GRAPH.prepare()


wildcard_constraints:
    folder="|".join(map(re.escape, GRAPH.runs)),
    name="|".join(graph.COMBINED_PAGES),


rule all:
    input:
        GRAPH.list_statuses("measure"),
        GRAPH.list_statuses("run"),
        GRAPH.list_statuses("context"),
        GRAPH.list_statuses("branches"),
        GRAPH.list_analyses(),


include: "scripts/rules/measure.smk"
include: "scripts/rules/page.smk"
include: "scripts/rules/context.smk"
include: "scripts/rules/branches.smk"
include: "scripts/rules/analyses.smk"
include: "scripts/rules/book.smk"


onstart:
    GRAPH.check_before_start()


onsuccess:
    GRAPH.report()


onerror:
    GRAPH.report()
