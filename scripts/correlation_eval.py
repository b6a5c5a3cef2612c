"""Analyses all measured runs with notebooks/correlation.py and notebooks/fits.py, which write tables and figures."""

import argparse
from pathlib import Path

from nucleoscope.workflow.command_line import Parser, report_errors


def check_resamples(text: str) -> int:
    if not text.isdecimal() or int(text) < 100:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a whole number from 100 up: a 95 % interval needs at least 100"
        )
    return int(text)


def create_parser() -> Parser:
    """The command line; names and defaults are those of the notebooks' parameters cells."""
    options = Parser(__doc__)
    options.add_argument("--results_dir", default="results", help="folder that contains <dataset>/<model>/")
    options.add_argument(
        "--resamples", type=check_resamples, default=2000, help="number of resamples in the bootstrap over prompts"
    )
    options.add_argument("--seed", type=int, default=0, help="random seed of the bootstrap")
    return options


def main() -> None:
    parameters = vars(create_parser().parse_args())
    with report_errors(parameters.pop("debug"), interrupted="interrupted: run the same command again"):
        from nucleoscope.store import results
        from nucleoscope.workflow import notebooks

        folder = Path(parameters["results_dir"], results.ANALYSES)
        for name in ("correlation", "fits"):
            print(f"analysis: {name}", flush=True)
            notebooks.execute(name, folder / f"{name}.ipynb", parameters)
        print(f"results: {folder}")


if __name__ == "__main__":
    main()
