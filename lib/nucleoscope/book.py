"""Prose and executed notebooks in, the book's sources and then the book out.

Contract: nothing is executed and nothing generated is ever in git. `stage` gathers ``book/`` and
the executed notebooks in a folder of its own (``_build/book/``), where every cell is a page
``cells/<model>/<dataset>``: the committed ``book/_toc.yml`` takes them in by a glob, so they
stand in model and data set order. `build` hands that folder to Jupyter Book. Files that have not
changed are not touched, so that a rebuild reads only what is new.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from nbformat import NotebookNode

from nucleoscope import results
from nucleoscope.figure_data import csv_text

PLOTLY = "application/vnd.plotly.v1+json"
HEAVY = 1_500_000  # bytes of a page beyond which a reader waits for it
WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDED, OPEN = "hide-input", "show-input"  # tags of cells
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
PROGRESS = re.compile(r"\d%\||\b(it|tok|B)/s\b|\bs/it\b")  # a line that a progress bar drew
BEFORE = r"(?<![\w.~-])"  # a path starts here, and is not the rest of another one or of a web address
PEOPLE = re.compile(BEFORE + r"(?:/home|/Users|[A-Z]:\\Users)[/\\][^/\\\s\"'<>]+")
ELSEWHERE = re.compile(BEFORE + r"(?<![:<>/])/(?:[\w.+-]+/)+([\w.+-]+)")
WORDS = "nucleoscope-strip"  # the class of HTML that shows what a model wrote: its paths are its own


GENERATED = (
    "CHANGELOG.md",
    "CITATION.cff",
    "README.md",
    "scripts/grids/default.yml",
    "scripts/grids/study.yml",
    "scripts/slurm/config.yaml",
)  # files that pages include
PRINTED = ("scale.py",)  # scripts that print a part of a page


class BookError(ValueError):
    """The book cannot be built. The text is one line."""


# Executed notebooks, as they are published


def normalise(notebook: NotebookNode, folders: Mapping[str, str]) -> NotebookNode:
    """A copy that says what was found and not where, when or by whom it was run.

    ``folders`` are machine paths and what stands for them ("" for the project's own folder). Other
    absolute paths keep their last name. Times, papermill's notes, widgets and progress bars go;
    code cells are folded unless tagged "show-input". Doing it twice changes nothing more.
    """
    result = copy.deepcopy(notebook)
    result.metadata = NotebookNode(copy.deepcopy(KERNEL))
    result.nbformat, result.nbformat_minor = 4, 5
    result.cells = _joined(result.cells)
    for number, cell in enumerate(result.cells, 1):
        tags = list(cell.metadata.get("tags", []))
        if cell.cell_type == "code":
            if not {FOLDED, OPEN, "remove-input", "remove-cell"} & set(tags):
                tags.append(FOLDED)
            cell.outputs = [output for output in map(_still, cell.outputs) if output]
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        cell.id = f"cell-{number}"  # papermill draws a new one for the parameters in each run
    for cell in result.cells:
        cell.update(_shortened(cell, _patterns(folders), elsewhere=cell.cell_type == "code"))
    return result


def _joined(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells with neighbours that show nothing made one, and without the parameters that papermill replaced.

    Settings and imports are then one fold at the top of a page, not three.
    """
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells):
        cells = [cell for cell in cells if "parameters" not in cell.metadata.get("tags", [])]
    joined: list[NotebookNode] = []
    for cell in cells:
        last = joined[-1] if joined else None
        if last and _silent(last) and cell.cell_type == "code" and not _removed(cell) and _open(last) == _open(cell):
            cell.source = f"{last.source}\n\n{cell.source}"
            cell.metadata["tags"] = [tag for tag in cell.metadata.get("tags", []) if tag != "parameters"]
            joined.pop()
        joined.append(cell)
    return joined


def _silent(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and not cell.get("outputs") and not _removed(cell)


def _open(cell: NotebookNode) -> bool:
    return OPEN in cell.metadata.get("tags", [])


def _removed(cell: NotebookNode) -> bool:
    return "remove-cell" in cell.metadata.get("tags", [])


def _still(output: NotebookNode) -> NotebookNode | None:
    """An output without what only moved while the notebook ran; None where nothing is left."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]+", output.text)
        output.text = "".join(f"{line}\n" for line in lines if line.strip() and not PROGRESS.search(line))
        return output if output.text else None
    if WIDGET in output.get("data", {}):
        return None
    if "data" in output:
        output.metadata = NotebookNode()
    return output


def _patterns(folders: Mapping[str, str]) -> list[tuple[re.Pattern, str]]:
    """What to replace by what: the longest folder first, because one may lie in another."""
    patterns = []
    for path, name in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        start = BEFORE + re.escape(path.rstrip("/"))
        if len(path) > 1:  # the home of some containers is "/"
            patterns += [(re.compile(start + "/"), f"{name}/" if name else "")]
            patterns += [(re.compile(start + r"(?![\w-]|\.\w)"), name or ".")]
    return [*patterns, (PEOPLE, "~")]


def _shortened(value: Any, patterns: list[tuple[re.Pattern, str]], elsewhere: bool) -> Any:
    """``value`` with the patterns replaced in every text, except in binary data and in a model's own words.

    ``elsewhere``: any other absolute path keeps its last name. Prose has such paths as links.
    """
    if isinstance(value, dict):
        kept = ("bdata", "image/png", "image/jpeg")
        return NotebookNode({k: v if k in kept else _shortened(v, patterns, elsewhere) for k, v in value.items()})
    if isinstance(value, list):
        return [_shortened(item, patterns, elsewhere) for item in value]
    if isinstance(value, str) and WORDS not in value:
        for pattern, replacement in [*patterns, *([(ELSEWHERE, r"…/\1")] if elsewhere else [])]:
            value = pattern.sub(replacement, value)
    return value


def titled(notebook: NotebookNode, title: str) -> NotebookNode:
    """The notebook with its first heading replaced: the pages of all cells come from one notebook."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^# ", cell.source, re.MULTILINE):
            cell.source = re.sub(r"^# .*$", lambda _: f"# {_plain(title)}", cell.source, count=1, flags=re.MULTILINE)
            return notebook
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {_plain(title)}", id="title"))
    return notebook


# The data of figures


def _with_data(notebook: NotebookNode, name: str) -> Iterator[tuple[str, bytes]]:
    """Names a csv in each figure's ``layout.meta`` that has none yet, and yields its name and content."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output.data[PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    for number, figure in enumerate(figures, 1):
        meta = figure["layout"].setdefault("meta", {})
        if isinstance(meta, dict) and not meta.get("csv"):
            meta["csv"] = f"{name}-figure-{number}.csv"
            yield meta["csv"], csv_text(figure).encode()


# The book's sources


def stage(root: Path, results_dir: Path, staging: Path) -> bool:
    """Fills ``staging`` with the book's sources; nothing else stays there. True where a file went away."""
    folders = {str(root): "", str(Path(results_dir).resolve()): "results", str(Path.home()): "~"}
    files = cell_pages(Path(results_dir), folders) | analysis_pages(Path(results_dir), folders)
    source = root / "book"
    files |= {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for name in GENERATED:
        files[f"generated/{Path(name).name}"] = (root / name).read_bytes()
    for script in (root / "scripts").glob("*.py"):
        files[f"generated/{script.stem}.txt"] = _said(script, "--help")
        if script.name in PRINTED:
            files[f"generated/{script.stem}.md"] = _said(script)
    return _sync(files, staging)


def cell_pages(results_dir: Path, folders: Mapping[str, str]) -> dict[str, bytes]:
    """One page for each cell that has an executed notebook, their data, and a table that leads to them."""
    cells = [folder for folder in results.cells(results_dir) if (folder / results.NOTEBOOK).is_file()]
    if not cells:
        raise BookError(f"no executed notebooks in '{results_dir}': measure something first (make run)")
    files = {}
    for cell in cells:
        model, dataset = cell.name, cell.parent.name
        page = f"cells/{model}/{dataset}"
        files |= notebook_page(cell / results.NOTEBOOK, page, folders, f"{model} on {dataset}")
    files["cells/index.md"] = overview(sorted(cells, key=lambda cell: (cell.name, cell.parent.name))).encode()
    return files


def analysis_pages(results_dir: Path, folders: Mapping[str, str]) -> dict[str, bytes]:
    """Executed notebooks one folder down (``correlation_eval/...``), and the tables and pictures beside them.

    Those in ``book/`` are pages at the top: the front page, and what no results folder is for.
    """
    files = {}
    for path in sorted(results_dir.glob("*/*.*")):
        name = path.name if path.parent.name == results.PAGES else f"{path.parent.name}/{path.name}"
        if path.suffix == ".ipynb":
            files |= notebook_page(path, name.removesuffix(".ipynb"), folders)
        elif path.suffix in (".csv", ".png", ".svg") and path.is_file():
            files[name] = path.read_bytes()
    return files


def notebook_page(path: Path, page: str, folders: Mapping[str, str], title: str | None = None) -> dict[str, bytes]:
    """The files of one page made from an executed notebook. BookError where it cannot be read."""
    try:
        notebook = normalise(nbformat.read(path, as_version=4), folders)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise BookError(f"'{path}' is not an executed notebook: {str(error).splitlines()[0]}") from None
    if title:
        notebook = titled(notebook, title)
    place = PurePosixPath(page)
    files = {(place.parent / file).as_posix(): content for file, content in _with_data(notebook, place.name)}
    return files | {f"{page}.ipynb": nbformat.writes(notebook).encode()}


def overview(cells: list[Path]) -> str:
    """The page that lists the cells, in the order given, as a table that readers can sort."""
    rows = []
    for cell in cells:
        info, page = results.load_info(cell), f"/cells/{cell.name}/{cell.parent.name}"
        try:
            settings = info["settings"]
            facts = [f"{settings['n_prompts']:,}", f"{info['tokens']:,}", settings["prompt_format"], settings["dtype"]]
        except KeyError as error:
            raise BookError(f"'{cell / results.RUN_INFO}' says nothing of {error}") from None
        rows.append(
            f"| {' | '.join([*map(_plain, (cell.name, cell.parent.name)), *facts])} | [the run](<{page}.ipynb>) |"
        )
    head = "| model | data set | prompts | tokens | prompt format | dtype | page |\n|---|---|--:|--:|---|---|---|\n"
    return (
        "# The runs\n\nOne page for each model on each data set, made from the notebook that measured it.\n\n"
        ":::{div} sortable\n\n" + head + "\n".join(rows) + "\n\n:::\n"
    )


def _plain(name: str) -> str:
    """A name as Markdown that shows just that name."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|$~^&-])", r"\\\1", name)


def _said(script: Path, *options: str) -> bytes:
    """What a script prints, in lines that fit a page."""
    command, environment = [sys.executable, str(script), *options], os.environ | {"COLUMNS": "88"}
    done = subprocess.run(command, env=environment, capture_output=True)
    if done.returncode:
        raise BookError(f"{script.name} failed: {(done.stderr.decode().splitlines() or ['?'])[-1]}")
    return done.stdout


def _sync(files: Mapping[str, bytes], folder: Path) -> bool:
    """Makes ``folder`` hold exactly these files and leaves unchanged ones alone. True where one went away."""
    gone = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in files]
    for path in gone:
        path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return bool(gone)


def build(root: Path, results_dir: Path, output: Path) -> Path:
    """Builds the book into ``output/_build/html`` and returns its first page. BookError where that fails.

    Every warning is an error, and none is suppressed; Sphinx says them on stderr.
    """
    staging, html = output / "_build" / "book", output / "_build" / "html"
    if stage(root, results_dir, staging):
        shutil.rmtree(html, ignore_errors=True)  # Sphinx leaves the pages of sources that are gone
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(staging),
        "--path-output",
        str(output),
    ]
    command += ["--config", str(root / "_config.yml"), "--nitpick", "--warningiserror", "--keep-going", "--quiet"]
    # With a fixed seed sets have one order, in Sphinx and in all its extensions.
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise BookError("the book has warnings or errors, said above")
    for page in sorted(html.rglob("*.html")):
        if page.stat().st_size > HEAVY:
            print(f"heavy: {page.relative_to(html)} has {page.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return html / "index.html"
