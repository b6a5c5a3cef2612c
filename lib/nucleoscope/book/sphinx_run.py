"""Runs Sphinx in a process of its own as `jupyter-book build` does, but on several cores, for which that has no option.

Contract: a folder of sources with a _toc.yml in, HTML out. Every warning is an error, and all of them are printed.
"""

import sys
from pathlib import Path


def main() -> None:
    """Builds; the arguments are the folder of sources, the folder of pages, Jupyter Book's settings and the cores."""
    from jupyter_book.sphinx import build_sphinx

    source, pages, settings, cores = sys.argv[1:]
    overrides = {"external_toc_path": f"{source}/_toc.yml", "latex_individualpages": False, "nitpicky": True}
    ended = build_sphinx(
        Path(source),
        Path(pages),
        noconfig=True,
        path_config=settings,
        confoverrides=overrides,
        warningiserror=True,
        keep_going=True,
        quiet=True,
        jobs=int(cores),
    )
    sys.exit(1 if isinstance(ended, BaseException) else ended)


if __name__ == "__main__":
    main()
