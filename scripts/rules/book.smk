# Builds the book. Sphinx touches only the pages that change, so a file of its own says when that was.
rule book:
    input:
        rules.all.input,
        [GRAPH.locate_page(name) for name in graph.COMBINED_PAGES],
        GRAPH.list_text_pairs(),
        GRAPH.list_book_sources(),
    output:
        touch("_build/html/.built"),
    params:
        options=graph.format_options({"results_dir": GRAPH.results_dir}),
        job=GRAPH.format_job("book"),
    shell:
        "{GRAPH.python:q} scripts/job.py {params.job} -- {GRAPH.python:q} scripts/build_book.py {params.options}"
