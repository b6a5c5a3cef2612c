# Analyses all measured runs: tables and figures for papers, and three notebooks that are pages of the book.
rule analyses:
    input:
        lambda wildcards: GRAPH.force_job("analyses", GRAPH.list_analyses()),
        GRAPH.list_all_measurements(),
        GRAPH.list_dependencies("correlation"),
        GRAPH.list_dependencies("fits"),
        GRAPH.list_dependencies("made_of"),
    output:
        [update(file) for file in GRAPH.list_analyses()],
    params:
        runs=GRAPH.list_analysed(),
        options=graph.format_options({"results_dir": GRAPH.results_dir, **config.get("analyses", {})}),
        job=GRAPH.format_job("analyses"),
    priority: 1  # the pages need one core each and can run beside it
    threads: GRAPH.count_analysis_threads()
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- {GRAPH.python:q} scripts/correlation_eval.py {params.options}"


# Executes a notebook about all measured runs that is a page of the book and writes nothing besides. The front page shows
# the coefficients that the analyses computed.
rule combined_page:
    input:
        lambda wildcards: GRAPH.force_job(wildcards.name, [GRAPH.locate_page(wildcards.name)]),
        GRAPH.list_all_measurements(),
        lambda wildcards: GRAPH.list_analyses() if wildcards.name == "index" else [],
        lambda wildcards: GRAPH.list_branches() if wildcards.name == "choice" else [],
        lambda wildcards: GRAPH.list_dependencies(wildcards.name),
    output:
        update(GRAPH.locate_page("{name}")),
    wildcard_constraints:
        name="|".join(graph.PLAIN_PAGES),
    params:
        runs=GRAPH.list_analysed(),
        options=graph.format_options({"results_dir": GRAPH.results_dir}),
        job=lambda wildcards: GRAPH.format_job(wildcards.name),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/run_notebook.py {wildcards.name} {output:q} {params.options}"


# Executes the notebook that compares the texts of data sets with those of models: a page of the book, and two tables.
rule two_texts:
    input:
        lambda wildcards: GRAPH.force_job("two_texts", GRAPH.list_text_pairs()),
        GRAPH.list_all_measurements(),
        GRAPH.list_dependencies("two_texts"),
    output:
        [update(file) for file in GRAPH.list_text_pairs()],
    params:
        runs=GRAPH.list_analysed(),
        options=graph.format_options({"results_dir": GRAPH.results_dir}),
        job=GRAPH.format_job("two_texts"),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- "
        "{GRAPH.python:q} scripts/run_notebook.py two_texts {output[0]:q} {params.options}"
