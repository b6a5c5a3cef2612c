"""Prints how many runs of a grid have been measured, and, for each of the others, why not and where its log is."""

from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line."""
    options = Parser(__doc__)
    options.add_argument("grid", nargs="?", default="scripts/grids/default.yml", help="the grid, a YAML file")
    options.add_argument(
        "--check",
        action="store_true",
        help="only check the grid, and print nothing if it is valid; whether its models and files exist is not checked",
    )
    return options


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted"):
        from nucleoscope.workflow import grid, status

        config = grid.load(options.grid)
        grid.check_datasets(options.grid, config)
        if not options.check:
            print(status.summarise(config))


if __name__ == "__main__":
    main()
