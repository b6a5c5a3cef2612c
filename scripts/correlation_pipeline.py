"""Measures one model on one data set: runs notebooks/run.py and leaves its results in a folder."""

from nucleoscope import settings
from nucleoscope.workflow.command_line import Parser, one_line_errors


def parser() -> Parser:
    """The command line: every setting, by its name."""
    options = Parser(__doc__)
    options.add_settings()
    return options


def main() -> None:
    parameters = vars(parser().parse_args())
    again = "interrupted: the same command goes on where this was"
    with one_line_errors(parameters.pop("debug"), interrupted=again):
        from nucleoscope.store import results
        from nucleoscope.workflow import notebooks  # here: --help need not wait for them

        for name, value in parameters.items():
            settings.validate(name, value)
        names = ("results_dir", "dataset_name", "model_name", "text_column")
        folder = results.cell_folder(*(parameters[name] for name in names))
        print(f"{folder.name} on {folder.parent.name}", flush=True)
        notebooks.execute("run", folder / results.NOTEBOOK, parameters)
        print(f"results: {folder}")


if __name__ == "__main__":
    main()
