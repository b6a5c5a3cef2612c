# Measures similarity in context of one run, if the grid asks for it (context: true): a second pass, which needs a GPU too.
rule context:
    input:
        lambda wildcards: GRAPH.force_run_job(wildcards.folder, "context"),
        lambda wildcards: GRAPH.list_measurements(wildcards.folder),
        GRAPH.list_dependencies("context"),
    output:
        update("{folder}/context.status.json"),
    params:
        job=lambda wildcards, resources: GRAPH.format_run_job(wildcards.folder, "context", resources.attempt),
        options=lambda wildcards, output: GRAPH.format_settings(wildcards.folder),
    retries: GRAPH.retries
    priority: 1  # the measurements of other runs are needed by more jobs
    threads: lambda wildcards: GRAPH.count_threads(wildcards.folder)
    resources:
        attempt=lambda wildcards, attempt: attempt,
        nodes=1,
        gpu=lambda wildcards, attempt: GRAPH.count_gpus(wildcards.folder, attempt, "context"),
        machine=lambda wildcards: GRAPH.count_machines(wildcards.folder),
        mem_mb=lambda wildcards, attempt: GRAPH.count_memory(wildcards.folder, attempt, "context"),
        runtime=lambda wildcards, attempt: GRAPH.count_minutes(wildcards.folder, attempt, "context"),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/correlation_pipeline.py {params.options} --only context --if_missing --overwrite"
