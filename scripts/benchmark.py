"""Times the study's algorithm, transformers' generate, Nucleoscope, and bare forward passes.

All of them run in one process, on the same prompts or, for (a), on the first few:

  (a) the study's algorithm (itsmejul/llm-confidence): one prompt at a time, recomputing
      the whole prefix for every token, a full sort, k x k cosines (reimplemented here;
      the number of prompts is printed)
  (b) transformers' generate in batches with output_logits, then the same quantities
      as in (c)
  (c) Nucleoscope
  (d) the lower bound on the time: the forward passes of (c), token by token, with
      only an argmax

It also times the nucleus and cosine steps alone, on synthetic logits, and whole runs,
including saving the files, with the default variants and without any. It prints Markdown.

--against CHECKOUT compares this version with another instead. The two versions (A and
B) take turns measuring the same prompts, in the order A B B A A B ..., each time in a
process of its own; the tables show the ratio within each pair, and the spread of these
ratios. CHECKOUT is a folder with another version of this project, for example created
by `git worktree add ../before 07e2a7e`; if it has no .venv, this Python runs it.
Measuring, prefill, scoring (with the prompts as texts) and single steps are timed
separately; peak memory, up to the end of measuring, is that of the process or, on a
GPU, that of the GPU.

--scale N instead compares a whole run of N prompts with one of 100, on a small random
model.

--context instead times two ways of comparing candidates in context: as branches of a
tree, and in cached steps with one row per candidate, side by side on the same texts,
which are generated first.

--branching instead measures how fast texts are continued from candidates of some of
their tokens, compared with plain generation in batches of the same size.

--gpu_table instead prints the table in the README: the times of steps and runs of three
model shapes, each with 7 to 8 billion random weights. Nothing is downloaded; it needs
an NVIDIA GPU with at least 40 GB.
"""

import argparse
import re
from functools import partial
from pathlib import Path

from nucleoscope import settings
from nucleoscope.data import prompts
from nucleoscope.settings import Settings
from nucleoscope.workflow import command_line
from speed_comparison import DATASETS

SETTINGS = ("model_name", "prompt_column", "n_prompts", "max_tokens", "prompt_format")
# Settings of --context and --branching.
SECOND_PASS = ("context_candidates", "branch_points", "branch_length", "branch_replicates")
PARTS = "abcdkv"
SETTINGS += ("top_p", "device", "dtype", "batch_size")


class RawHelpFormatter(command_line.HelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description."""


def create_parser() -> command_line.Parser:
    """The command line."""
    options = command_line.Parser(__doc__, RawHelpFormatter)
    options.add_settings(*SETTINGS)
    options.set_defaults(prompt_format="chat")
    options.add_argument(
        "--dataset_name",
        metavar="NAME",
        nargs="+",
        type=partial(settings.parse, "dataset_name"),
        help="data set, by default math; with --against one or more, by default math, stories and articles",
    )
    options.add_argument("--against", metavar="CHECKOUT", help="folder of another version of this project")
    options.add_whole_number("scale", 1, metavar="N", help="compare a run of this many prompts with a run of 100")
    options.add_argument(
        "--context", action="store_true", help="compare the two ways of measuring candidates in context"
    )
    options.add_argument("--branching", action="store_true", help="compare branches with plain generation")
    options.add_settings(*SECOND_PASS)
    options.add_argument(
        "--gpu_table",
        action="store_true",
        help="time three model shapes with random weights; nothing is downloaded; needs an NVIDIA GPU with at least "
        "40 GB",
    )
    options.add_argument(
        "--random_weights",
        metavar="CONFIG",
        help="use random weights in the shape of this config.json, or of a Llama with these settings: key=value,...",
    )
    options.add_whole_number("published_prompts", 1, default=3, help="number of prompts for (a)")
    options.add_whole_number(
        "repeats",
        1,
        default=3,
        help="how many times (c) and (d), or runs with and without variants, alternate; with --against, the number of "
        "pairs",
    )
    options.add_whole_number("kernel_rows", 1, default=32, help="number of rows of the synthetic logits")
    options.add_argument(
        "--only",
        default=PARTS,
        help="parts to run: any of the letters a, b, c, d (see above), k (nucleus and cosine steps) and v (variants)",
    )
    return options


def check_only(letters: str) -> None:
    """ValueError unless all letters name parts of the benchmark."""
    if not letters or set(letters) - set(PARTS):
        raise ValueError(
            f"--only is {settings.quote(letters)}: it must be one or more of the letters {', '.join(PARTS)}"
        )


def check_random_weights(given: str | None) -> None:
    """ValueError unless random weights have the shape of an existing file, or of numbers by their names."""
    if given is None:
        return
    if Path(given).is_file():
        return
    if not all(re.fullmatch(r"[a-z_0-9]+=[^=,]+", pair) for pair in given.split(",")):
        shown = settings.quote(given)
        raise ValueError(
            f"random_weights is {shown}: it must be an existing config.json, or settings such as "
            "hidden_size=64,num_hidden_layers=2"
        )


def check_options(options: argparse.Namespace) -> None:
    """Puts settings into their normal form. ValueError, in one line, for what is invalid or does not go together."""
    check_only(options.only)
    check_random_weights(options.random_weights)
    for name in SECOND_PASS:  # before they are compared with numbers
        settings.validate(name, getattr(options, name))
    if options.against is not None and (options.scale or options.random_weights):
        raise ValueError("--against cannot be combined with --scale or --random_weights: give only one of them")
    if options.gpu_table and options.device.partition(":")[0] not in ("auto", "cuda"):
        raise ValueError(f"--gpu_table needs an NVIDIA GPU: omit --device={options.device}")
    if options.gpu_table and (options.against is not None or options.scale or options.random_weights):
        raise ValueError("--gpu_table cannot be combined with --against, --scale or --random_weights")
    if options.context and (options.against is not None or options.scale or options.gpu_table):
        raise ValueError("--context cannot be combined with --against, --scale or --gpu_table")
    if options.context and not 2 <= options.context_candidates <= 64:
        raise ValueError(f"context_candidates is {options.context_candidates}: --context compares 2 to 64 candidates")
    if options.branching and (options.context or options.against is not None or options.scale or options.gpu_table):
        raise ValueError("--branching cannot be combined with --context, --against, --scale or --gpu_table")
    if options.branching and not (2 <= options.context_candidates <= 64 and options.branch_points > 0):
        raise ValueError("--branching needs context_candidates from 2 to 64 and branch_points of at least 1")
    if options.scale and (options.dataset_name or options.model_name != Settings.model_name):
        raise ValueError(
            "--scale cannot be combined with --dataset_name or --model_name: it has its own prompts and model"
        )
    if options.against is None and len(options.dataset_name or []) > 1:
        raise ValueError(f"--dataset_name has {len(options.dataset_name)} names: give one, or use --against")
    given = {name: getattr(options, name) for name in SETTINGS}
    names = [Settings(**given, dataset_name=name).check().dataset_name for name in options.dataset_name or []]
    options.dataset_name = list(dict.fromkeys(names))
    chosen = Settings(**given).check()
    for name in SETTINGS:
        setattr(options, name, getattr(chosen, name))
    if not (options.scale or options.gpu_table):  # which have data of their own
        default = DATASETS if options.against is not None else [Settings.dataset_name]
        for name in options.dataset_name or default:
            prompts.check(name, options.n_prompts, options.prompt_column)


def main() -> None:
    options = create_parser().parse_args()
    with command_line.report_errors(options.debug, interrupted="interrupted"):
        check_options(options)
        # Imported here: --help need not wait for torch, and other checks are made without it.
        if options.against is not None:
            from speed_comparison import builds

            builds.compare(options)
        elif options.gpu_table:
            from speed_comparison import gpu_table

            gpu_table.compare(options)
        elif options.context:
            from speed_comparison import in_context

            options.dataset_name = (options.dataset_name or [Settings.dataset_name])[0]
            in_context.compare(options)
        elif options.branching:
            from speed_comparison import branches

            options.dataset_name = (options.dataset_name or [Settings.dataset_name])[0]
            branches.compare(options)
        elif options.scale:
            from speed_comparison import scaling

            scaling.compare(options)
        else:
            from speed_comparison import comparison

            options.dataset_name = (options.dataset_name or [Settings.dataset_name])[0]
            comparison.compare(options)


if __name__ == "__main__":
    main()
