"""Builds the book from prose and executed notebooks: first its sources, then its pages.

Contract: nothing is executed and nothing generated is in git. `stage` collects ``book/`` and
the executed notebooks in a folder of its own (``_build/book/``), where every run is a page
``runs/<model>/<dataset>`` (`locate_page`): the committed ``book/_toc.yml`` includes them by a pattern, which
becomes their list in the order of models, data sets and settings. `build` passes that folder to Jupyter Book.
Unchanged files are not touched, so that a rebuild reads only what is new; after a build that did not succeed,
everything is read again.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import nbformat
import yaml
from nbformat import NotebookNode

from nucleoscope import quantities, settings, variants
from nucleoscope.book.pages import encode_page_name, normalise, set_title
from nucleoscope.models import gguf_reference
from nucleoscope.names import escape_line
from nucleoscope.store import results
from nucleoscope.store.run_names import describe_run, format_value, order_run, split
from nucleoscope.store.run_settings import Head, describe_head_value, find_heads, list_settings
from nucleoscope.views import texts
from nucleoscope.views.figure_data import PLOTLY, format_csv
from nucleoscope.views.token_text import escape_name

HEAVY = 1_500_000  # bytes from which a page is slow to load
GENERATED = (
    "CHANGELOG.md",
    "CITATION.cff",
    "README.md",
    "scripts/grids/default.yml",
    "scripts/grids/study.yml",
    "scripts/slurm/config.yaml",
)  # files that pages include
PRINTED = ("scale.py",)  # scripts that print a part of a page
# Further pages of a run: the notebook, the end of the page's name, and what the title and the link add. "~" is in no
# encoded name on its own.
FURTHER = (
    (results.CONTEXT_NOTEBOOK, "~in-context", "in context"),
    (results.BRANCHES_NOTEBOOK, "~branches", "branches"),
)
RUN_PAGES = "runs/*/*"  # in book/_toc.yml
SOURCES = (".md", ".ipynb", ".rst")  # the endings of pages that Jupyter Book reads
UNFINISHED = ".unfinished"  # beside html/ from the start of a build until it has succeeded


class BookError(ValueError):
    """The book cannot be built. The text is one line."""


# The data of figures


def _extract_data(notebook: NotebookNode, name: str) -> Iterator[tuple[str, bytes]]:
    """Adds the name of a csv to each figure's ``layout.meta`` that has none yet, and yields its name and content."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output.data[PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    for number, figure in enumerate(figures, 1):
        meta = figure["layout"].setdefault("meta", {})
        if isinstance(meta, dict) and not meta.get("csv"):
            meta["csv"] = f"{name}-figure-{number}.csv"
            yield meta["csv"], format_csv(figure).encode()


# The book's sources


def stage(root: Path, results_dir: Path, staging: Path) -> bool:
    """Fills ``staging`` with the book's sources and removes everything else. True if a file was removed."""
    folders = {str(root): "", str(Path.home()): "~", **name_results(root, results_dir)}
    scripts = sorted((root / "scripts").glob("*.py"))
    # first: without a run there is no book, and nothing to wait for
    files = build_run_pages(Path(results_dir), folders)
    with ThreadPoolExecutor() as pool:  # the scripts run while this process reads the notebooks
        helps = pool.submit(_capture_help, scripts)
        printed = {
            script.stem: pool.submit(_capture_output, [sys.executable, str(script)])
            for script in scripts
            if script.name in PRINTED
        }
        files |= build_analysis_pages(Path(results_dir), folders)
    source = root / "book"
    files |= {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    files["_toc.yml"] = list_runs_in_contents(files["_toc.yml"], files)
    for name in GENERATED:
        files[f"generated/{Path(name).name}"] = (root / name).read_bytes()
    files |= {name: text.encode() for name, text in describe_modules().items()}
    files["generated/settings.md"] = settings.format_reference().encode()
    files["generated/quantities.md"] = quantities.format_reference().encode()
    files["generated/variants.md"] = variants.format_reference().encode()
    files["generated/gguf.md"] = gguf_reference.format_reference().encode()
    files |= {f"generated/{name}.txt": text.encode() for name, text in helps.result().items()}
    files |= {f"generated/{name}.md": output.result() for name, output in printed.items()}
    return _sync(files, staging)


def name_results(root: Path, results_dir: Path) -> dict[str, str]:
    """What pages call a results folder that is neither in the project nor in the user's home: its paths, its name.

    Inside these, its name follows from theirs, and is the one that the grid gives.
    """
    folder = results.locate_folder(results_dir)
    paths = {os.path.abspath(folder), str(folder.resolve())}
    known = [top for top in (str(root.resolve()), str(root), str(Path.home())) if top != "/"]
    return {path: f"…/{Path(path).name}" for path in paths if not any(Path(path).is_relative_to(top) for top in known)}


def build_run_pages(results_dir: Path, folders: Mapping[str, str]) -> dict[str, bytes]:
    """One page per run with an executed notebook, their data, and a table that links to them.

    A run whose notebook or run.json cannot be read is left out and named on stderr. BookError if none is left. The page
    with the table names the runs that the analyses count although they have no page.
    """
    counted = results.list_runs(results_dir)
    runs = [folder for folder in counted if (folder / results.NOTEBOOK).is_file()]
    if not runs:
        raise BookError(f"no executed notebooks in '{results_dir}': measure a model first, for example with make run")
    files, rows, heads = {}, {}, find_heads({(run.name, run.parent.name): run for run in runs})
    for run in sorted(runs, key=lambda run: order_run((run.name, run.parent.name))):
        model, dataset = run.name, run.parent.name
        page = locate_page(run)
        try:
            name = describe_run(model, dataset)
            found = build_notebook_page(run / results.NOTEBOOK, page, folders, name)
            for notebook, ending, words in FURTHER:
                if (run / notebook).is_file():
                    found |= build_notebook_page(run / notebook, f"{page}{ending}", folders, f"{name}, {words}")
            rows[run] = format_row(run, heads[model, dataset])
        except (BookError, OSError, ValueError) as error:
            print(f"left out: {escape_line(str(error))}", file=sys.stderr)
            problem = error
            continue
        files |= found | collect_texts(run, page)
    if not rows:
        raise BookError(f"no run can be shown: {escape_line(str(problem))}")
    repeats = results.find_repeats(results_dir, [(run.name, run.parent.name) for run in counted])
    left = [(run.name, run.parent.name) for run in counted if run not in rows]
    others = [describe_run(*key) for key in sorted(left, key=order_run) if key not in repeats]
    files["runs/index.md"] = format_overview(list(rows.values()), list_added(heads.values()), others).encode()
    return files


def list_runs_in_contents(contents: bytes, files: Iterable[str]) -> bytes:
    """The table of contents with the pages of runs, in the order of ``files``, instead of their pattern `RUN_PAGES`.

    A pattern would list them by their names as text: seed 10 before seed 2.
    """
    pages = [{"file": name.removesuffix(".ipynb")} for name in files if re.fullmatch(r"runs/[^/]+/[^/]+\.ipynb", name)]

    def expand(node: Any) -> Any:
        if isinstance(node, list):
            return [new for each in node for new in (pages if each == {"glob": RUN_PAGES} else [expand(each)])]
        return {key: expand(value) for key, value in node.items()} if isinstance(node, dict) else node

    return yaml.safe_dump(expand(yaml.safe_load(contents)), sort_keys=False, allow_unicode=True).encode()


def locate_page(run: Path) -> str:
    """The page of a run: ``runs/<model>/<dataset>``, or with settings ``runs/<model>-top_p=0.95/<dataset>``.

    A "=" comes from no encoded name.
    """
    model, named = split(run.name)
    settings = "".join(f"-{name}={encode_page_name(format_value(value))}" for name, value in named.items())
    return f"runs/{encode_page_name(model)}{settings}/{encode_page_name(run.parent.name)}"


def collect_texts(run: Path, page: str) -> dict[str, bytes]:
    """The scripts with a run's texts, for a folder beside its page: ``<page>.texts/``."""
    scripts = (run / texts.TEXTS).glob("*.js")
    return {f"{page}.texts/{path.name}": path.read_bytes() for path in scripts if texts.SCRIPT.fullmatch(path.name)}


def build_analysis_pages(results_dir: Path, folders: Mapping[str, str]) -> dict[str, bytes]:
    """Executed notebooks one folder down (``correlation_eval/...``), and the tables and pictures beside them.

    Those in ``book/`` are pages at the top level: the front page, and pages that belong to no results folder.
    """
    files = {}
    for path in sorted(results_dir.glob("*/*.*")):
        name = path.name if path.parent.name == results.PAGES else f"{path.parent.name}/{path.name}"
        if path.suffix == ".ipynb":
            files |= build_notebook_page(path, name.removesuffix(".ipynb"), folders)
        elif path.suffix in (".csv", ".png", ".svg") and path.is_file():
            files[name] = path.read_bytes()
    return files


def build_notebook_page(
    path: Path, page: str, folders: Mapping[str, str], title: str | None = None
) -> dict[str, bytes]:
    """The files of one page, from an executed notebook. BookError if it cannot be read."""
    try:
        notebook = normalise(nbformat.read(path, as_version=4), folders)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise BookError(f"'{path}' is not an executed notebook: {str(error).splitlines()[0]}") from None
    if title:
        notebook = set_title(notebook, title)
    place = PurePosixPath(page)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "text/html" in output.get("data", {}):
            output.data["text/html"] = texts.move_scripts(output.data["text/html"], f"./{quote(place.name)}.texts/")
    files = {(place.parent / file).as_posix(): content for file, content in _extract_data(notebook, place.name)}
    # nbformat indents, which puts each number of a figure on a line of its own; the book contains the notebook, too.
    compact = json.dumps(json.loads(nbformat.writes(notebook)), ensure_ascii=False, separators=(",", ":"))
    return files | {f"{page}.ipynb": compact.encode()}


def list_added(heads: Iterable[Head]) -> list[str]:
    """The settings with a column in the table of runs because they differ: those without one in every book."""
    return [
        name for name in list_settings(next(iter(heads), ())) if name not in ("n_prompts", "prompt_format", "dtype")
    ]


def format_row(run: Path, head: Head) -> str:
    """A run's row in the table of runs. ValueError names a run.json that cannot be used."""
    info = results.load_info(run)
    page = f"/{locate_page(run)}"
    found = info["settings"]
    if not isinstance(found, dict):
        raise ValueError(results.describe_unset(run / results.RUN_INFO))
    numbers = {"n_prompts": found["n_prompts"], "tokens": info["tokens"]}
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise ValueError(results.describe_unset(run / results.RUN_INFO, f"has '{name}', but not as a number"))
    facts = [*(f"{number:,}" for number in numbers.values()), found["prompt_format"], found["dtype"]]
    added = [escape_name(describe_head_value(head, name)) for name in list_added([head])]
    columns = [escape_name(str(value)) for value in (head["Model"], head["Dataset"])]
    if added:  # a table this wide hides its last column on many screens
        columns[0] = f"[{columns[0]}](<{page}.ipynb>)"
    columns += added
    columns += [*facts[:2], *(escape_name(str(value)) for value in facts[2:])]
    links = [f"[the run](<{page}.ipynb>)"]
    links += [f"[{words}](<{page}{ending}.ipynb>)" for notebook, ending, words in FURTHER if (run / notebook).is_file()]
    return f"| {' | '.join(columns)} | {', '.join(links)} |"


def format_overview(rows: list[str], added: Sequence[str] = (), others: Sequence[str] = ()) -> str:
    """The page that lists the runs, given their rows in order, as a table that readers can sort.

    ``added``: the settings that differ between the runs and have a column of their own. ``others``: the names of runs
    that are counted but have no page.
    """
    names = ["model", "data set", *(name.replace("_", " ") if name != "top_p" else name for name in added)]
    head = f"| {' | '.join(names)} | prompts | tokens | prompt format | dtype | page |\n"
    head += f"|---|---|{'---|' * len(added)}--:|--:|---|---|---|\n"
    each = "Each run, that is, one model on one data set" + (" with one combination of settings" if added else "")
    text = (
        f"# The runs\n\n{each}, has a page made from its executed notebook.\n\n"
        ":::{div} sortable\n\n" + head + "\n".join(rows) + "\n\n:::\n"
    )
    if others:
        what = (
            "This run has no page, but the analyses count it too"
            if len(others) == 1
            else (f"These {len(others):,} runs have no page, but the analyses count them too")
        )
        text += (
            f"\n{what}: {'; '.join(map(escape_name, others))}. `scripts/correlation_pipeline.py --only=page` writes "
            "the page of a run; to leave a run out, move its folder away.\n"
        )
    return text


def list_modules() -> dict[str, list[str]]:
    """The modules of each room by their names there; those in no room, of the package, come first."""
    package = Path(__file__).parents[1]
    rooms: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py"), key=lambda path: (path.parent, path.name)):
        room = ".".join([package.name, *path.parent.relative_to(package).parts])
        rooms.setdefault(room, [])
        if path.stem != "__init__":
            rooms[room].append(path.stem)
    return rooms


def describe_modules() -> dict[str, str]:
    """The reference of the package, as sources of the book: a table of each room's modules, and a page about them.

    `sphinx.ext.autosummary` makes the tables. It does not write the pages, as it could: those would come into the
    sources after Jupyter Book has read the table of contents, and be left out.
    """
    tables, pages = [], {}
    for room, names in list_modules().items():
        tables += [f"## {room}", "", "```{eval-rst}", f".. automodule:: {room}", ""]
        tables += [".. autosummary::", "", *(f"   {name}" for name in names), "```", ""]
        lines = [f"# {room}", ""]
        for name in names:
            lines += [f"## {room}.{name}", "", "```{eval-rst}", f".. automodule:: {room}.{name}"]
            lines += ["   :members:", "```", ""]
        pages[f"use/api/{room.rpartition('.')[2]}.md"] = "\n".join(lines)
    return {"generated/api.md": "\n".join(tables)} | pages


# Prints what each script named as an argument prints for --help, as JSON: one process starts faster than one for each.
SHOW_HELP = """
import contextlib, io, json, os, runpy, sys
found = {}
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    found[script] = said.getvalue()
print(json.dumps(found))
"""


def _capture_help(scripts: list[Path]) -> dict[str, str]:
    """What scripts print for --help, by their names. BookError if one prints nothing."""
    found = json.loads(_capture_output([sys.executable, "-c", SHOW_HELP, *map(str, scripts)]))
    if silent := [script for script, text in found.items() if not text]:
        raise BookError(f"{', '.join(silent)}: no output for --help")
    return {Path(script).stem: text for script, text in found.items()}


def _capture_output(command: list[str]) -> bytes:
    """The output of a command, in lines that fit a page."""
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "88"}, capture_output=True)
    if done.returncode:
        raise BookError(f"{command[1]} failed: {(done.stderr.decode().splitlines() or ['?'])[-1]}")
    return done.stdout


def _sync(files: Mapping[str, bytes], folder: Path) -> bool:
    """Makes ``folder`` contain exactly these files, without touching unchanged ones. True if one was removed.

    A folder without a file is removed, too.

    Links in it are removed, whatever they point to: nothing is written or removed outside.
    """
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            path.unlink()
    gone = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in files]
    for path in gone:
        path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what is in it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return bool(gone)


# Sphinx keeps millions of objects, and Python would spend a third of the time on searching them for garbage. It
# searches after two million new objects instead of 700, which takes some 130 MB more for this book.
RUN_JUPYTER_BOOK = """
import gc
gc.set_threshold(2_000_000)
from jupyter_book.cli.main import main
main()
"""

# Assets of the theme that no reader's browser loads, 5 MB in all: maps of its sources for its developers, translations
# that are used when pages are written, and fonts for browsers that cannot read WOFF2.
UNUSED = ("**/*.map", "locales", "vendor/**/*.ttf")


def _check_contents(staging: Path, results_dir: Path) -> None:
    """BookError if a page in the table of contents has no source: if its notebook, for example, was not executed."""

    def list_pages(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            yield from (page for each in node for page in list_pages(each))
        elif isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            yield from (page for each in node.values() for page in list_pages(each))

    pages = list_pages(yaml.safe_load((staging / "_toc.yml").read_text(encoding="utf-8")))
    if missing := [page for page in pages if not any((staging / f"{page}{end}").is_file() for end in SOURCES)]:
        raise BookError(
            f"pages of the book are missing in '{results_dir}' ({', '.join(missing)}): run make book, which executes "
            "their notebooks first"
        )


def build(root: Path, results_dir: Path, output: Path) -> Path:
    """Builds the book into ``output/_build/html`` and returns its front page. BookError if that fails.

    Every warning is an error, and none is suppressed; Sphinx prints them on stderr. It reads only pages that have
    changed, and would be silent about the others: after a build that failed or was killed, it starts from nothing.
    """
    if output.is_file():
        raise NotADirectoryError(f"'{output}' is a file: give a folder for the book")
    staging, html, unfinished = (output / "_build" / name for name in ("book", "html", UNFINISHED))
    removed = stage(root, results_dir, staging)
    _check_contents(staging, results_dir)
    if unfinished.exists():
        shutil.rmtree(html.with_name(".doctrees"), ignore_errors=True)
    if removed or unfinished.exists():
        shutil.rmtree(html, ignore_errors=True)  # Sphinx keeps the pages of sources that were removed
    unfinished.touch()
    command = [
        sys.executable,
        "-c",
        RUN_JUPYTER_BOOK,
        "build",
        str(staging),
        "--path-output",
        str(output),
    ]
    command += ["--config", str(root / "_config.yml"), "--nitpick", "--warningiserror", "--keep-going", "--quiet"]
    # A fixed hash seed fixes the order of sets in Sphinx and in all its extensions.
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise BookError("building the book produced warnings or errors, which are listed before this line")
    for pattern in UNUSED:
        for path in list((html / "_static").glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    unfinished.unlink()
    for page in sorted(html.rglob("*.html")):
        if page.stat().st_size > HEAVY:
            print(f"warning: {page.relative_to(html)} is large ({page.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return html / "index.html"
