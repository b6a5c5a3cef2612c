"""The book: what is published of a notebook, what figures become, and a small book in a real browser.

The browser is any installed Chromium or Chrome, or the one that NUCLEOSCOPE_BROWSER names. It opens
the pages from disk, and whatever it asks of anything but the disk is a failure.
"""

import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pandas as pd
import plotly
import plotly.graph_objects as go
import pytest
import torch
import yaml
from bs4 import BeautifulSoup
from test_choice_page import create_rows
from test_made_of import create_tests
from test_twelve import TEXT

import forks
import nucleoscope
import tiny
from messages import assert_one_line
from nucleoscope import quantities, variants
from nucleoscope.book import pages, site, sphinx_extension
from nucleoscope.settings import format_reference
from nucleoscope.stats import correlation
from nucleoscope.store import results
from nucleoscope.store.candidates import Similarities
from nucleoscope.views import assets, cards, choice_figures, figure_data, figures, tables, texts
from nucleoscope.views.strip import compute_background, render_strip
from nucleoscope.views.token_text import Reader
from nucleoscope.workflow import graph
from synthetic import draw_full

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
RUNS = ["runs/big/alpha", "runs/big/beta", "runs/small/alpha"]
PAGES = ["index", "runs/index", *RUNS, "strips", "bibliography"]  # the reference of modules is in the real book
MADE = ["search", "genindex", "prf-prf"]  # by Sphinx itself
FIGURES = RUNS
WIDE = "a_word_without_any_place_to_break_it_" * 5
PROSE = f"""# A small book

Squares $x^2$, and {{prf:ref}}`sum`, after {{cite}}`leinster2012`.

:::{{prf:proposition}} A sum
:label: sum

$$ \\sum_{{i=1}}^{{n}} i = \\frac{{n (n + 1)}}{{2}} = 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + \\dots + n $$
:::

:::{{div}} sortable

| name | value | {WIDE} |
|---|--:|---|
| b | 1,000 | z |
| a | 20 | y |
| c | −3 | x |

:::

```python
{WIDE * 3}
```
"""


def create_figure(**layout) -> dict:
    """A figure as a notebook stores it: two traces, one of them packed."""
    bars = go.Bar(x=["p", "q"], y=[1, 2], name="counts")
    points = go.Scatter(x=np.linspace(0, 1, 5), y=np.linspace(0, 1, 5) ** 2, mode="markers+lines", name="squares")
    points.update(line_color="#0072B2", error_y={"array": [0.1] * 5, "color": "#0072B2"})
    subject = go.Figure([points], layout) if layout.pop("single", False) else go.Figure([bars, points], layout)
    return json.loads(subject.to_json())


def create_notebook(title: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it: times, paths, a progress bar, two figures and a table."""
    new, home = nbformat.v4, Path.home()
    stamp = {"papermill": {"start_time": "2026-01-01T00:00:00"}, "execution": {"shell.execute_reply": "2026-01-01"}}
    outputs = [
        new.new_output("stream", name="stderr", text="100%|████| 9/9 [00:01<00:00, 5.0it/s]\n"),
        new.new_output("stream", name="stdout", text=f"read {ROOT}/results/a.pt and {home}/b and /home/agatha/c\n"),
        new.new_output(
            "display_data", {figure_data.PLOTLY: create_figure(title={"text": f"{title} </script><b>"}, single=True)}
        ),
        new.new_output("display_data", {figure_data.PLOTLY: create_figure(meta={"alt": "Two bars and five points"})}),
        new.new_output("execute_result", {"text/html": pd.DataFrame({WIDE: [1]}).to_html(), "text/plain": "1"}),
        new.new_output("display_data", {pages.WIDGET: {"model_id": "x"}, "text/plain": "Loading: 100%"}),
    ]
    cells = [
        new.new_markdown_cell("# One model on one data set\n\nA zebra lives here.", metadata=dict(stamp)),
        new.new_code_cell("figure", outputs=outputs, execution_count=1, metadata=dict(stamp)),
        new.new_code_cell("1 + 1", metadata={"tags": ["show-input"], **stamp}),
    ]
    return new.new_notebook(cells=cells, metadata={"papermill": stamp, "widgets": {pages.WIDGET: {}}})


ATTACK = "</script><script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
STRIP = f"The rain in Spain\n\nاللغة العربية جميلة 👩\u200d👧 {ATTACK}"


def render_scored_strip() -> str:
    """A strip of a text that was there: its first token is outside its nucleus of two, its second one is empty."""
    record, reader = tiny.create_record("the rain in Spain"), Reader(tiny.create_tokenizer(bos=False))
    record["top_p_tokens"][0], record["top_p_probs"][0] = torch.tensor([5, 6]), torch.tensor([0.6, 0.3])
    record["surprisals"][0], record["cosines"][0], record["margins"][0] = 3.0, -0.3, float("nan")
    reader._raw[int(record["tokens"][1])] = b""
    return render_strip(record, reader, mode="score")


def compare_at_random(record: dict) -> Similarities:
    """Similarities of a record that are made up."""
    rng, sizes = np.random.default_rng(0), [len(ids) for ids in record["top_p_tokens"]]
    pairs = [rng.uniform(-0.2, 1, min(size, 10) * (min(size, 10) - 1) // 2) for size in sizes]
    return Similarities([rng.uniform(-0.2, 1, size) for size in sizes], pairs)


def look_ahead_at_random(record: dict) -> dict[int, cards.Ahead]:
    """Similarities in context of a record that are made up."""
    rng, found = np.random.default_rng(1), {}
    for step, (ids, probs) in enumerate(zip(record["top_p_tokens"], record["top_p_probs"], strict=True)):
        if len(ids) > 1:
            m = min(len(ids), 8)
            similar = rng.uniform(0, 1, (m, m))
            similar = (similar + similar.T) / 2
            np.fill_diagonal(similar, 1)
            found[step] = cards.build_ahead(ids[:m].tolist(), probs[:m].numpy(), similar)
    return found


def create_strips() -> nbformat.NotebookNode:
    """A notebook that shows a strip, one of 500 tokens, and one whose card stays open."""
    new, reader = nbformat.v4, tiny.create_tokenizer(bos=False)
    long = tiny.create_record("the rain in Spain " * 60, seed=1)
    long = {name: value if name == "prompt" else value[:500] for name, value in long.items()}
    created = [
        render_strip(tiny.create_record(STRIP, prompt=ATTACK), reader),
        render_strip(long, reader, similarities=compare_at_random(long), ahead=look_ahead_at_random(long)),
        render_strip(tiny.create_record("the rain in Spain"), reader, first=1, shown=3),
        render_scored_strip(),
    ]
    outputs = [new.new_output("display_data", {"text/html": html, "text/plain": "a strip"}) for html in created]
    return new.new_notebook(cells=[new.new_markdown_cell("# Strips"), new.new_code_cell("strips", outputs=outputs)])


RUNS = (("small", "alpha"), ("big", "beta"), ("big", "alpha"))  # models on data sets


def write_project(folder: Path, runs: tuple[tuple[str, str], ...] = RUNS) -> Path:
    """A small project with everything that the book is made of."""
    (folder / "book" / "templates").mkdir(parents=True)
    (folder / "scripts" / "grids").mkdir(parents=True)
    toc = {"format": "jb-book", "root": "index"}
    pages = [{"file": name} for name in ("strips", "bibliography")]
    toc["chapters"] = [{"file": "runs/index", "sections": [{"glob": "runs/*/*"}]}, *pages]
    (folder / "book/_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "book/index.md").write_text(PROSE)
    (folder / "book/bibliography.md").write_text("# Bibliography\n\n```{bibliography}\n```\n")
    inventories = [path.relative_to(ROOT) for path in (ROOT / "book/inventories").iterdir()]
    prose = ("book/references.bib", "book/templates/layout.html")
    for name in ("_config.yml", *prose, *inventories, *site.GENERATED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    settings = {"n_prompts": 2, "prompt_format": "raw", "dtype": "float32"}
    for model, dataset in runs:
        run = folder / "results" / dataset / model
        run.mkdir(parents=True)
        (run / "measurements.pt").touch()
        (run / "run.json").write_text(json.dumps({"settings": settings, "tokens": 1234}))
        nbformat.write(create_notebook(f"{model} {dataset}"), run / "run.ipynb")
    return folder


def build_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """The html of a book that ``make`` builds in a folder; workers that test side by side share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (folder / "done").touch()
    return folder / "_build" / "html"


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """The folder of a small built book."""
    return build_once(tmp_path_factory, "small_book", build_small)


TEXTS = ("the rain in Spain", "", ATTACK, "and the other cat")


def add_texts(run: Path) -> None:
    """Gives a run measurements, a menu of all texts on its page, and a table with a note."""
    torch.save([tiny.create_record(text, prompt=f"number {n} {ATTACK}") for n, text in enumerate(TEXTS)],
               run / "measurements.pt")  # fmt: skip
    table = results.load_run(run / "measurements.pt", run.name, run.parent.name)
    background, reader = compute_background(table), tiny.create_tokenizer(bos=False)
    similarities = {n: compare_at_random(record) for n, record in results.load_records(run).items()}
    with mock.patch.object(results, "load_similarities", return_value=similarities):
        html = texts.show_texts(run, reader, table, background, "generate", len(TEXTS))
    numbers = pd.DataFrame({"r": [0.2, 0.1, 0.3], "note": ["", "few prompts", ""]}, index=["x", "y", "z"])
    new, notebook = nbformat.v4, nbformat.read(run / "run.ipynb", as_version=4)
    outputs = [new.new_output("display_data", {"text/html": h}) for h in (tables.show(numbers).data, html)]
    notebook.cells.append(new.new_code_cell("all texts", outputs=outputs))
    nbformat.write(notebook, run / "run.ipynb")


def build_small(folder: Path) -> None:
    (write_project(folder) / "results/book").mkdir()
    add_texts(folder / "results/alpha/small")
    nbformat.write(create_strips(), folder / "results/book/strips.ipynb")
    site.build(folder, folder / "results", folder)


def find_browser() -> str:
    named = os.environ.get("NUCLEOSCOPE_BROWSER")
    found = next(filter(None, map(shutil.which, [named] if named else BROWSERS)), None)
    assert found or not named, f"NUCLEOSCOPE_BROWSER is '{named}': there is no such program"
    return found or pytest.skip("NO CHROMIUM OR CHROME IS INSTALLED: THE BOOK IS NOT TESTED. Set NUCLEOSCOPE_BROWSER.")


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    playwright = pytest.importorskip("playwright.sync_api", reason="PLAYWRIGHT IS NOT INSTALLED: use make test")
    options = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chrome refuses to sandbox for root
    with playwright.sync_playwright() as driver:
        process = driver.chromium.launch(executable_path=program, args=options, timeout=180_000)
        yield process
        process.close()


@pytest.fixture(scope="module")
def page(browser):
    """The page in which tests open one after another: most of the time that a page takes is a new renderer's."""
    page = browser.new_page(offline=True)
    page.set_default_timeout(120_000)
    yield page
    page.close()


@contextlib.contextmanager
def visit_pages(page, folder: Path):
    """Opens pages from disk, with no network, each as if it were the first; fails at the end if one complained."""
    complaints, leaving = [], False

    def hear_request(request):  # to intercept it would take longer than to load a file
        if not request.url.startswith(folder.as_uri()):
            complaints.append(f"asked for {request.url}")

    def hear_console(message):
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def hear_failure(request):
        if not leaving:
            complaints.append(f"failed: {request.url}")

    heard = {"request": hear_request, "console": hear_console, "pageerror": lambda error: complaints.append(str(error))}
    heard["requestfailed"] = hear_failure

    def leave():
        """Forgets what a page keeps for the next one: the theme that was chosen, how far a list was scrolled."""
        nonlocal leaving
        leaving = True
        if page.url != "about:blank":
            page.evaluate("localStorage.clear(), sessionStorage.clear()")
            page.goto("about:blank")
        leaving = False

    def open_page(name: str, width: int = 1280, scheme: str = "light"):
        leave()
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(media="screen", color_scheme=scheme)
        path, _, query = name.partition("?")
        page.goto(f"{(folder / path).as_uri()}.html" + (f"?{query}" if query else ""))
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page

    for event, hear in heard.items():
        page.on(event, hear)
    try:
        yield open_page
    finally:
        leave()
        for event, hear in heard.items():
            page.remove_listener(event, hear)
    assert complaints == []


HOSTILE = (
    "<img src=x onerror=document.title='taken'>",
    "<script>document.title='taken'<script>",
    "$x^2$ [a](javascript:alert(1)) {doc}`index` https:example.org",
    "a|b*c*_d_`e` {{ 1 }} & <b>",
)


def build_hostile(folder: Path) -> None:
    write_project(folder, runs=tuple((name, other) for name in HOSTILE for other in HOSTILE[:2]))
    (folder / "results/book").mkdir()
    nbformat.write(create_strips(), folder / "results/book/strips.ipynb")
    site.build(folder, folder / "results", folder)


@pytest.mark.long
def test_names_of_files_are_never_markup(page, tmp_path_factory):
    html = build_once(tmp_path_factory, "hostile_book", build_hostile)
    named = [f"runs/{pages.encode_page_name(name)}/{pages.encode_page_name(HOSTILE[0])}" for name in HOSTILE]
    assert len(set(named)) == len(HOSTILE)
    with visit_pages(page, html) as visit:
        for name in ("runs/index", *named):
            visit(name)
            assert page.title() != "taken"
            body = page.locator("main")
            assert body.locator("img[src=x], script:text('taken'), a[href^=javascript], a[href^=http]").count() == 0
            assert body.locator("mjx-container, em, strong:text-is('b'), b").count() == 0
        shown = visit("runs/index").locator("main table").inner_text()
        shown = shown.replace("\u2018", "'").replace("\u2019", "'")  # Sphinx sets quotation marks
        for name in HOSTILE:
            assert name in shown


@pytest.fixture
def visit(page, built):
    with visit_pages(page, built) as open_page:
        yield open_page


def draw_figures(page) -> None:
    """Scrolls to every figure until it is drawn, and waits for the formulas."""
    for plot in page.locator("div.plotly-figure .plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    page.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")


def read_figure_colour(page) -> list[str]:
    return page.eval_on_selector_all(".xtick text", "texts => texts.map(text => getComputedStyle(text).fill)")


# What is published of a notebook


def test_a_normalised_notebook_holds_no_paths_times_or_progress():
    text = nbformat.writes(pages.normalise(create_notebook("t"), {str(ROOT): "", str(Path.home()): "~"}))
    for trace in (str(ROOT), str(Path.home()) + "/", "agatha", "2026", "papermill", "it/s", "widget", "Loading"):
        assert trace not in text
    assert "read results/a.pt and ~/b and ~/c" in text


def test_normalising_twice_changes_nothing_more_and_leaves_the_given_notebook_alone():
    given = create_notebook("t")
    before = nbformat.writes(given)
    once = pages.normalise(given, {str(ROOT): "", str(Path.home()): "~"})
    assert nbformat.writes(given) == before
    assert nbformat.writes(pages.normalise(once, {str(ROOT): "", str(Path.home()): "~"})) == nbformat.writes(once)


@pytest.mark.parametrize(
    ("said", "published"),
    [
        ("/opt/p/results/x", "results/x"),
        ("in /opt/p.", "in .."),
        ("/opt/project/x", "…/x"),
        ("PosixPath('/srv/run-1/a/b.gguf')", "PosixPath('…/b.gguf')"),
        ("file:///Users/eve/a.txt", "file://~/a.txt"),
        ("https://example.org/home/eve/tmp/x", "https://example.org/home/eve/tmp/x"),
        ("a/tmp/b and 1/2", "a/tmp/b and 1/2"),
    ],
)
def test_paths_become_short_and_web_addresses_stay(said, published):
    output = nbformat.v4.new_output("stream", name="stdout", text=said)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("said", outputs=[output])])
    assert pages.normalise(notebook, {"/opt/p": "", "/": "~"}).cells[0].outputs[0].text == published


def test_a_page_names_the_results_folder_of_its_grid_but_not_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    root = tmp_path / "home" / "project"
    cases = {"results/study": "results/study", "../elsewhere": "~/elsewhere", str(tmp_path / "disk/runs"): "…/runs"}
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    for given, shown in cases.items():
        folders = {str(root): "", str(tmp_path / "home"): "~", **site.name_results(root, Path(given))}
        for path in (given, os.path.abspath(given)):
            said = f"The files are in `{path}/correlation_eval`."
            output = nbformat.v4.new_output("display_data", {"text/markdown": said})
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("said", outputs=[output])])
            for _ in range(2):
                notebook = pages.normalise(notebook, folders)
            found = notebook.cells[0].outputs[0].data["text/markdown"]
            expected = given if path == "../elsewhere" else shown
            assert found == f"The files are in `{expected}/correlation_eval`."


@pytest.mark.parametrize("given", ["{}/disk/runs", "/home/agatha/runs", "/srv/a/b"])
def test_the_folder_of_results_in_a_command_is_as_it_was_typed(given, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    given = given.format(tmp_path)
    command = f"`make --results_dir={given}` or `make '--results_dir={given}'`, and {given}/x"
    output = nbformat.v4.new_output("display_data", {"text/markdown": command})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("said", outputs=[output])])
    root = tmp_path / "home" / "project"
    folders = {str(root): "", str(tmp_path / "home"): "~", **site.name_results(root, Path(given))}
    shown = pages.normalise(notebook, folders).cells[0].outputs[0].data["text/markdown"]
    assert shown.startswith(command.removesuffix(f"{given}/x"))
    assert given not in shown[len(command) - len(f"{given}/x") :]


def test_a_page_without_data_ends_before_its_first_empty_section():
    new = nbformat.v4
    nothing = new.new_output("execute_result", {"text/markdown": tables.NOTHING_YET, "text/plain": "x"})
    said = new.new_output("execute_result", {"text/markdown": "Measure first.", "text/plain": "x"})
    cells = [
        new.new_markdown_cell("# Title"),
        new.new_code_cell("said", outputs=[said]),
        new.new_markdown_cell("## First"),
        new.new_code_cell("first", outputs=[nothing]),
        new.new_markdown_cell("## Recap"),
    ]
    notebook = pages.normalise(new.new_notebook(cells=cells), {})
    assert [cell.source for cell in notebook.cells] == ["# Title", "said"]
    whole = pages.normalise(new.new_notebook(cells=[*cells[:3], *cells[4:]]), {})
    assert [cell.source for cell in whole.cells] == ["# Title", "said", "## First", "## Recap"]


def test_prose_keeps_its_links_and_a_model_its_words():
    words = '<div class="nucleoscope-strip">run /usr/bin/python</div>'
    shown = nbformat.v4.new_output("display_data", {"text/html": words})
    cells = [nbformat.v4.new_markdown_cell("[x](/a/b.md)"), nbformat.v4.new_code_cell("words", outputs=[shown])]
    prose, code = pages.normalise(nbformat.v4.new_notebook(cells=cells), {}).cells
    assert prose.source == "[x](/a/b.md)"
    assert code.outputs[0].data["text/html"] == words


def test_silent_cells_are_joined_but_an_open_one_stays_open():
    new = nbformat.v4.new_code_cell
    cells = [new("a = 1"), new("b = 2"), new("c = 3", metadata={"tags": ["show-input"]}), new("d = 4")]
    joined = pages.normalise(nbformat.v4.new_notebook(cells=cells), {}).cells
    assert [cell.source for cell in joined] == ["a = 1\n\nb = 2", "c = 3", "d = 4"]
    assert [cell.metadata["tags"] for cell in joined] == [["hide-input"], ["show-input"], ["hide-input"]]


def test_code_is_folded_unless_its_cell_says_otherwise():
    cells = [cell for cell in pages.normalise(create_notebook("t"), {}).cells if cell.cell_type == "code"]
    assert [cell.metadata.tags for cell in cells] == [["hide-input"], ["show-input"]]


def test_stderr_that_is_no_progress_bar_stays():
    output = nbformat.v4.new_output("stream", name="stderr", text="beware\r 50%|██  | 1/2\r100%|████| 2/2\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert pages.normalise(notebook, {}).cells[0].outputs[0].text == "beware\n"


# What a figure becomes


def test_a_figure_cannot_end_its_script_and_comes_back_whole():
    given = create_figure(title={"text": "</script><!-- <script> &amp; \u2028"})
    created = sphinx_extension.render_figure(given, "")
    payload = created.split('<script type="application/json">')[1].split("</script>")[0]
    assert "<" not in payload
    assert json.loads(payload)["layout"] == given["layout"]


def test_alt_text_is_the_figures_own_or_its_title_and_is_escaped():
    assert sphinx_extension.describe_figure(create_figure(meta={"alt": "A\n view"}, title={"text": "T"})) == "A view"
    assert sphinx_extension.describe_figure(create_figure(title={"text": "<b>Bold</b> &amp; plain"})) == "Bold & plain"
    assert sphinx_extension.describe_figure(create_figure()) == "Figure"
    assert 'aria-label="a &quot;b&quot; &lt;c"' in sphinx_extension.render_figure(create_figure(), 'a "b" <c')


def test_a_figure_is_words_where_the_book_is_no_html_page():
    raw, elsewhere = sphinx_extension.build_figure_nodes(create_figure(meta={"alt": "Two bars"}))
    assert (raw["format"], elsewhere["expr"]) == ("html", "not html")
    assert elsewhere.astext() == "Interactive figure: Two bars"


def test_a_figures_csv_holds_every_point_of_every_trace():
    lines = figure_data.format_csv(create_figure()).splitlines()
    assert lines == ["trace,x,y,y +", "counts,p,1,", "counts,q,2,"] + [
        f"squares,{x},{x * x},0.1" for x in np.linspace(0, 1, 5)
    ]
    heat = json.loads(go.Figure(go.Heatmap(z=np.arange(4.0).reshape(2, 2), name="h")).to_json())
    assert figure_data.format_csv(heat).splitlines() == [
        "trace,x,y,z",
        "h,0,0,0.0",
        "h,1,0,1.0",
        "h,0,1,2.0",
        "h,1,1,3.0",
    ]


def test_a_number_of_a_figure_has_the_digits_of_float32():
    measured, computed = float(np.float32(0.1)), 0.1
    figure = json.loads(go.Figure(go.Scatter(x=[measured, 1e300], y=[computed, 0.5], name="a")).to_json())
    with np.errstate(over="raise"):
        assert figure_data.format_csv(figure).splitlines() == ["trace,x,y", "a,0.1,0.1", "a,1e+300,0.5"]
    tiny = json.loads(go.Figure(go.Scatter(x=[float(np.float32(1 / 3))], y=[1 / 3], name="a")).to_json())
    measured, computed = figure_data.format_csv(tiny).splitlines()[1].split(",")[1:]
    assert np.float32(measured) == np.float32(1 / 3)
    assert computed == "0.333333333"


def test_packed_numbers_lose_nothing_that_a_screen_shows():
    values = np.random.default_rng(0).normal(size=100)
    packed = json.loads(go.Figure(go.Scatter(y=values)).to_json())["data"][0]["y"]
    light = sphinx_extension._round_arrays({"y": packed})["y"]
    assert len(light["bdata"]) < 0.51 * len(packed["bdata"])
    np.testing.assert_allclose(figure_data.decode(light), values, rtol=1e-7)


def test_myst_nb_finds_the_renderer():
    (entry,) = importlib.metadata.entry_points(group="myst_nb.mime_renderers", name="plotly")
    assert entry.load() is sphinx_extension.PlotlyRenderer


@pytest.mark.parametrize(
    ("what", "thing", "skipped"),
    [
        ("module", json.JSONEncoder, True),
        ("module", json.dumps, True),
        ("module", len, True),
        ("module", site.BookError, None),
        ("module", site.stage, None),
        ("module", {"a": 1}, None),  # data has no module of its own
        ("class", json.dumps, None),  # a method that a class inherits
    ],
)
def test_what_a_module_imports_from_other_packages_is_skipped_before_sphinx_reads_their_sources(what, thing, skipped):
    assert sphinx_extension._skip_member(None, what, "name", thing, False, None) is skipped


# The book's sources


def test_a_run_that_is_counted_and_has_no_page_is_named_below_the_table_of_runs(tmp_path):
    root = write_project(tmp_path)
    (root / "results/alpha/big/run.ipynb").unlink()
    files = site.build_run_pages(root / "results", {})
    said = files["runs/index.md"].decode()
    assert "This run has no page, but the analyses count it too: big on alpha." in said
    assert "no page" not in site.format_overview(["| a |"])


def test_the_sidebar_lists_runs_with_the_values_of_settings_as_numbers(tmp_path):
    names = [f"small@top_p={top_p}@seed={seed}" for top_p in ("0.1", "0.85", "0.9") for seed in (2, 10)]
    root = write_project(tmp_path, tuple((name, "alpha") for name in sorted(names)))
    (root / "results/book").mkdir()
    nbformat.write(create_notebook("context"), root / "results/alpha" / names[1] / "context.ipynb")
    site.stage(root, root / "results", tmp_path / "staged")
    contents = yaml.safe_load((tmp_path / "staged/_toc.yml").read_text())
    found = [page["file"] for page in contents["chapters"][0]["sections"]]
    wanted = [site.locate_page(root / "results/alpha" / name) for name in names]
    assert found == [*wanted[:2], f"{wanted[1]}~in-context", *wanted[2:]]


def test_runs_stand_in_model_and_data_set_order(tmp_path):
    files = site.build_run_pages(write_project(tmp_path) / "results", {})
    rows = [line.split("|")[1:3] for line in files["runs/index.md"].decode().splitlines() if "the run" in line]
    assert [[part.strip() for part in row] for row in rows] == [["big", "alpha"], ["big", "beta"], ["small", "alpha"]]
    assert sum(name.endswith(".csv") for name in files) == 6


@pytest.mark.parametrize(
    ("notebook", "ending", "words"), [("context", "in-context", "in context"), ("branches", "branches", "branches")]
)
def test_a_second_pass_over_a_run_is_a_page_of_its_own_beside_that_of_the_run(tmp_path, notebook, ending, words):
    run = write_project(tmp_path) / "results/alpha/big"
    nbformat.write(create_notebook("t"), run / f"{notebook}.ipynb")
    files = site.build_run_pages(tmp_path / "results", {})
    page = f"runs/big/alpha~{ending}.ipynb"
    assert nbformat.reads(files[page].decode(), 4).cells[0].source.startswith(f"# big on alpha, {words}")
    assert [name for name in files if name.endswith(f"{ending}.ipynb")] == [page]
    (row,) = [line for line in files["runs/index.md"].decode().splitlines() if f"[{words}]" in line]
    assert f"[the run](</runs/big/alpha.ipynb>), [{words}](</{page}>)" in row


def test_analyses_are_pages_under_their_own_names_with_what_lies_beside_them(tmp_path):
    folder = write_project(tmp_path) / "results/correlation_eval"
    folder.mkdir()
    nbformat.write(create_notebook("t"), folder / "correlation.ipynb")
    (folder / "stats.csv").write_text("a\n1\n")
    (folder / "stats.tex").touch()
    names = {name for name in site.build_analysis_pages(tmp_path / "results", {}) if "figure" not in name}
    assert names == {"correlation_eval/correlation.ipynb", "correlation_eval/stats.csv"}


def test_no_results_and_damaged_results_are_said_in_one_line(tmp_path, capsys):
    with pytest.raises(site.BookError) as caught:
        site.build_run_pages(tmp_path, {})
    assert "make run" in assert_one_line(str(caught.value))
    damaged = write_project(tmp_path / "p") / "results/beta/big/run.ipynb"
    damaged.write_text("{")
    recorded = tmp_path / "p/results/alpha/big/run.json"
    before = json.loads(recorded.read_text())
    for content, problem in (
        ({"settings": 1}, "contains no settings: move it out of the way"),
        (before | {"tokens": "x"}, "has 'tokens', but not as a number: move it out of the way"),
        (before | {"settings": before["settings"] | {"n_prompts": None}}, "has 'n_prompts', but not as a number"),
    ):
        recorded.write_text(json.dumps(content))
        files = site.build_run_pages(tmp_path / "p/results", {})
        said = capsys.readouterr().err.splitlines()
        assert [line.startswith("left out: ") for line in said] == [True, True]
        assert f"alpha/big/run.json' {problem}" in said[0]
        assert str(damaged) in said[1]
    assert not [name for name in files if "/big/" in name]
    for page in (tmp_path / "p/results").glob("*/*/run.ipynb"):
        page.write_text("{")
    with pytest.raises(site.BookError) as caught:
        site.build_run_pages(tmp_path / "p/results", {})
    assert "no run can be shown: " in assert_one_line(str(caught.value))


def test_the_script_says_errors_in_one_line(tmp_path):
    command = [sys.executable, "scripts/build_book.py", "--results_dir", str(tmp_path), "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert assert_one_line(done.stderr).startswith("error: no executed notebooks in")


def test_a_book_without_its_first_page_is_refused_before_it_is_built(tmp_path):
    project = write_project(tmp_path / "p")
    (project / "book/index.md").unlink()
    with pytest.raises(
        site.BookError, match=r"pages of the book are missing in '.*' \(index, strips\): run make book, which"
    ):
        site.build(project, project / "results", tmp_path / "out")
    assert not (tmp_path / "out" / "_build" / "html").exists()


def test_staging_again_touches_nothing_and_takes_away_what_is_gone(tmp_path):
    root = write_project(tmp_path / "p")
    staging = tmp_path / "staging"
    (root / "results/beta/big/texts").mkdir()
    (root / "results/beta/big/texts/0.js").touch()
    assert not site.stage(root, root / "results", staging)
    before = {path: path.stat().st_mtime_ns for path in staging.rglob("*") if path.is_file()}
    assert (staging / "generated/settings.md").read_text() == format_reference()
    assert (staging / "generated/variants.md").read_text() == variants.format_reference()
    assert not site.stage(root, root / "results", staging)
    assert {path: path.stat().st_mtime_ns for path in staging.rglob("*") if path.is_file()} == before
    shutil.rmtree(root / "results/beta")
    assert site.stage(root, root / "results", staging)
    assert not list((staging / "runs/big").glob("beta*"))  # no empty folder of texts either


def test_every_page_of_the_books_table_of_contents_has_a_source():
    toc = (ROOT / "book/_toc.yml").read_text()
    names = re.findall(r"^ *- file: (.+)$", toc, re.MULTILINE)
    created = {"runs/index", "use/api/nucleoscope"} | {
        name for name in names if (ROOT / f"notebooks/{Path(name).name}.py").exists()
    }
    assert [name for name in names if name not in created and not (ROOT / f"book/{name}.md").exists()] == []


# The small book, as files


@pytest.mark.long
def test_two_builds_are_identical_byte_for_byte(built, tmp_path):
    # Nothing is left out: no page carries a date, and file times are not compared.
    source = built.parents[1]
    site.build(source, source / "results", tmp_path / "elsewhere")
    again = tmp_path / "elsewhere/_build/html"
    names = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == names
    assert [name for name in names if (built / name).read_bytes() != (again / name).read_bytes()] == []


def test_the_book_says_nothing_of_the_machine(built):
    for path in built.rglob("*"):
        if path.is_file() and "_static" not in path.parts:
            content = path.read_bytes()
            assert str(ROOT).encode() not in content, path
            assert str(built.parents[1]).encode() not in content, path


class Links(HTMLParser):
    """The anchors of a page and its links, without a tree of its elements, which takes four times as long."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str | None] = set()
        self.links: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or given.get("name"))
        if tag in ("a", "link", "script", "img"):
            self.links.append(given.get("href") or given.get("src"))


def test_a_link_to_a_file_or_a_section_that_is_not_there_is_found(tmp_path):
    (tmp_path / "one.html").write_text('<h1 id="top">One</h1><a href="#top">.</a><a href="two.html#end">.</a>')
    links = (
        '<a href="one.html#top">.</a><a href="one.html#gone">.</a><img src="none.png"><a href="https://no.where">.</a>'
    )
    (tmp_path / "two.html").write_text(f'<p id="end">{links}</p>')
    assert find_broken_links(tmp_path) == [("two.html", "one.html#gone"), ("two.html", "none.png")]


def find_broken_links(built: Path) -> list[tuple[str, str]]:
    """Pages and their links that lead nowhere inside the book."""
    pages = {path: Links(path.read_text()) for path in built.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        if "_static" in path.parts:
            continue
        for link in page.links:
            parts = urlsplit(link or "")
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            missing = fragment and target in pages and fragment not in pages[target].anchors
            if not parts.scheme and (missing or not target.exists()):
                broken.append((path.name, link))
    return broken


def test_every_internal_link_resolves(built):
    assert find_broken_links(built) == []


def test_no_page_is_heavy_and_none_names_a_server_to_load_from(built):
    for page in built.rglob("*.html"):
        text = page.read_text()
        assert len(text.encode()) < 1_500_000, page
        assert 'src="http' not in text, page
        assert 'rel="stylesheet" href="http' not in text, page


def test_the_book_has_no_files_for_developers_and_no_notebook_with_a_number_on_each_line(built):
    assert not [path for pattern in ("*.map", "*.ttf", "*.mo", "*.po") for path in built.rglob(pattern)]
    assert all(any(path.iterdir()) for path in (built / "_static").rglob("*") if path.is_dir())  # each takes a block
    notebooks = list((built / "_sources").rglob("*.ipynb"))
    assert len(notebooks) > len(RUNS)
    assert all(path.read_text().count("\n") <= 1 for path in notebooks)


def test_plotly_is_loaded_once_and_only_where_there_is_a_figure(built):
    for name in PAGES:
        text = (built / f"{name}.html").read_text()
        assert text.count("plotly.min.js") == (name in FIGURES), name
    assert len(list(built.rglob("plotly*.js"))) == 1


@pytest.fixture(scope="module")
def rooms(real) -> list[BeautifulSoup]:
    """The pages about the modules of each room, the largest of the book."""
    return [BeautifulSoup(path.read_text(), "html.parser") for path in (real / "use/api").glob("*.html")]


def test_every_module_is_on_the_api_page_in_the_table_of_its_room(real, rooms):
    page = BeautifulSoup((real / "use/api.html").read_text(), "html.parser")
    described = {
        tag["id"].removeprefix("module-") for each in [page, *rooms] for tag in each(id=re.compile("^module-"))
    }
    modules = {name for _, name, _ in pkgutil.walk_packages(nucleoscope.__path__, "nucleoscope.")}
    assert described == {"nucleoscope", *modules}
    listed = {link["href"].partition("#module-")[2] for link in page.select("table.autosummary a")}
    assert listed == modules - {name.rpartition(".")[0] for name in modules}


def test_names_of_other_projects_lead_to_their_documentation(rooms):
    links = {link["href"] for page in rooms for link in page("a", class_="external")}
    assert "https://docs.pytorch.org/docs/stable/tensors.html#torch.Tensor" in links
    assert "https://docs.python.org/3/library/pathlib.html#pathlib.Path" in links
    for name in (ROOT / "book/inventories").glob("*.inv"):
        address = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]["intersphinx_mapping"][
            name.stem
        ][0]
        assert any(link.startswith(address) for link in links), name


def test_a_warning_ends_the_build_and_sphinx_says_where(tmp_path, capfd):
    root = write_short_project(tmp_path)
    (root / "book/index.md").write_text("# Title\n\n[nowhere](missing.md) and {py:class}`Missing`\n")
    with pytest.raises(site.BookError, match="warnings or errors"):
        site.build(root, root / "results", tmp_path)
    said = capfd.readouterr().err
    assert "index.md:3" in said
    assert "missing.md" in said
    assert "py:class reference target not found: Missing" in said


def write_short_project(folder: Path) -> Path:
    """A project with a book of two pages and one run, which is built quickly."""
    root = write_project(folder, runs=RUNS[:1])
    toc = yaml.safe_load((root / "book/_toc.yml").read_text())
    toc["chapters"] = [chapter for chapter in toc["chapters"] if chapter["file"] != "strips"]
    (root / "book/_toc.yml").write_text(yaml.safe_dump(toc))
    return root


def build_fails(root: Path) -> bool:
    try:
        site.build(root, root / "results", root)
    except site.BookError:
        return True
    return False


def test_a_book_that_failed_fails_again_until_it_is_corrected(tmp_path, capfd):
    root = write_short_project(tmp_path)
    whole = (root / "book/index.md").read_text()
    (root / "book/index.md").write_text(f"{whole}\n[nowhere](missing.md)\n")
    said = []
    for _ in range(2):
        assert build_fails(root)
        said.append([line for line in capfd.readouterr().err.splitlines() if "missing.md" in line])
    assert said[0] == said[1] != []
    (root / "book/index.md").write_text(whole)
    assert not build_fails(root)


def test_a_link_to_a_section_that_is_gone_fails_although_its_own_page_has_not_changed(tmp_path, capfd):
    root = write_short_project(tmp_path)
    (root / "book/index.md").write_text("# A book\n\n(place)=\n\n## A place\n")
    (root / "book/bibliography.md").write_text("# Bibliography\n\n{ref}`place`\n\n```{bibliography}\n```\n")
    assert not build_fails(root)
    (root / "book/index.md").write_text("# A book\n")
    assert build_fails(root)
    assert "bibliography.md" in capfd.readouterr().err


def test_what_sphinx_kept_of_a_build_that_was_killed_is_not_used(tmp_path):
    root = write_short_project(tmp_path)
    page = site.build(root, root / "results", root)
    pages = {path: path.read_bytes() for path in page.parent.rglob("*.html")}
    page.write_text("half a pa")
    (root / "_build/.doctrees/index.doctree").write_bytes(b"half a doctree")
    (page.parent / "old.html").touch()
    (root / "_build" / site.UNFINISHED).touch()  # as a kill leaves it
    assert site.build(root, root / "results", root) == page
    assert {path: path.read_bytes() for path in page.parent.rglob("*.html")} == pages
    assert not (root / "_build" / site.UNFINISHED).exists()


# The small book, in a browser


def test_the_browser_tests_see_every_page(built):
    found = {path.relative_to(built).with_suffix("").as_posix() for path in built.rglob("*.html")}
    assert {name for name in found if not name.startswith("_static")} == {*PAGES, *MADE}


@pytest.mark.parametrize("name", [*PAGES, *MADE])
def test_a_page_opens_from_disk_with_one_h1_and_fits_a_phone_in_both_themes(visit, name):
    for scheme in ("light", "dark"):
        page = visit(name, width=390, scheme=scheme)
        page.wait_for_load_state("load")
        draw_figures(page)
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("h1").count() == 1
        levels = page.eval_on_selector_all("main :is(h1,h2,h3,h4,h5,h6)", "all => all.map(h => +h.tagName[1])")
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn_with_its_traces_a_description_and_its_data(visit, built, name):
    page = visit(name)
    assert page.locator("div.plotly-figure").count() == 2
    for figure_on_page in page.locator("div.plotly-figure").all():
        figure_on_page.scroll_into_view_if_needed()
        figure_on_page.locator("svg.main-svg .trace").first.wait_for()
        assert figure_on_page.locator("svg.main-svg").first.is_visible()
    assert page.locator(".plot").nth(0).get_attribute("aria-label").endswith("</script>") is False
    assert page.locator(".plot").nth(1).get_attribute("aria-label") == "Two bars and five points"
    assert page.locator(".plot").nth(1).locator(".trace").count() == 2
    links = page.locator("a:has-text('data (csv)')")
    assert links.count() == 2
    target = built / Path(name).parent / links.nth(1).get_attribute("href")
    assert target.resolve().read_text().startswith("trace,x,y,y +\ncounts,p,1,\n")


def test_titles_of_axes_break_where_a_page_is_narrow_and_are_whole_again_where_it_is_wide(page, visit):
    title = "how similar the candidates of one token are to each other, on average over all of the texts"
    visit(FIGURES[0])
    resize(page, 390)
    draw_figures(page)
    # as one of its menus does
    page.evaluate("title => Plotly.relayout(document.querySelector('.plot'), {'xaxis.title.text': title})", title)
    lines = page.locator(".plot").first.locator(".xtitle tspan.line")
    lines.nth(1).wait_for()
    assert " ".join(lines.all_text_contents()) == title
    box = page.locator(".plot").first.bounding_box()
    for line in lines.all():
        own = line.bounding_box()
        assert box["x"] <= own["x"] < own["x"] + own["width"] <= box["x"] + box["width"]
        assert own["y"] + own["height"] <= box["y"] + box["height"]
    resize(page, 1280)
    lines.first.wait_for(state="detached")
    assert page.locator(".plot").first.locator(".xtitle").text_content() == title


def test_pointing_at_a_point_shows_its_label(visit):
    page = visit(FIGURES[0])
    point = page.locator(".plot").first.locator(".scatterlayer .point").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 5, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    assert "0.25" in page.locator(".hoverlayer").first.text_content()


def test_pointing_at_a_negative_number_shows_a_minus_sign(browser):
    page = browser.new_page()
    page.set_content("<div></div>")
    page.add_script_tag(path=Path(plotly.__file__).parent / "package_data/plotly.min.js")
    scatter = go.Scatter(x=[-1.5], y=[-0.12345], hovertemplate="%{x} and %{y}<extra></extra>", **figures.HOVER)
    cell = {"x": [-1.5], "y": [-0.12345], "z": [[-0.25]], "zhoverformat": ".3f", "showscale": False}
    heatmap = go.Heatmap(hovertemplate="cell %{z}<extra></extra>", **cell)
    for trace, said in ((scatter, "−1.50 and −0.123"), (heatmap, "cell −0.250")):
        data = json.loads(go.Figure(trace).to_json())["data"]
        page.evaluate("data => Plotly.newPlot(document.querySelector('div'), data)", data)
        page.evaluate("Plotly.Fx.hover(document.querySelector('div'), { xval: -1.5, yval: -0.12345 }, 'xy')")
        page.locator(".hoverlayer .hovertext", has_text=said).wait_for(timeout=10_000)
    page.close()


def test_the_theme_switch_changes_the_figures(visit):
    page = visit(FIGURES[0])
    page.locator(".xtick text").first.wait_for()
    before = read_figure_colour(page)
    assert len(set(before)) == 1
    page.locator(".theme-switch-button:visible").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_function("old => getComputedStyle(document.querySelector('.xtick text')).fill !== old", arg=before[0])
    assert set(read_figure_colour(page)).isdisjoint(before)
    blues = page.evaluate("[...document.querySelectorAll('.js-line, .yerror')].map(e => getComputedStyle(e).stroke)")
    assert set(blues) == {"rgb(86, 180, 233)"}  # the blue for dark ground


def test_a_page_is_printed_light_with_its_title_and_all_figures(visit):
    page = visit(FIGURES[0], scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function("document.querySelectorAll('.plot svg.main-svg').length >= 2")
    assert page.locator(".plot[data-drawn]").count() == 2
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.locator("h1").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_mathematics_is_typeset(visit):
    page = visit("index")
    page.locator("mjx-container").nth(1).wait_for()
    assert page.locator("mjx-container").count() == 2
    page.evaluate("document.fonts.ready.then(() => true)")
    loaded = page.evaluate("[...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)")
    assert any("MJX" in family for family in loaded)


def test_search_finds_a_word_in_a_notebook(visit):
    page = visit("search?q=zebra")
    page.locator("#search-results li a").nth(2).wait_for()
    found = page.locator("#search-results li a").all_text_contents()
    assert sorted(found) == ["big on alpha", "big on beta", "small on alpha"]


def test_a_table_is_sorted_by_keyboard_as_numbers_or_words(visit):
    page = visit("index")

    def column(number: int) -> list[str]:
        return page.locator(f".sortable tbody td:nth-child({number})").all_text_contents()

    heads = page.locator(".sortable th")
    heads.nth(1).locator("button").focus()
    page.keyboard.press("Enter")
    assert (column(2), heads.nth(1).get_attribute("aria-sort")) == (["−3", "20", "1,000"], "ascending")
    page.keyboard.press("Space")
    assert (column(2), heads.nth(1).get_attribute("aria-sort")) == (["1,000", "20", "−3"], "descending")
    heads.nth(0).locator("button").click()
    assert column(1) == ["a", "b", "c"]
    assert heads.nth(1).get_attribute("aria-sort") is None


def test_a_note_stays_below_its_row_when_the_table_is_sorted(visit):
    page = visit("runs/small/alpha")
    table = page.locator("table", has_text="few prompts")
    table.locator("th button").nth(1).click()
    assert [row.strip() for row in table.locator("tbody tr").all_inner_texts()] == [
        "y\t0.1",
        "few prompts",
        "x\t0.2",
        "z\t0.3",
    ]


# All texts of a run

PICKED = ".ns-picked .ns-text"


@pytest.mark.parametrize("width", [1280, 390])
def test_on_a_phone_the_names_of_a_row_are_above_its_numbers_and_are_sorted_with_them(browser, width):
    frame = pd.DataFrame(
        {"Model": ["one", "two"], "Dataset": "math", "seed": [2, 10], "r": [0.2, 0.1], "note": ["few", ""]}
    )
    html = tables.show(frame.set_index(["Model", "Dataset", "seed"])).data
    style, script = (ROOT / f"lib/nucleoscope/book/static/{name}" for name in ("book.css", "page.js"))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(
        f"<style>[hidden] {{ display: none !important; }}\n{style.read_text()}</style><article class='bd-article'>"
        f"<div class='output'>{html}</div></article><script>{script.read_text()}</script>"
    )
    named = ["one, math, seed 2", "0.2", "few", "two, math, seed 10", "0.1"]
    wide = ["one math 2 0.2", "few", "two math 10 0.1"]
    visible = page.locator("tbody tr:visible").all_inner_texts()
    assert ["".join(row.split()) for row in visible] == [
        "".join(row.split()) for row in (named if width < 600 else wide)
    ]
    page.locator("th button").last.click()
    visible = page.locator("tbody tr:visible").all_inner_texts()
    expected = named[3:] + named[:3] if width < 600 else wide[2:] + wide[:2]
    assert ["".join(row.split()) for row in visible] == ["".join(row.split()) for row in expected]
    page.close()


def test_every_text_of_a_run_is_picked_from_a_menu_and_loaded_from_disk(visit):
    page = visit("runs/small/alpha")
    items = page.locator(".ns-prompts button")
    assert items.count() == len(TEXTS)
    for number, text in enumerate(TEXTS):
        items.nth(number).click()
        shown = text or "(the model ended this text immediately)"
        page.wait_for_function("([at, text]) => document.querySelector(at)?.textContent === text", arg=[PICKED, shown])
        assert items.nth(number).get_attribute("aria-current") == "true"
        assert page.locator(".ns-picked .ns-prompt div").inner_text().startswith(f"number {number} ")
    assert page.title() != "taken over"
    assert page.locator(".nucleoscope-texts img").count() == 0
    page.locator(f"{PICKED} > span").nth(2).hover()
    page.wait_for_function("document.querySelector('.ns-picked .ns-card').innerText.includes('token 2 of')")
    expected = compare_at_random(tiny.create_record(TEXTS[-1]))  # which a script has as strings
    cells = page.locator(".ns-picked .ns-cells i").evaluate_all("cells => cells.map(cell => cell.title)")
    assert [cell.rpartition(": ")[2].replace("−", "-") for cell in cells] == [f"{r:.2f}" for r in expected.pairs[2]]


@pytest.fixture
def menu(browser):
    """Draws a menu of prompts, as ``static/menu.js`` does, in a column of the book's width, without a book."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()

    def draw(**content):
        style = assets.join_style(assets.STATIC / "strip.css", assets.STATIC / "menu.css")
        body = f'<style>{style}</style><div class="nucleoscope" style="width: 688px"></div>'
        page.set_content(body + f"<script>{assets.join_script(assets.STATIC / 'menu.js')}</script>")
        content = {"columns": [["tokens", True]], "prompts": [[0, "one", "a text", [4]]], "cut": False} | content
        page.evaluate(
            "content => drawMenu(document.querySelector('div'), content, () => {}, (n) => (told = n))", content
        )
        return page

    yield draw
    context.close()


def test_the_search_field_says_that_only_beginnings_are_searched_if_texts_are_cut(menu):
    for cut, said in ((False, "words of prompt or text"), (True, "beginning of prompt or text")):
        assert menu(cut=cut).locator("input").get_attribute("placeholder") == said


def test_one_prompt_in_the_menu_is_singular(menu):
    page = menu()
    assert page.locator(".ns-found").inner_text() == "1 prompt"
    page.locator("input").fill("nowhere")
    assert page.locator(".ns-found").inner_text() == '0 of 1 prompt: nothing matches "nowhere"'
    assert page.evaluate("told") == 0
    page.locator("input").fill("text")
    assert page.evaluate("told") == 1


def test_all_values_of_a_quantity_in_the_menu_have_equally_many_decimals(menu):
    values = [0.0123, 1.5, -0.456, 2, None, -0.001]
    prompts = [[number, "one", "a text", [number, value, 12.3]] for number, value in enumerate(values)]
    page = menu(columns=[["tokens", True], ["entropy", False], ["k", False]], prompts=prompts)
    for name, shown in (
        ("number", [""] * 6),
        ("entropy", ["−0.46", "0.00", "0.01", "1.50", "2.00", "–"]),
        ("k", ["12.3"] * 6),
    ):
        page.locator("select").select_option(label=name)
        assert page.locator(".ns-prompts .ns-value").all_inner_texts() == shown


def test_the_button_that_reverses_the_menu_shows_its_state(menu):
    button = menu().locator(".ns-order button")
    states = []
    for _ in range(3):
        weight = button.evaluate("button => getComputedStyle(button).fontWeight")
        states.append((button.inner_text(), button.get_attribute("aria-pressed"), weight))
        button.click()
    assert states == [("reverse ↑", "false", "400"), ("reverse ↓", "true", "700"), ("reverse ↑", "false", "400")]


def test_the_longest_name_in_the_menu_to_sort_by_fits_its_box(menu):
    names = [f"mean {quantities.find_title(name)}" for name in quantities.list_tints()]
    longest = max([*names, texts.COEFFICIENT], key=len)
    page = menu(columns=[["tokens", True], [longest, False]], prompts=[[0, "one", "a text", [4, 0.5]]])
    select = page.locator("select")
    now = select.evaluate("select => select.offsetWidth")
    select.evaluate("select => Object.assign(select.style, { flex: 'none', width: 'max-content', maxWidth: 'none' })")
    assert now >= select.evaluate("select => select.offsetWidth") > 200


def test_numbers_have_three_significant_digits_also_whole_ones(menu):
    numbers = {4: "4.00", 0: "0", 1234: "1234", 0.01234: "0.0123", -0.5: "−0.500", 12345.6: "1.23e+4", None: "–"}
    found = menu().evaluate("numbers => numbers.map((value) => formatNumber(value))", list(numbers))
    assert found == list(numbers.values())


def test_the_headings_of_a_cards_similarities_say_in_a_title_what_they_are(menu):
    draw = "() => drawHeadings('', TO_TAKEN, TO_OTHERS).map(({ textContent, title }) => [textContent, title])"
    titles = menu().evaluate(draw)
    assert titles[0] == ["", ""]
    assert titles[1][0] == "similar\nto ✓"
    assert "the token that was taken" in titles[1][1]
    assert titles[2][0] == "similar to\nthose above"
    assert "of those above it" in titles[2][1]


def test_the_menu_is_searched_sorted_and_walked_by_keyboard(visit):
    page = visit("runs/small/alpha")
    numbers = ".ns-prompts button > :first-child"
    page.locator(".ns-order input").fill("OTHER cat")  # of a text, not of a prompt
    assert page.locator(numbers).all_inner_texts() == ["3"]
    assert page.locator(".ns-found").inner_text() == f"1 of {len(TEXTS)} prompts"
    assert page.locator(".ns-picked .ns-text").is_visible()
    page.locator(".ns-order input").fill("in no text")
    assert page.locator(".ns-found").inner_text() == f'0 of {len(TEXTS)} prompts: nothing matches "in no text"'
    assert not page.locator(".ns-picked .ns-text").is_visible()
    page.locator(".ns-order input").fill("")
    assert page.locator(".ns-picked .ns-text").is_visible()
    page.locator(".ns-order select").select_option(label="tokens")
    shown = page.locator(".ns-prompts .ns-value").all_inner_texts()
    assert shown == sorted(shown, key=int)
    page.locator(".ns-order button").click()
    assert page.locator(".ns-prompts .ns-value").all_inner_texts() == shown[::-1]
    page.locator(".ns-order select").select_option(label="mean entropy (nats)")
    assert page.locator(numbers).last.inner_text() == "1"  # it has no token, and so no entropy
    page.locator(".ns-prompts button").first.focus()
    page.keyboard.press("ArrowDown")
    chosen = page.locator(numbers).nth(1).inner_text()
    page.keyboard.press("Enter")
    assert page.locator(".ns-prompts [aria-current] > :first-child").inner_text() == chosen


def test_a_text_that_is_gone_is_missed_in_words(browser, built, tmp_path):
    shutil.copytree(built, tmp_path / "html")
    (tmp_path / "html/runs/small/alpha.texts/3.js").unlink()
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "html/runs/small/alpha.html").as_uri())
    page.locator(".ns-prompts button").nth(3).click()
    page.wait_for_function("document.querySelector('.ns-picked').innerText.includes('could not be loaded')")
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_menu_can_be_read_in_both_themes(visit, scheme, width):
    page = visit("runs/small/alpha", width=width, scheme=scheme)
    page.locator(f"{PICKED} > span").nth(2).dispatch_event("click")  # a phone has no pointer to move there first
    contrasts = page.evaluate(CONTRASTS.replace(".nucleoscope-strip *", ".nucleoscope-texts *"))
    assert {"BDI", "SPAN", "P.ns-muted.ns-found"} <= set(contrasts)
    assert {name: value for name, value in contrasts.items() if value < 4.5} == {}


def test_a_card_shows_similarities_where_they_are_known(visit):
    page = visit("strips")
    known, unknown = (page.locator(".nucleoscope-strip").nth(n) for n in (1, 0))
    known.locator(".ns-text > span").nth(3).hover()
    size = known.locator(".ns-list bdi").count()
    assert known.locator(".ns-cells i").count() == min(size, 10) * (min(size, 10) - 1) // 2
    assert re.search(r"similar\s+to ✓\s+similar to\s+those above", known.locator(".ns-list").inner_text())
    assert "Most similar: " in known.locator(".ns-card").inner_text()
    unknown.locator(".ns-text > span").nth(3).hover()
    assert unknown.locator(".ns-cells").count() == 0


def test_no_point_of_the_cards_plot_is_behind_the_name_of_its_axis(visit):
    page = visit("strips")
    page.locator(".nucleoscope-strip .ns-text > span").nth(3).hover()
    plots = page.evaluate("""() => [...document.querySelectorAll(".nucleoscope-strip .ns-card svg")].map((plot) => {
      const names = [...plot.querySelectorAll("text")].filter((text) => text.textContent === "cosine similarity");
      const name = names[0].getBBox();
      return [name.y + name.height, plot.querySelector(".ns-dots").getBBox().y];
    })""")
    assert plots
    assert all(bottom <= dots for bottom, dots in plots)


# Strips of tokens

DRAWN = ".nucleoscope-strip .ns-text > span"
CONTRASTS = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function over(colours) {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    const part = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
    const [r, g, b] = part.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  const found = {};
  for (const element of document.querySelectorAll(".nucleoscope-strip *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(element);
    const [a, b] = [over(["#fff", ...grounds]), over([style.fill !== "rgb(0, 0, 0)" ? style.fill : style.color])];
    const key = [element.tagName, ...element.classList].join(".");
    found[key] = Math.min(found[key] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return found;
}
"""


def test_the_outline_of_a_token_at_the_start_of_a_line_has_no_box_for_the_space_before_it(visit):
    page = visit("strips", 390)
    strip = page.locator("div.nucleoscope-strip").nth(1)
    broken = strip.evaluate("""strip => [...strip.querySelectorAll(".ns-text > span")].map((span, i) => [span, i])
      .filter(([span]) => /^ \\S/.test(span.textContent) && span.getClientRects().length === 2).map(([, i]) => i)""")
    assert broken
    before = strip.locator(".ns-text").inner_html()
    strip.locator(".ns-text").press("Home")
    for _ in range(broken[0]):
        strip.locator(".ns-text").press("ArrowRight")
    outlined = strip.locator(".ns-text > .ns-here > .ns-word")
    assert outlined.evaluate("word => [word.getClientRects().length, word.textContent[0] !== ' ']") == [1, True]
    style = "element => getComputedStyle(element).outlineStyle"
    assert [outlined.evaluate(style), strip.locator(".ns-here").evaluate(style)] == ["solid", "none"]
    page.keyboard.press("Escape")
    after = strip.locator(".ns-text").inner_html()
    assert after.replace(' class=""', "") == before.replace(' class=""', "")


def read_group(group) -> list:
    """A group of a card: its share, the names of its candidates without the mark of the one that was taken, a note."""
    names = [name.removesuffix(" ✓") for name in group.locator("bdi").all_text_contents()]
    return [group.locator("b").text_content(), names, group.get_attribute("aria-label")]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_card_shows_similarity_in_context_in_a_tab_that_stays_open(visit, width):
    page = visit("strips", width)
    strip = page.locator("div.nucleoscope-strip").nth(1)
    data = json.loads(strip.locator("script[type='application/json']").text_content())
    context = data["context"]
    several = [step for step, each in enumerate(context) if each]
    alone = context.index(None)
    tokens = strip.locator(".ns-text > span")
    tokens.nth(several[0]).click()
    tab = strip.get_by_role("tab", name="similar in context")
    tab.click()
    assert tab.get_attribute("aria-selected") == "true"
    assert tab.evaluate("tab => tab === document.activeElement")
    listed = [len(words) for _, words, *_ in data["tokens"]]
    assert strip.locator(".ns-context bdi").count() == listed[several[0]]
    tokens.nth(several[1]).click(position={"x": 2, "y": 8})
    assert strip.locator(".ns-context bdi").count() == listed[several[1]]
    tokens.nth(alone).click(position={"x": 2, "y": 8})
    assert "nothing to compare" in strip.locator("[role='tabpanel']").text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tab.press("ArrowLeft")
    assert strip.get_by_role("tab", name="candidates").get_attribute("aria-selected") == "true"
    # A tint by what or how opens the tab, whose candidates are in groups.
    scales = {scale["name"]: scale for scale in data["quantities"]}
    strip.locator("select").select_option(label="uncertainty about what follows (nats)")
    assert tab.get_attribute("aria-selected") == "true"
    assert "dotted: only one candidate)" in strip.locator(".ns-legend").inner_text()
    grouped = [step for step in several if 1 < len(context[step]["groups"]) < len(context[step]["names"])]
    wide = next(step for step in grouped if listed[step] > len(context[step]["names"]))
    for step in (grouped[0], wide):
        found, value = context[step], scales["entropy_what"]["values"][step]
        assert ("ns-none" in (tokens.nth(step).get_attribute("class") or "")) == (value is None)
        strip.locator(".ns-text").press("Home")
        for _ in range(step):
            strip.locator(".ns-text").press("ArrowRight")
        said = strip.locator(".ns-split").inner_text()
        what, how = (f"{part:.3f}" for part in found["split"])
        assert said == f"what {what} + how {how} = {float(what) + float(how):.3f} nats"
        groups = strip.get_by_role("group", name=re.compile("Group of"))
        assert [len(read_group(group)[1]) for group in groups.all()] == [len(places) for _, places in found["groups"]]
        for group, (share, places) in zip(groups.all(), found["groups"], strict=True):
            percent, names, label = read_group(group)
            assert names == [found["names"][place] for place in places]
            assert float(percent.removesuffix("%")) == pytest.approx(100 * share, abs=0.51)
            assert label == f"Group of {len(names)} candidate{'s' * (len(names) > 1)}, {percent}"
        rest = listed[step] - len(found["names"])
        assert strip.locator(".ns-apart").all_text_contents() == ["not compared"] * rest
        text = strip.locator("[role='tabpanel']").inner_text()
        assert f"{len(found['groups'])} groups with a mean similarity of at least 0.5" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    inner = strip.locator(".ns-context").evaluate("list => [list.scrollWidth, list.clientWidth]")
    assert inner[0] <= inner[1]


def test_pointing_at_a_token_shows_its_card_and_leaving_hides_it(visit):
    page = visit("strips")
    card = page.locator(".ns-card").first
    assert "Point at a token" in card.inner_text()
    page.locator(DRAWN).nth(2).hover()
    assert card.locator(".ns-list bdi").count() >= 1
    assert "token 2 of" in card.inner_text()
    assert card.locator(".ns-drawn").count() == 3  # word, bar and probability of the drawn one
    assert card.locator("circle").count() <= 1
    page.mouse.move(5, 5)
    page.wait_for_function("document.querySelector('.ns-card').innerText.includes('Point at a token')")


def test_a_card_keeps_its_place_and_what_is_below_does_not_move(visit):
    page = visit("strips")
    below = page.locator(".nucleoscope-strip").nth(1)
    before = below.bounding_box()["y"] + page.evaluate("scrollY")
    for number in range(12):
        page.locator(DRAWN).nth(number).hover()
        assert below.bounding_box()["y"] + page.evaluate("scrollY") == pytest.approx(before, abs=1)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_card_is_reached_moved_and_closed_by_keyboard(visit, width):
    page = visit("strips", width=width)
    page.locator(".ns-bar select").first.focus()
    page.keyboard.press("Tab")  # the prompt
    page.keyboard.press("Tab")
    card = page.locator(".ns-card").first
    assert "token 0 of" in card.inner_text()
    for key, number in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert f"token {number} of" in card.inner_text(), key
    page.keyboard.press("ArrowDown")
    assert "token 0 of" not in card.inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    total = page.evaluate("JSON.parse(document.querySelector('.nucleoscope-strip script').textContent).total")
    assert f"token {total - 1} of {total}, counted from 0" in card.inner_text()
    assert page.locator(".ns-here").first.is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".nucleoscope-strip").first.locator(".ns-here").count() == 0
    assert card.is_visible() == (width == 1280)
    page.keyboard.press("ArrowRight")
    assert "token 0 of" in card.inner_text()


def test_on_a_phone_a_tap_opens_a_sheet_that_does_not_cover_the_token(visit):
    page = visit("strips", width=390)
    card, token = (
        page.locator(".ns-card").nth(1),
        page.locator(".nucleoscope-strip").nth(1).locator(".ns-text > span").nth(300),
    )
    assert not card.is_visible()
    token.scroll_into_view_if_needed()
    token.click()
    assert card.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.wait_for_function("document.querySelectorAll('.ns-here')[0].getBoundingClientRect().bottom > 0")
    assert token.bounding_box()["y"] + token.bounding_box()["height"] <= card.bounding_box()["y"]
    card.get_by_role("button", name="close").click()
    assert not card.is_visible()
    token.click()
    page.locator("h1").click()
    assert not card.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_strip_can_be_read_in_both_themes(visit, scheme, width):
    page = visit("strips", width=width, scheme=scheme)
    page.locator(DRAWN).nth(2).click()
    contrasts = page.evaluate(CONTRASTS)
    assert {"SPAN", "BDI.ns-drawn", "P.ns-muted", "DIV"} <= set(contrasts)
    assert {name: value for name, value in contrasts.items() if value < 4.5} == {}


def test_another_quantity_gives_other_tints_and_another_legend(visit):
    page = visit("strips")
    tints = "spans => spans.map(span => span.style.background)"
    before = page.eval_on_selector_all(DRAWN, tints), page.locator(".ns-legend").first.inner_text()
    page.locator(".ns-bar select").first.select_option(label="cosine similarity")
    after = page.eval_on_selector_all(DRAWN, tints), page.locator(".ns-legend").first.inner_text()
    assert before[0] != after[0]
    assert "dotted: only one candidate)" in after[1]
    assert page.locator(".nucleoscope-strip").first.locator(".ns-none").count() > 0
    page.locator(DRAWN).nth(2).hover()
    assert "cosine similarity" in page.locator(".ns-now").first.inner_text()
    page.locator(".nucleoscope-strip").first.locator(".ns-none:not([data-n])").first.hover()
    assert page.locator(".nucleoscope-strip").first.locator(".ns-now").all_inner_texts() == [
        "cosine similarity",
        "undefined",
    ]
    assert "With only one candidate there is no cosine similarity" in page.locator(".ns-card").first.inner_text()


def test_a_token_is_compared_with_the_others_of_its_text_in_a_sentence(visit):
    script = assets.read_compactly(assets.STATIC / "card.js")
    calls = "[[0, 1], 2, 3], [[1, 1200], 1301, 3], [[2, 0], 4, 3], [[0, 0], 1, 3]"
    said = visit("strips").evaluate(f"() => {{ {script}; return [{calls}].map((each) => describePlace(...each)) }}")
    assert said == [
        "The only other token of this text with more than one candidate has equal or higher entropy and lower cosine "
        "similarity.",
        "Of the 1,300 other tokens of this text with more than one candidate, 1 has lower entropy and 1,200 have "
        "lower cosine similarity.",
        "Of the 3 other tokens of this text with more than one candidate, 2 have lower entropy and none has lower "
        "cosine similarity.",
        "The only token of this text with more than one candidate.",
    ]


def test_a_prompt_with_a_script_is_shown_and_not_run(visit):
    page = visit("strips")
    assert "taken over" not in page.title()
    assert ATTACK in page.locator(".ns-prompt").first.inner_text()
    assert ATTACK in page.locator(".ns-text").first.text_content()
    assert page.locator(".nucleoscope-strip img").count() == 0
    for number in range(page.locator(".nucleoscope-strip").first.locator(".ns-text > span").count()):
        page.locator(DRAWN).nth(number).dispatch_event("click")
    assert "taken over" not in page.title()
    assert page.locator(".nucleoscope-strip img").count() == 0


def test_a_text_that_was_there_shows_its_tokens_where_they_are_not_in_their_nucleus(visit):
    box = visit("strips").locator(".nucleoscope-strip").nth(3)
    card, spans = box.locator(".ns-card"), box.locator(".ns-text > span")
    spans.nth(0).hover()
    assert "in the text: outside the nucleus of 2 candidates" in card.inner_text()
    assert "drawn" not in card.inner_text()
    assert card.locator(".ns-value.ns-drawn").inner_text() == "outside ✓ 5.0%"
    assert "no other candidates" in card.inner_text()
    assert "margin\nmissing" in card.inner_text()
    assert "only the nucleus, which has 90.0% of the probability." in card.inner_text()
    widths = card.locator(".ns-p").evaluate_all("bars => bars.map((bar) => bar.style.width)")
    assert [float(width.rstrip("%")) for width in widths] == pytest.approx(
        [60, 30, 4.98]
    )  # of the whole, not of the first
    assert "points: tokens of this text" in card.inner_text()
    assert spans.nth(1).text_content() == ""
    spans.nth(1).hover()
    assert "token 1 of" in card.inner_text()
    box.locator("select").select_option(label="cosine similarity")
    assert box.locator(".ns-legend").inner_text().startswith("0 or less")


def test_a_strip_is_an_application_so_that_arrow_keys_reach_it(visit):
    page = visit("strips")
    assert page.get_by_role("application", name="Text. The arrow keys move from token to token").count() == 4


def test_letters_join_across_tokens_as_if_there_were_none(visit):
    page = visit("strips")
    widths = page.evaluate(
        """() => {
          const text = document.querySelector(".ns-text");
          const spans = [...text.querySelectorAll(":scope > span")];
          const first = spans.findIndex((span) => span.textContent === "ا");
          const last = spans.findIndex((span) => span.textContent.includes("👩"));
          const range = document.createRange();
          range.setStartBefore(spans[first]);
          range.setEndBefore(spans[last]);
          const whole = document.createElement("span");
          whole.textContent = range.toString();
          const made = range.getBoundingClientRect().width;
          text.append(document.createElement("br"), whole);
          return [made, whole.getBoundingClientRect().width, last - first];
        }"""
    )
    assert widths[2] > 10
    assert widths[0] == pytest.approx(widths[1], abs=1)


def test_a_card_that_stays_open_comes_back(visit):
    page = visit("strips")
    box = page.locator(".nucleoscope-strip").nth(2)
    assert "token 3 of" in box.locator(".ns-card").inner_text()
    assert "points: tokens of this excerpt" in box.locator(".ns-card").inner_text()  # the strip is not the whole text
    box.locator(".ns-text > span").nth(0).hover()
    assert "token 1 of" in box.locator(".ns-card").inner_text()
    page.mouse.move(5, 5)
    page.wait_for_function("document.querySelectorAll('.ns-card')[2].innerText.includes('token 3 of')")
    assert box.locator(".ns-here").count() == 1


def test_500_tokens_are_hardly_more_than_500_elements_also_the_way_that_jupyterlab_draws_them(visit):
    page = visit("strips")
    # JupyterLab sets innerHTML before the output is on the page, and replaces scripts by copies that run
    elements, built, events = page.evaluate(
        """() => {
          const old = document.querySelectorAll(".nucleoscope-strip")[1];
          const copy = old.cloneNode(true);
          delete copy.dataset.ready;
          const place = old.parentElement;
          const html = copy.outerHTML;
          old.remove();
          const host = document.createElement("div");
          host.innerHTML = html;
          for (const script of host.querySelectorAll("script")) {
            const again = document.createElement("script");
            for (const { name, value } of script.attributes) again.setAttribute(name, value);
            again.textContent = script.textContent;
            script.replaceWith(again);
          }
          place.append(host);
          const root = host.firstElementChild;
          root.getBoundingClientRect();
          const steps = [];
          document.addEventListener("nucleoscope-token", (event) => steps.push(event.detail.step));
          root.querySelectorAll(".ns-text > span")[7].click();
          root.querySelector(".ns-text").dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
          return [host.querySelectorAll("*").length, root.dataset.ready, steps];
        }"""
    )
    assert 500 < elements < 700
    assert built == "yes"
    assert len(events) == 2
    assert events[1] is None


def test_the_first_key_leads_to_the_main_content(visit):
    page = visit("index")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"
    assert page.locator("main#main-content, #main-content").count() == 1


def test_make_book_asks_the_graph_for_the_book(tmp_path):
    grid = yaml.safe_load((ROOT / "scripts/grids/default.yml").read_text()) | {"results_dir": str(tmp_path)}
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(grid))
    given = [f"BIN={Path(sys.executable).parent}", "FLAGS=--dry-run", f"GRID={tmp_path / 'grid.yml'}"]
    command = ["make", "--assume-old=.venv/.ready", "book", *given]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of an outer make
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    reasons = done.stdout.split("Reasons:")[1]  # for what would be run; they differ where a book was built before
    assert set(re.findall(r"\b(analyses|book|measure|page)\b", reasons)) == {"analyses", "book", "measure", "page"}
    assert done.stdout.rstrip().endswith("_build/html/index.html")


# The real book, on small results


@pytest.fixture(scope="session")
def real(tmp_path_factory) -> Path:
    """The project's own book, with its notebooks executed, on two small made runs."""
    return build_once(tmp_path_factory, "real_book", build_real)


def create_real_page(title: str) -> nbformat.NotebookNode:
    """A notebook as `create_notebook` returns it, without its table of one word that nothing can break."""
    notebook = create_notebook(title)
    for cell in notebook.cells[1:]:
        cell.outputs = [output for output in cell.outputs if "text/html" not in output.get("data", {})]
    return notebook


def add_wide_tables(notebook: nbformat.NotebookNode, **settings: float) -> nbformat.NotebookNode:
    """Adds the widest tables of the project's pages, with the names of the default grid, and columns of settings."""
    model, datasets = "SmolLM2-135M-Instruct", ("articles", "stories")
    measured = {(model, name): draw_full(seed, prompts=12, length=20) for seed, name in enumerate(datasets)}
    counted = create_tests((-0.123, -0.234, -0.045), (249, 31, 104), model).assign(Dataset=datasets[0])
    outcomes = create_rows(model, datasets[0], given=(-0.51, -0.72, -0.23), all=(-0.12, -0.56, -0.34))
    shown = [
        tables.format_readable(correlation.compute_statistics(measured).assign(**settings)),
        tables.format_counts(counted.assign(**settings)),
        choice_figures.format_coefficients(outcomes.assign(**settings)),
    ]
    new = nbformat.v4
    outputs = [new.new_output("display_data", {"text/html": tables.show(frame).data}) for frame in shown]
    settings_of_a_run = {"top_p": 0.9, "model": {"sha256": "b179c952" * 8}}
    outputs += [new.new_output("display_data", {"text/html": tables.show_settings(settings_of_a_run).data})]
    notebook.cells += [new.new_markdown_cell("## Tables"), new.new_code_cell("tables", outputs=outputs)]
    return notebook


def build_real(folder: Path) -> None:
    name = tiny.save(folder / "models" / "small_model", tiny.create_model(), tiny.create_tokenizer(bos=False))
    settings = {"model_name": name, "model": {"source": "folder"}, "dtype": "float32"}
    settings |= {"n_prompts": 25, "prompt_format": "raw"}
    for seed, dataset in enumerate(("alpha", "my texts")):
        run = folder / "results" / dataset / "small_model"
        run.mkdir(parents=True)
        records = [tiny.create_record(TEXT, seed=100 * seed + number) for number in range(25)]
        torch.save(records, run / "measurements.pt")
        (run / "run.json").write_text(json.dumps({"settings": settings, "tokens": 500}))
        varied = {"top_p": 0.95, "temperature": 0.7} if seed else {}
        nbformat.write(add_wide_tables(create_real_page(dataset), **varied), run / "run.ipynb")
    options = ["--results_dir", str(folder / "results")]
    pages = [["run_notebook.py", n, str(folder / f"results/book/{n}.ipynb"), *options] for n in graph.COMBINED_PAGES]
    commands = [["correlation_eval.py", "--resamples", "100", *options], *pages]
    forked = forks.create_environment()  # the notebooks; the book is built as users build it
    for command in [*commands, ["build_book.py", *options, "--output", str(folder)]]:
        environment = os.environ if command[0] == "build_book.py" else forked
        done = subprocess.run(
            [sys.executable, f"scripts/{command[0]}", *command[1:]], cwd=ROOT, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.long
def test_the_real_book_has_every_page_and_every_link_resolves(real):
    toc = (ROOT / "book/_toc.yml").read_text()
    names = re.findall(r"^ *- file: (.+)$", toc, re.MULTILINE)
    assert len(names) > 15
    assert [name for name in names if not (real / f"{name}.html").is_file()] == []
    assert (real / "runs/small_model/my texts.html").is_file()
    assert find_broken_links(real) == []


CURLY = "[\u2018\u2019\u201c\u201d]"


def test_quotation_marks_and_apostrophes_are_straight_on_every_page(real):
    pages = {page.relative_to(real).as_posix(): page.read_text() for page in real.rglob("*.html")}
    assert len(pages) > 30
    curly = {name: text for name, text in pages.items() if re.search(CURLY, unescape(text))}
    found = {}
    for name, text in curly.items():  # no other page need be parsed
        soup = BeautifulSoup(text, "html.parser")
        for part in soup.select("script, style, pre, .nucleoscope"):  # code, and texts of models and data sets
            part.decompose()
        found[name] = re.findall(CURLY, soup.get_text())
    assert {name for name, marks in found.items() if marks} == set()
    assert not re.search(CURLY, assets.join_script(assets.STATIC / "menu.js"))


def test_code_is_open_where_it_is_the_point(real):
    soup = BeautifulSoup((real / "theory.html").read_text(), "html.parser")
    cells = soup.select("div.cell_input")
    folded = [cell for cell in cells if cell.find_parent("details")]
    assert 0 < len(folded) < len(cells)


# The beginning of each table that is wider than its place; `LOST`: of those whose names are out of sight once one has
# scrolled to the end.
WIDE_TABLES = """(least) => [...document.querySelectorAll("main table")].filter((table) => {
  const box = table.closest(".output, .pst-scrollable-table-container") ?? table.parentElement;
  return table.offsetWidth > box.clientWidth && !(least && table.matches(least));
}).map((table) => table.innerText.slice(0, 80))"""
LOST = """() => [...document.querySelectorAll("main table")].filter((table) => {
  const box = table.closest(".output, .pst-scrollable-table-container") ?? table.parentElement;
  if (table.offsetWidth <= box.clientWidth) return false;
  box.scrollLeft = 1e5;
  const names = [...table.querySelectorAll("tr.names div")];
  const kept = names.length ? names : [...table.tBodies[0].rows].map((row) => row.cells[0]);
  return kept.some((name) => name.getBoundingClientRect().left < box.getBoundingClientRect().left - 1);
}).map((table) => table.innerText.slice(0, 80))"""


# Code in the open whose lines are longer than its place; and code that has to be scrolled, or formulas.
LONG_CODE = """() => [...document.querySelectorAll("main div.highlight pre")].filter((code) => {
  code.style.whiteSpace = "pre";
  const long = !code.closest("details") && code.scrollWidth > code.clientWidth;
  code.style.whiteSpace = "";
  return long;
}).map((code) => code.innerText.slice(0, 80))"""
SCROLLING_CODE = """() => [...document.querySelectorAll("main div.highlight pre")]
  .filter((code) => code.scrollWidth > code.clientWidth).map((code) => code.innerText.slice(0, 80))"""
WIDE_FORMULAS = """() => [...document.querySelectorAll("main mjx-container")].filter((formula) => {
  const place = formula.closest(".math").parentElement.getBoundingClientRect();
  return formula.querySelector("mjx-math").getBoundingClientRect().right > place.right + 1;
}).map((formula) => formula.textContent)"""


def resize(page, width: int) -> None:
    """Another width of the window; returns when the sidebars have moved and page.js has seen it."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("""async () => {
      const frame = () => new Promise(requestAnimationFrame);
      await frame();
      for (const animation of document.getAnimations()) animation.finish();
      for (let n = 0; n < 4; n++) await frame();
    }""")


@pytest.mark.long
def test_every_page_of_the_real_book_fits_a_phone_and_its_tables_fit_a_laptop(page, real):
    """Tables with two columns of settings that differ fit a large screen."""
    with visit_pages(page, real) as visit:
        for path in sorted(real.rglob("*.html")):
            name = path.relative_to(real).with_suffix("").as_posix()
            if not name.startswith("_static"):
                visit(name, width=390)
                draw_figures(page)
                assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
                assert page.evaluate(SCROLLING_CODE) == [], name
                assert page.locator("h1").count() == 1, name
                assert page.evaluate(LOST) == [], name
                if page.locator("main :is(div.highlight pre, table)").count():
                    resize(page, 1280)
                    assert page.evaluate(LONG_CODE) == [], name
                    assert page.evaluate(WIDE_TABLES, ".names-4, .names-5") == [], name
                if page.locator("main table").count():
                    visit(name, width=1280)  # not after another width: what arrives late may make a table wider
                    resize(page, 1280)
                    assert page.evaluate(WIDE_TABLES, ".names-4, .names-5") == [], name
                    resize(page, 1920)
                    assert page.evaluate(WIDE_TABLES) == [], name


@pytest.mark.parametrize("name", ["theory", "method"])
def test_no_formula_has_to_be_scrolled_on_a_phone(page, real, name):
    with visit_pages(page, real) as visit:
        visit(name, width=390)
        page.wait_for_function(
            "document.querySelectorAll('mjx-container').length === document.querySelectorAll('main .math').length"
        )
        assert page.evaluate(WIDE_FORMULAS) == []


@pytest.mark.parametrize("name", ["two_texts", "choice", "correlation_eval/made_of"])
def test_a_page_whose_data_were_not_measured_says_so_once_and_has_no_sections(real, name):
    article = BeautifulSoup((real / f"{name}.html").read_text(), "html.parser").select_one("article.bd-article")
    assert article.select("h2, h3, h4") == []
    assert tables.NOTHING_YET.strip("*") not in article.get_text()


def test_a_table_that_becomes_wider_after_its_page_was_read_has_its_intervals_below_its_numbers(page, real):
    with visit_pages(page, real) as visit:
        visit("runs/small_model/alpha", width=1920)
        assert page.locator("main table.unbroken").count()
        page.add_style_tag(content=".bd-article div.output table { font-size: 1.4em !important; }")
        page.wait_for_function("document.querySelector('main table:not(.unbroken) .interval')", timeout=10_000)
        box = "table.closest('.output, .pst-scrollable-table-container')"
        unbroken = "[...document.querySelectorAll('main table.unbroken')]"
        assert page.evaluate(f"{unbroken}.every((table) => table.offsetWidth <= {box}.clientWidth)")


def test_a_wide_table_has_the_room_of_the_list_of_sections_which_a_button_then_shows(page, real):
    with visit_pages(page, real) as visit:
        visit("runs/small_model/alpha")
        sections, button = page.locator("#pst-secondary-sidebar"), page.locator(".secondary-toggle")
        assert not sections.is_visible()
        button.click()
        dialog = page.locator("#pst-secondary-sidebar-modal")
        assert dialog.get_by_role("link", name="Tables").is_visible()
        box = dialog.bounding_box()
        assert (box["x"] + box["width"], box["y"], box["height"]) == (1280, 0, 900)
        page.keyboard.press("Escape")
        resize(page, 1920)
        assert sections.get_by_role("link", name="Tables").is_visible()
        assert not button.is_visible()


def test_the_switches_of_a_figure_work_by_keyboard(page, real):
    with visit_pages(page, real) as visit:
        visit("correlation_eval/correlation")
        draw_figures(page)
        assert page.locator(".updatemenu-container").count() == 0  # plotly's own are out of the keyboard's reach
        density = page.get_by_role("button", name="density")
        density.focus()
        page.keyboard.press("Enter")
        assert density.get_attribute("aria-pressed") == "true"
        page.locator(".heatmaplayer image").first.wait_for(state="attached")
        page.get_by_label("subject of the figure").first.select_option(label="weighted cosine against entropy")
        page.locator("text.annotation-text, .annotation text", has_text="weighted cosine similarity").first.wait_for()
