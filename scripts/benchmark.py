"""Times Nucleoscope against the published algorithm, transformers' generate and bare forward passes.

All of them run in one process, on the same prompts:

  (a) the published algorithm: one prompt at a time, the whole prefix again for every token, a full
      sort, k x k cosines (reimplemented here; on a few prompts, whose number is printed)
  (b) transformers' generate in batches with output_logits, then the same quantities as in (c)
  (c) Nucleoscope
  (d) the lower bound on the time: the forward passes of (c), token by token, with only an argmax

It also times the nucleus and cosine steps alone, on synthetic logits, and prints Markdown.
"""

import argparse

from nucleoscope.settings import Settings
from nucleoscope.workflow import command_line

SETTINGS = ("model_name", "dataset_name", "prompt_column", "n_prompts", "max_tokens", "prompt_format")
SETTINGS += ("top_p", "device", "dtype", "batch_size")


class HelpFormatter(command_line.HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


def create_parser() -> command_line.Parser:
    """The command line."""
    options = command_line.Parser(__doc__, HelpFormatter)
    options.add_settings(*SETTINGS)
    options.set_defaults(prompt_format="chat")
    options.add_argument(
        "--random-weights",
        metavar="CONFIG",
        help="use random weights in the shape of this config.json, or of a Llama with these key=value,...",
    )
    options.add_whole_number("published_prompts", 1, default=3, help="number of prompts for (a)")
    options.add_whole_number("repeats", 1, default=3, help="number of alternating runs of (c) and (d)")
    options.add_whole_number("kernel_rows", 1, default=32, help="number of rows of the synthetic logits")
    options.add_argument(
        "--only",
        default="abcdk",
        help="parts to run: any of the letters a, b, c, d, and k for the nucleus and cosine steps",
    )
    return options


def main() -> None:
    options = create_parser().parse_args()
    with command_line.report_errors(options.debug, interrupted="interrupted"):
        chosen = Settings(**{name: getattr(options, name) for name in SETTINGS}).check()
        for name in SETTINGS:
            setattr(options, name, getattr(chosen, name))
        from speed_comparison import comparison  # here: --help need not wait for torch

        comparison.compare(options)


if __name__ == "__main__":
    main()
