"""Simulates what the study would cost at three sizes, and prints a section of the book's page on performance."""

from pathlib import Path

from cost_simulation import costs
from nucleoscope.workflow.command_line import Parser


def main() -> None:
    Parser(__doc__).parse_args()
    print(costs.format_page(Path(__file__).with_suffix(".md").read_text(encoding="utf-8")), end="")


if __name__ == "__main__":
    main()
