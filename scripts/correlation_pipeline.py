"""Measures one model on one data set: runs notebooks/run.py and leaves its results in a folder."""

import argparse

from nucleoscope.workflow.command_line import Parser, one_line_errors


def number_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither auto nor a number")
    return text if text == "auto" else int(text)


def parser() -> Parser:
    """The command line; names and defaults are those of the notebook's parameters cell.

    Only prompt_format differs: here it is the study's, there what suits the packaged model.
    """
    options = Parser(__doc__)
    add = options.add_argument
    add("--model_name", default="SmolLM2-135M-Instruct", help="Hub id, folder, .gguf file, or the packaged default")
    add("--dataset_name", default="math", help="gsm8k, writingprompts, xsum, math, stories, articles, or a file")
    add("--mode", default="generate", choices=["generate", "score"], help="measure what the model writes, or a text")
    add("--text_column", help="with mode=score: column of the data set that holds the texts, one behind each prompt")
    add("--n_prompts", "--n_samples", type=int, default=100, help="the first so many prompts of the data set")
    add("--max_tokens", type=int, default=100, help="tokens written or measured for each prompt, at most")
    add("--top_p", type=float, default=0.9, help="mass of the nucleus, in (0, 1]")
    add("--seed", type=int, default=0, help="of the sampling; mode=score has none")
    add("--prompt_format", default="raw", choices=["raw", "chat"], help="as it is, or in the model's template")
    add("--prompt_column", help="column of a file that holds the prompts; None means prompt")
    add("--batch_size", type=number_or_auto, default="auto", help="prompts worked on together, or auto")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of the weights")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ..., balanced (all GPUs), or auto")
    add("--results_dir", default="results", help="where <dataset>[-<text_column>]/<model>/ is made")
    add("--overwrite", action="store_true", help="replace results there that were made with other settings")
    add(
        "--model_revision", help="commit of a model on the Hub that all its files are taken from; None means the newest"
    )
    add("--trust_remote_code", action="store_true", help="run code that comes with the model; read it first")
    return options


def main() -> None:
    parameters = vars(parser().parse_args())
    again = "interrupted: the same command goes on where this was"
    with one_line_errors(parameters.pop("debug"), interrupted=again):
        from nucleoscope.store import results
        from nucleoscope.workflow import notebooks  # here: --help need not wait for them

        names = ("results_dir", "dataset_name", "model_name", "text_column")
        folder = results.cell_folder(*(parameters[name] for name in names))
        print(f"{folder.name} on {folder.parent.name}", flush=True)
        notebooks.execute("run", folder / results.NOTEBOOK, parameters)
        print(f"results: {folder}")


if __name__ == "__main__":
    main()
