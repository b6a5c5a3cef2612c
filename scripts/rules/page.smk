# Executes the notebook about one run, which becomes its page in the book: seconds, without a model. Its cards show
# similarity in context, so that it waits for that job where one is due, and is made without it if it fails.
rule page:
    input:
        lambda wildcards: GRAPH.force_run_job(wildcards.folder, "run"),
        lambda wildcards: GRAPH.list_measurements(wildcards.folder),
        lambda wildcards: GRAPH.list_context(wildcards.folder),
        GRAPH.list_dependencies("run"),
    output:
        update("{folder}/run.status.json"),
    params:
        job=lambda wildcards, resources: GRAPH.format_run_job(wildcards.folder, "run", resources.attempt),
        options=lambda wildcards, output: GRAPH.format_settings(wildcards.folder),
    retries: GRAPH.retries
    resources:
        attempt=lambda wildcards, attempt: attempt,
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/correlation_pipeline.py {params.options} --only page --if_missing"
