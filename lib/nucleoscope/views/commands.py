"""Commands as pages show them: ready to paste into a shell, in lines that fit a page.

Contract: text only; nothing is run.
"""

import os

from nucleoscope.settings import Settings, format_results_option

PYTHON = ".venv/bin/python"
WIDE = 76  # letters of a line of code that has room beside the list of a page's sections, on a window of 1280 pixels


def format_pipeline(*options: str, results_dir: str | os.PathLike = Settings.results_dir) -> str:
    """The command that measures a run, with ``options`` and that of ``results_dir``: lines, all but the last with a
    backslash at their end.

    An option is never broken, however long it is.
    """
    lines = [f"{PYTHON} scripts/correlation_pipeline.py"]
    for option in filter(None, [*options, format_results_option(results_dir).strip()]):
        fits = len(lines) > 1 and len(f"{lines[-1]} {option} \\") <= WIDE
        lines[-1:] = [f"{lines[-1]} {option}"] if fits else [lines[-1], f"    {option}"]
    return " \\\n".join(lines)
