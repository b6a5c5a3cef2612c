"""Analyses all measured runs with notebooks/correlation.py, fits.py and made_of.py, which write tables and figures."""

from pathlib import Path

from nucleoscope.settings import ANALYSES
from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line; names and defaults are those of the notebooks' parameters cells."""
    options = Parser(__doc__)
    options.add_results_dir("folder that contains <dataset>/<model>/")
    texts = {"resamples": "number of resamples in the bootstrap over prompts", "seed": "random seed of the bootstrap"}
    for (name, limits), default in zip(ANALYSES.items(), (2000, 0), strict=True):
        options.add_whole_number(name, *limits, default=default, help=texts[name])
    return options


def main() -> None:
    parameters = vars(create_parser().parse_args())
    with report_errors(parameters.pop("debug"), interrupted="interrupted: run the same command again"):
        from nucleoscope.store import results

        results.check_folder(parameters["results_dir"])
        if not results.list_runs(parameters["results_dir"]):
            results.check_depth(parameters["results_dir"])
            raise ValueError(f"no measurements under '{parameters['results_dir']}': measure a model first")
        from nucleoscope.workflow import notebooks  # two seconds, which a bad folder need not wait for

        folder = Path(parameters["results_dir"], results.ANALYSES)
        for name in ("correlation", "fits", "made_of"):
            print(f"analysis: {name}", flush=True)
            notebooks.execute(name, folder / f"{name}.ipynb", parameters)
        print(f"results: {folder}")


if __name__ == "__main__":
    main()
