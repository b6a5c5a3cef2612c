"""Writes tokens, candidates or texts of a run to a CSV, Parquet or HTML file, for other programs or for sharing.

CSV and Parquet files have one row for each token: its prompt, step and text, and everything that was measured; with
--candidates, one for each token that could have been chosen. An HTML file opens in any browser, even offline: it shows
the text with tinted tokens, each with a card of details. The model is not needed.
"""

import argparse
from pathlib import Path

from nucleoscope.settings import quote
from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line: a run, a file, and which part of the run."""
    options = Parser(__doc__)
    options.add_argument("run", help="the folder of a run, or <dataset>/<model> below --results_dir")
    options.add_argument("output", help="the file to write: its extension is .csv, .parquet or .html")
    options.add_argument(
        "--prompt",
        type=parse_number,
        action="append",
        metavar="N",
        help="only this prompt, counted from 0; can be repeated",
    )
    options.add_argument(
        "--candidates",
        action="store_true",
        help="one row for each candidate of each token, numbered from 0 (the likeliest) in the column 'place'",
    )
    options.add_results_dir("folder that contains <dataset>/<model>/")
    return options


def parse_number(text: str) -> int:
    """A number of a prompt; the run says which there are."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"prompt is {quote(text)}: it must be a whole number") from None


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted"):
        from nucleoscope.store import results
        from nucleoscope.views import export_file

        export_file.check_name(options.output, options.candidates)
        folder = results.find_run(options.run, options.results_dir)
        export_file.check_place(folder, Path(options.output))
        from nucleoscope.views import export  # two seconds, which bad input need not wait for

        print(export.write(folder, options.output, options.prompt, options.candidates))


if __name__ == "__main__":
    main()
