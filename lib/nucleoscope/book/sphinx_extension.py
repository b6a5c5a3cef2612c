"""Extensions that Sphinx and MyST-NB load while they build the book.

Contract: a figure stored as plotly's JSON becomes an interactive figure that follows the page's
theme, with its description and a link to its data; plotly.js and MathJax are copied from
installed packages, once, so that pages need no network.
"""

import base64
import hashlib
import html
import importlib.util
import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from nucleoscope.views import palette
from nucleoscope.views.figure_data import PLOTLY, decode

PACKAGE = __name__.partition(".")[0]
STATIC = Path(__file__).with_name("static")
SCRIPTS = ("plotly.min.js", "palette.js", "figures.js")  # only on pages with a figure
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts")  # files that pages with TeX may request
BUNDLED = shutil.ignore_patterns("all-packages.js")  # all extensions at once, which no page requests


class PlotlyRenderer:
    """MyST-NB's plug-in for plotly's JSON (entry point group ``myst_nb.mime_renderers``).

    ``layout.meta["alt"]`` describes the figure (else its title does); ``layout.meta["csv"]`` names
    a file with its data, from the page's folder.
    """

    mime_priority_overrides = (("*", PLOTLY, 1),)

    @staticmethod
    def handle_mime(renderer: Any, data: Any, inline: bool) -> list[nodes.Element] | None:
        if inline or data.mime_type != PLOTLY:
            return None
        return build_figure_nodes(data.content)


def build_figure_nodes(figure: Mapping[str, Any]) -> list[nodes.Element]:
    """A figure for HTML, its description for everything else, and the link to its data."""
    alt, source = describe_figure(figure), _read_meta(figure).get("csv")
    elsewhere = addnodes.only("", nodes.paragraph(text=f"Interactive figure: {alt}"), expr="not html")
    result = [nodes.raw("", render_figure(figure, alt), format="html", plotly=True), elsewhere]
    if source:
        link = addnodes.download_reference("", "", nodes.inline(text="data (csv)"), reftarget=source)
        result.append(nodes.paragraph("", "", link, classes=["figure-data"]))
    return result


def describe_figure(figure: Mapping[str, Any]) -> str:
    """A description of the figure: its alt text, or else its title without markup."""
    title = figure["layout"].get("title") or {}
    text = _read_meta(figure).get("alt") or (title if isinstance(title, str) else title.get("text"))
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text or "Figure")).split())


def render_figure(figure: Mapping[str, Any], alt: str) -> str:
    """The HTML element in which figures.js draws, with the data to draw."""
    content = {"data": _round_arrays(figure["data"]), "layout": _round_arrays(figure["layout"])}
    # a script must not contain "<": "</script>" would end it, and "<!--" would hide what follows
    payload = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")
    role = "group" if figure["layout"].get("updatemenus") else "img"
    height = int(figure["layout"].get("height") or 450)
    return (
        f'<div class="plotly-figure"><div class="plot" role="{role}" aria-label="{html.escape(alt)}"'
        f' style="min-height:{height}px"></div>\n<script type="application/json">{payload}</script>\n'
        "<noscript>This figure needs JavaScript, which is disabled in this browser.</noscript></div>\n"
    )


def _read_meta(figure: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = figure["layout"].get("meta")
    return meta if isinstance(meta, dict) else {}


def _round_arrays(value: Any) -> Any:
    """The same with packed float64 as float32: halves the page, and is still finer than any screen."""
    if isinstance(value, dict) and value.get("dtype") == "f8":
        data = decode(value).astype(np.dtype("<f4")).tobytes()
        return {**value, "dtype": "f4", "bdata": base64.b64encode(data).decode()}
    if isinstance(value, dict):
        return {key: _round_arrays(item) for key, item in value.items()}
    return [_round_arrays(item) for item in value] if isinstance(value, list) else value


def _copy_assets(app: Sphinx) -> None:
    """Copies the shared files to where pages expect them, before Sphinx writes their checksums into pages."""
    if app.builder.format != "html":
        return
    target = Path(app.outdir, "_static")
    mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
    sources = {target / path.name: path for path in STATIC.iterdir()}
    sources[target / "plotly.min.js"] = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    sources |= {target / "mathjax" / name: mathjax / name for name in MATHJAX}
    for new, old in sources.items():
        if old.is_dir():
            shutil.copytree(old, new, dirs_exist_ok=True, ignore=BUNDLED)
        else:
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, new)
    (target / "palette.js").write_text(palette.format_script())
    for folder in Path(app.srcdir).glob("runs/*/*.texts"):  # of pages that load them when a text is picked
        shutil.copytree(folder, Path(app.outdir, folder.relative_to(app.srcdir)), dirs_exist_ok=True)


def _add_scripts(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    if any(raw.get("plotly") for raw in (doctree.findall(nodes.raw) if doctree else ())):
        for name in SCRIPTS:
            app.add_js_file(name, loading_method="defer")


def _escape_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are prose with `names` and |sizes|: escapes bars and asterisks, which are not markup there."""
    for number, line in enumerate(lines):
        bullet, rest = re.match(r"(\s*\* )?(.*)", line).groups()
        lines[number] = (bullet or "") + re.sub(r"(`+[^`]*`+)|([|*])", lambda m: m[1] or f"\\{m[2]}", rest)


def _skip_member(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Skips the fields of a named tuple, which are already in its signature, and what other packages define.

    Sphinx never shows what a module imports, but it finds that out by reading the whole source of the other package.
    """
    imported = what == "module" and (inspect.isclass(thing) or inspect.isroutine(thing))
    if imported and (thing.__module__ or "").partition(".")[0] != PACKAGE:
        return True
    return True if type(thing).__name__ == "_tuplegetter" else None


def _write_all_pages(app: Sphinx, environment: BuildEnvironment) -> list[str]:
    """Every page is written, not only those that have changed.

    The others may link to a section that is gone, about which Sphinx warns when it writes them, and their tables of
    contents may lack a page that is new.
    """
    return sorted(environment.found_docs)


def setup(app: Sphinx) -> dict[str, bool | int]:
    app.add_css_file("book.css")
    app.add_js_file("page.js", loading_method="defer")
    app.connect("builder-inited", _copy_assets)
    app.connect("env-updated", _write_all_pages)
    app.connect("html-page-context", _add_scripts)
    app.connect("autodoc-process-docstring", _escape_docstring)
    app.connect("autodoc-skip-member", _skip_member)
    # A page is rebuilt if the code that generates it has changed.
    parts = [Path(__file__), *sorted(path for path in STATIC.iterdir() if path.is_file())]
    version = int(hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:12], 16)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": version}
