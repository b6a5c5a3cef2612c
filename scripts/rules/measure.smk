# Measures one model on one data set: the only job that needs a GPU.
#
# Its output is a status file, because the graph must continue without a run that fails: the file says
# how the job ended. Measurements and run.json are not outputs, since Snakemake removes or replaces the
# outputs of a job that fails. Nor is the log, which Snakemake would empty. update() keeps the old status
# file until the new one is written. The last try of a job that was killed only records that.
rule measure:
    input:
        lambda wildcards: GRAPH.force_run_job(wildcards.folder, "measure"),
        GRAPH.list_dependencies("measure"),
    output:
        update("{folder}/measure.status.json"),
    wildcard_constraints:
        folder=GRAPH.match_folders(unavailable=False),
    params:
        # functions of more than wildcards: Snakemake does not rerun a job when their values change
        job=lambda wildcards, resources: GRAPH.format_run_job(wildcards.folder, "measure", resources.attempt),
        options=lambda wildcards, output: GRAPH.format_settings(wildcards.folder),
    retries: GRAPH.retries
    priority: 2  # everything else waits for it
    threads: lambda wildcards: GRAPH.count_threads(wildcards.folder)
    resources:
        attempt=lambda wildcards, attempt: attempt,
        nodes=1,  # Slurm would gather the GPUs of a run from several
        gpu=lambda wildcards, attempt: GRAPH.count_gpus(wildcards.folder, attempt),
        machine=lambda wildcards: GRAPH.count_machines(wildcards.folder),
        mem_mb=lambda wildcards, attempt: GRAPH.count_memory(wildcards.folder, attempt),
        runtime=lambda wildcards, attempt: GRAPH.count_minutes(wildcards.folder, attempt),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/correlation_pipeline.py {params.options} --only measure --if_missing --overwrite"


# Records why a run is not measured whose model or data set cannot be loaded. On a cluster, nothing is submitted for it.
rule refuse:
    input:
        lambda wildcards: GRAPH.force_run_job(wildcards.folder, "measure"),
    output:
        update("{folder}/measure.status.json"),
    wildcard_constraints:
        folder=GRAPH.match_folders(unavailable=True),
    params:
        problem=lambda wildcards: GRAPH.unavailable[wildcards.folder],
    localrule: True
    shell:
        "{GRAPH.python:q} scripts/job.py --status {output:q} --problem {params.problem:q}"
