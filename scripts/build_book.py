"""Builds the book from book/ and the executed notebooks in a results folder. Treats every warning as an error."""

from pathlib import Path

from nucleoscope.workflow.command_line import Parser, report_errors

ROOT = Path(__file__).resolve().parents[1]


def create_parser() -> Parser:
    """The command line."""
    options = Parser(__doc__)
    options.add_results_dir("folder that contains <dataset>/<model>/run.ipynb")
    options.add_argument("--output", default=".", help="folder in which to create _build/html")
    return options


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted: run the same command again"):
        from nucleoscope.store import results  # here: --help need not wait for it

        results.check_folder(options.results_dir)
        from nucleoscope.book import site  # a bad folder need not wait for it either

        page = site.build(ROOT, Path(options.results_dir), Path(options.output).resolve())
        print(f"the book: {page.as_uri()}")


if __name__ == "__main__":
    main()
