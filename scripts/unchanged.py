"""Checks, for the Makefile, whether anything has changed since Snakemake last found everything up to date.

The exit status is 0 if nothing has changed, and 1 if Snakemake must be run or the grid is invalid; in the latter case,
an error message says what is wrong.
"""

import sys
from pathlib import Path

from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line: the grid, the target of the Snakefile, and when it is called."""
    options = Parser(__doc__)
    options.add_argument("grid", type=Path, help="the grid, a YAML file")
    options.add_argument("target", choices=("all", "book"), help="the target of the Snakefile")
    options.add_argument(
        "--settle", action="store_true", help="record the current state, after Snakemake has succeeded"
    )
    return options


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted"):
        from nucleoscope.workflow import grid, unchanged

        config = grid.load(options.grid)
        if options.settle:
            unchanged.settle(config, options.target)
        elif unchanged.is_settled(config, options.target):
            print("nothing to do: everything is up to date")
        else:
            sys.exit(1)


if __name__ == "__main__":
    main()
