"""Converts an executed notebook into a page of the book.

Contract: notebooks as nbformat reads them; no files, and nothing is executed. Numbers and figures
stay as computed; everything that depends on the machine or on the course of the run is removed.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

import nbformat
from nbformat import NotebookNode

from nucleoscope.views.tables import NOTHING_YET
from nucleoscope.views.token_text import escape_name, make_encodable

WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDED, OPEN = "hide-input", "show-input"  # tags of cells
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
PROGRESS = re.compile(r"\d%\||\b(it|tok|B)/s\b|\bs/it\b")  # a line that a progress bar drew
BEFORE = r"(?<![\w.~…-])"  # a path starts here, and is not the rest of another path or of a URL
TYPED = r"(?<!--results_dir=)"  # but not as the option of a command, which readers paste
PEOPLE = re.compile(TYPED + BEFORE + r"(?:/home|/Users|[A-Z]:\\Users)[/\\][^/\\\s\"'<>]+")
ELSEWHERE = re.compile(TYPED + BEFORE + r"(?<![:<>/])/(?:[\w.+-]+/)+([\w.+-]+)")
WORDS = "nucleoscope-strip"  # the class of HTML with a model's text: paths in it are left alone


def normalise(notebook: NotebookNode, folders: Mapping[str, str]) -> NotebookNode:
    """A copy of the notebook that contains the results, but not where, when or by whom it was run.

    ``folders`` maps paths on this machine to their replacements ("" for the project's own folder). Other
    absolute paths keep only their last component, except after ``--results_dir=`` in a command, which readers paste.
    Times, papermill's notes, widgets and progress bars are removed; code cells are folded unless tagged "show-input".
    A page whose data were not measured ends where its first section would be empty: what is above says what is
    missing. Applying it twice has no further effect.
    """
    result = copy.deepcopy(notebook)
    result.metadata = NotebookNode(copy.deepcopy(KERNEL))
    result.nbformat, result.nbformat_minor = 4, 5
    result.cells = _join_cells(_drop_empty_sections(result.cells))
    for number, cell in enumerate(result.cells, 1):
        tags = list(cell.metadata.get("tags", []))
        if cell.cell_type == "code":
            if not {FOLDED, OPEN, "remove-input", "remove-cell"} & set(tags):
                tags.append(FOLDED)
            cell.outputs = [output for output in map(_drop_progress, cell.outputs) if output]
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        cell.id = f"cell-{number}"  # papermill creates a new id for the parameters in each run
    for cell in result.cells:
        cell.update(_shorten_paths(cell, _build_patterns(folders), elsewhere=cell.cell_type == "code"))
    return result


def _drop_empty_sections(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells before the first section in which the notebook has `NOTHING_YET` to show, or all cells."""
    section = len(cells)
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            section = place
        shown = (output.get("data", {}).get("text/markdown") for output in cell.get("outputs", []))
        if NOTHING_YET in shown:
            return cells[:section]
    return cells


def _join_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells, with adjacent cells without output merged, and without the parameters that papermill replaced.

    Settings and imports are then one fold at the top of a page instead of three.
    """
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells):
        cells = [cell for cell in cells if "parameters" not in cell.metadata.get("tags", [])]
    joined: list[NotebookNode] = []
    for cell in cells:
        last = joined[-1] if joined else None
        if (
            last
            and _is_silent(last)
            and cell.cell_type == "code"
            and not _is_removed(cell)
            and _is_open(last) == _is_open(cell)
        ):
            cell.source = f"{last.source}\n\n{cell.source}"
            cell.metadata["tags"] = [tag for tag in cell.metadata.get("tags", []) if tag != "parameters"]
            joined.pop()
        joined.append(cell)
    return joined


def _is_silent(cell: NotebookNode) -> bool:
    return cell.cell_type == "code" and not cell.get("outputs") and not _is_removed(cell)


def _is_open(cell: NotebookNode) -> bool:
    return OPEN in cell.metadata.get("tags", [])


def _is_removed(cell: NotebookNode) -> bool:
    return "remove-cell" in cell.metadata.get("tags", [])


def _drop_progress(output: NotebookNode) -> NotebookNode | None:
    """An output without anything that only changed while the notebook ran; None if nothing is left."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]+", output.text)
        output.text = "".join(f"{line}\n" for line in lines if line.strip() and not PROGRESS.search(line))
        return output if output.text else None
    if WIDGET in output.get("data", {}):
        return None
    if "data" in output:
        output.metadata = NotebookNode()
    return output


def _build_patterns(folders: Mapping[str, str]) -> list[tuple[re.Pattern, str]]:
    """What to replace by what: the longest folder first, because folders may be nested."""
    patterns = []
    for path, name in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        start = (TYPED if name.startswith("…") else "") + BEFORE + re.escape(path.rstrip("/"))
        if len(path) > 1:  # in some containers, the home folder is "/"
            patterns += [(re.compile(start + "/"), f"{name}/" if name else "")]
            patterns += [(re.compile(start + r"(?![\w-]|\.\w)"), name or ".")]
    return [*patterns, (PEOPLE, "~")]


def _shorten_paths(value: Any, patterns: list[tuple[re.Pattern, str]], elsewhere: bool) -> Any:
    """``value`` with the patterns replaced in every string, except in binary data and in a model's own text.

    ``elsewhere``: every other absolute path keeps only its last component. Prose has such paths as links.
    """
    if isinstance(value, dict):
        kept = ("bdata", "image/png", "image/jpeg")
        return NotebookNode({k: v if k in kept else _shorten_paths(v, patterns, elsewhere) for k, v in value.items()})
    if isinstance(value, list):
        return [_shorten_paths(item, patterns, elsewhere) for item in value]
    if isinstance(value, str) and WORDS not in value:
        for pattern, replacement in [*patterns, *([(ELSEWHERE, r"…/\1")] if elsewhere else [])]:
            value = pattern.sub(replacement, value)
    return value


def set_title(notebook: NotebookNode, title: str) -> NotebookNode:
    """The notebook with its first heading replaced, because the pages of all runs come from one notebook.

    The notebook itself is changed. One without a heading gets a new first cell with it.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"^# ", cell.source, re.MULTILINE):
            cell.source = re.sub(
                r"^# .*$", lambda _: f"# {escape_name(title)}", cell.source, count=1, flags=re.MULTILINE
            )
            return notebook
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(f"# {escape_name(title)}", id="title"))
    return notebook


def encode_page_name(name: str) -> str:
    """A name as part of a page's address: letters, digits, spaces and ``_-.`` stay; two names never become one."""
    return re.sub(r"[^\w .-]", lambda found: f"~{ord(found[0]):x}~", make_encodable(name))
