"""Removes the dequantized weights of GGUF files, which are kept so that each file is dequantized only once."""

from nucleoscope.workflow.command_line import Parser


def create_parser() -> Parser:
    """The command line: nothing but --help and --debug."""
    return Parser(__doc__)


def main() -> None:
    options = create_parser().parse_args()
    from nucleoscope.models import dequantized

    try:
        print(f"freed: {dequantized.clear() / 1e6:,.0f} MB")
    except OSError as error:
        if options.debug:
            raise
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
