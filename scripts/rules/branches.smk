# Continues the texts of one run from candidates of some of their tokens, if the grid asks for it (branches: true).
rule branches:
    input:
        lambda wildcards: GRAPH.force_run_job(wildcards.folder, "branches"),
        lambda wildcards: GRAPH.list_measurements(wildcards.folder),
        GRAPH.list_dependencies("branches"),
    output:
        update("{folder}/branches.status.json"),
    params:
        job=lambda wildcards, resources: GRAPH.format_run_job(wildcards.folder, "branches", resources.attempt),
        options=lambda wildcards, output: GRAPH.format_settings(wildcards.folder),
    retries: GRAPH.retries
    priority: 1  # the measurements of other runs are needed by more jobs
    threads: lambda wildcards: GRAPH.count_threads(wildcards.folder)
    resources:
        attempt=lambda wildcards, attempt: attempt,
        nodes=1,
        gpu=lambda wildcards, attempt: GRAPH.count_gpus(wildcards.folder, attempt, "branches"),
        machine=lambda wildcards: GRAPH.count_machines(wildcards.folder),
        mem_mb=lambda wildcards, attempt: GRAPH.count_memory(wildcards.folder, attempt, "branches"),
        runtime=lambda wildcards, attempt: GRAPH.count_minutes(wildcards.folder, attempt, "branches"),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/correlation_pipeline.py {params.options} --only branches --if_missing --overwrite"
