"""Executes a notebook from notebooks/ with papermill and saves the executed notebook."""

from pathlib import Path

from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line: which notebook, where to, and on which results."""
    options = Parser(__doc__)
    options.add_argument("name", help="name of the notebook, without its folder and extension")
    options.add_argument("output", type=Path, help="where to save the executed notebook, an .ipynb file")
    options.add_results_dir("folder that contains <dataset>/<model>/")
    return options


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted: run the same command again"):
        from nucleoscope.workflow import run_notebooks

        run_notebooks.check_name(options.name)
        if options.output.suffix != ".ipynb":
            raise ValueError(f"the output file '{options.output}' must end in .ipynb")
        if options.output.is_dir():
            raise IsADirectoryError(f"'{options.output}' is a folder: name a file")
        try:
            options.output.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            file = next(above for above in options.output.parents if above.exists() and not above.is_dir())
            raise NotADirectoryError(f"'{file}' is not a folder: choose another output file") from None
        from nucleoscope.workflow import notebooks  # here: a wrong name, and --help, need not wait for it

        notebooks.execute(options.name, options.output, {"results_dir": options.results_dir})
        print(f"executed: {options.output}")


if __name__ == "__main__":
    main()
