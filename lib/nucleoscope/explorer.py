"""The live notebook's widgets: one generation, token by token, with its candidates and its scatter.

Contract: everything runs in the kernel and in JupyterLab's page, with no network and no server of its
own. Text from models and data sets reaches the page as plain text: the widgets set it as such, and
what plotly gets, which reads a little HTML, is escaped. A text is written in a thread, so that the
kernel goes on answering: to pointing, clicking, selecting and Stop.
"""

import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as widgets
import plotly.graph_objects as go

from nucleoscope import candidates, generation, models, results
from nucleoscope.controls import TokenText, cells, settings
from nucleoscope.live_figures import HINT, heat, heat_layout, heatmap, scatter
from nucleoscope.streaming import Token, stream
from nucleoscope.text import Reader

REFRESH = 0.15  # seconds between two looks at a text that is being written
load = lru_cache(maxsize=2)(models.load)  # the last two models stay: going back to one is free


class Explorer:
    """Widgets to write one text and look inside it; ``view`` is what a notebook shows.

    Arguments are the first values of the settings; ``results_dir`` is where measured cells are
    offered from. A kernel has one explorer: making another, as a cell that is run again does, ends
    the one before and whatever it was writing. Models are loaded once, not once a prompt.
    """

    _latest: ClassVar["Explorer | None"] = None

    def __init__(
        self,
        prompt: str = "",
        model_name: str = models.PACKAGED,
        max_tokens: int = 100,
        top_p: float = 0.9,
        seed: int = 0,
        prompt_format: str = "chat",
        quantity: str = "entropy",
        dtype: str = "auto",
        device: str = "auto",
        results_dir: str = "results",
    ):
        generation.check(max_tokens, top_p, prompt_format, 1)
        if Explorer._latest is not None:
            Explorer._latest.close()
        Explorer._latest = self
        self.place = (dtype, device)
        self.tokens: list[Token] = []
        self.model: models.Model | None = None
        self.reader: Reader | None = None
        self.records: list[dict] = []  # of the measured cell that is picked
        self._thread: threading.Thread | None = None
        self._stop, self._closed, self._lock = threading.Event(), False, threading.RLock()
        self.text = TokenText()
        self.scatter: go.FigureWidget | None = None  # the figures come with the first text
        self.heat: go.FigureWidget | None = None
        self.settings = settings(model_name, max_tokens, top_p, seed, prompt_format)
        self.prompt = widgets.Textarea(prompt, description="prompt", rows=4, layout=widgets.Layout(width="auto"))
        self.quantity = widgets.Dropdown(
            options=[(label, name) for name, label in candidates.QUANTITIES.items()], value=quantity, description="tint"
        )
        self.cell = widgets.Dropdown(options=cells(results_dir), description="measured")
        self.picked = widgets.Dropdown(options=[("its prompts", None)], description="prompt", disabled=True)
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(max=max_tokens, layout=widgets.Layout(flex="1 1 10em", width="auto"))
        self.view = self._arranged()
        self._connect()

    def _arranged(self) -> widgets.VBox:
        """All widgets, side by side where there is room for it."""
        wrap = {"flex_flow": "row wrap", "align_items": "center"}
        column = {"flex": "1 1 26em", "min_width": "0", "padding": "0 0.5em 0 0"}
        left = widgets.VBox([self.text], layout=widgets.Layout(**column))
        self.figures = widgets.VBox(layout=widgets.Layout(**column))
        offered = None if len(self.cell.options) > 1 else "none"
        picks = widgets.HBox([self.cell, self.picked], layout=widgets.Layout(display=offered, **wrap))
        rows = [
            picks,
            self.prompt,
            widgets.HBox([*self.settings.values(), self.quantity], layout=widgets.Layout(**wrap)),
            widgets.HBox([self.run_button, self.stop_button, self.progress], layout=widgets.Layout(**wrap)),
            widgets.HBox([left, self.figures], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start")),
        ]
        return widgets.VBox(rows)

    def _connect(self) -> None:
        """Who hears of what. Each widget is heard once: it is as old as this explorer."""
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self._stop.set())
        self.quantity.observe(lambda _: self._tint(), "value")
        self.cell.observe(lambda change: self._open(change.new), "value")
        self.picked.observe(lambda change: self._pick(change.new), "value")
        self.text.observe(lambda change: self._point(change.new), "hovered")
        self.text.observe(lambda change: self._click(change.new), "clicked")

    def _draw(self) -> None:
        """Makes the figures, when the page is there: JupyterLab may ask for a widget's state while a
        cell still runs, and draws a figure that is made in between without its data and layout."""
        self.scatter, self.heat = scatter(), heat()
        points = self.scatter.data[0]
        points.on_selection(lambda trace, found, _: self._select(found.point_inds))
        points.on_deselect(lambda *_: self._select([]))
        points.on_click(lambda trace, found, _: self._click_point(found.point_inds))
        self.figures.children = [self.scatter, self.heat]

    def run(self) -> None:
        """Writes a text with the settings as they stand, in a thread; does nothing while one is written."""
        if self._thread is not None and self._thread.is_alive():
            return
        chosen = {name: widget.value for name, widget in self.settings.items()}
        place, prompt = self.picked.value, self.prompt.value
        same = place is not None and self.records[place]["prompt"] == prompt
        chosen |= {"prompt": prompt, "index": place if same else 0}
        self._clear(chosen)
        self._thread = threading.Thread(target=self._write, args=(chosen,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Returns when the text is written, or after so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Ends what is being written, and takes the widgets from the page."""
        self._closed = True
        self._stop.set()
        for widget in (self.text, *self.figures.children, self.view):
            widget.close()

    def _clear(self, chosen: dict[str, Any]) -> None:
        self._stop.clear()
        self.run_button.disabled, self.stop_button.disabled = True, False
        self.progress.value, self.progress.max = 0, chosen["max_tokens"]
        with self._lock:
            if self.scatter is None:
                self._draw()
            self.tokens = []
            with self.text.hold_sync():
                self.text.prompt, self.text.pieces, self.text.marked, self.text.card = chosen["prompt"], [], [], {}
                self.text.hovered = self.text.clicked = -1
            with self.scatter.batch_update():
                self.scatter.data[0].update(x=[], y=[], customdata=[], selectedpoints=None)
            self._mark()
            self._draw_heat(None)

    def _write(self, chosen: dict[str, Any]) -> None:
        """The thread's work: loads, writes, shows, and says how it went."""
        said, failed = "", False
        try:
            said = self._written(dict(chosen))
        except Exception as error:  # whatever it is, the reader of the page is to know
            said, failed = f"{type(error).__name__}: {error}", True
        if self._closed:
            return
        self._show()
        self._say(said, failed)
        self.run_button.disabled, self.stop_button.disabled = False, True

    def _written(self, chosen: dict[str, Any]) -> str:
        """Writes the text, and returns what is to be said of it."""
        name, prompt = chosen.pop("model_name"), chosen.pop("prompt")
        self._say(f"Loading {name} …")
        model = load(name, *self.place)
        self.model, self.reader = model, Reader(model.tokenizer)
        self._say("Writing …")
        begun = shown = time.monotonic()
        for token in stream(model.model, model.tokenizer, prompt, **chosen):
            self.tokens.append(token)
            if self._stop.is_set():
                break
            if time.monotonic() - shown > REFRESH:
                self._show()
                shown = time.monotonic()
        count, seconds = len(self.tokens), time.monotonic() - begun
        how = "stopped" if self._stop.is_set() else "ended by the model" if count < chosen["max_tokens"] else "done"
        return f"{count:,} tokens in {seconds:.1f} s ({how})"

    def _say(self, status: str, failed: bool = False) -> None:
        if not self._closed:
            with self.text.hold_sync():
                self.text.status, self.text.failed = status, failed

    def _show(self) -> None:
        """Brings text, tint, scatter and progress up to the tokens that there are."""
        with self._lock:
            if self._closed or self.reader is None:
                return
            tokens = list(self.tokens)
            with self.text.hold_sync():
                self.text.pieces = candidates.pieces(self.reader, tokens)
                self._tint()
            steps = [step for step, token in enumerate(tokens) if len(token.ids) > 1]
            x, y = ([tokens[step].values[name] for step in steps] for name in ("entropy", "cosine"))
            with self.scatter.batch_update():
                self.scatter.data[0].update(x=x, y=y, customdata=steps)
            self.progress.value = len(tokens)

    def _tint(self) -> None:
        name = self.quantity.value
        shares, legend = candidates.scale(self.tokens[: len(self.text.pieces)], name)
        with self.text.hold_sync():
            self.text.shares, self.text.legend = shares, legend | {"gaps": None in shares}

    def _point(self, step: int) -> None:
        """A token was pointed at: its card, and its mark in the scatter."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.card = candidates.card(self.tokens, step, self.reader, self._embedding())
                self._mark(step)

    def _click(self, step: int) -> None:
        """A token was clicked: beside card and mark, the matrix of its candidates."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.hovered = step
                self._draw_heat(step)

    def _click_point(self, places: list[int]) -> None:
        if places:
            self.text.clicked = self.scatter.data[0].customdata[places[0]]

    def _select(self, places: list[int]) -> None:
        """Points were selected in the scatter: their tokens are marked in the text."""
        steps = self.scatter.data[0].customdata
        self.text.marked = [int(steps[place]) for place in places if place < len(steps)]

    def _embedding(self):
        return self.model.model.get_input_embeddings().weight.detach()

    def _mark(self, step: int = -1) -> None:
        """Puts the scatter's mark on a token; nowhere for -1 and for one candidate alone."""
        token = self.tokens[step] if step >= 0 and len(self.tokens[step].ids) > 1 else None
        values = {axis: [token.values[name]] if token else [] for axis, name in (("x", "entropy"), ("y", "cosine"))}
        with self.scatter.batch_update():
            self.scatter.data[1].update(values)

    def _draw_heat(self, step: int | None) -> None:
        """Draws the matrix of a token's candidates, or says why there is none."""
        title, words, alike = HINT, [], None
        if step is not None:
            ids = self.tokens[step].ids
            title = f"Token {step + 1} had one candidate alone: there is nothing to compare"
            if len(ids) > 1:
                alike, order = candidates.matrix(self._embedding(), ids)
                words = [self.reader.visible(int(ids[place])) for place in order]
                count = f"the {len(order)} likeliest of " if len(order) < len(ids) else ""
                title = f"Cosines of {count}{len(ids):,} candidates of token {step + 1}"
        with self.heat.batch_update():
            self.heat.data = []
            self.heat.update_layout(
                **heat_layout(title, words, 90 if alike is None else 200 + 14 * max(len(words), 10))
            )
        if alike is not None:
            self.heat.add_trace(heatmap(alike, words))

    def _open(self, folder: Path | None) -> None:
        """A measured cell was picked: its prompts can be."""
        self.records, self.picked.options, self.picked.disabled = [], [("its prompts", None)], True
        if folder is None:
            return
        try:
            self.records = results.load(results.measurements(folder))
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        names = [(f"{place}: {record['prompt'][:70]!r}", place) for place, record in enumerate(self.records)]
        self.picked.options, self.picked.disabled = [("its prompts", None), *names], False

    def _pick(self, place: int | None) -> None:
        """A measured prompt was picked: Run then writes the cell's text again, with the cell's settings."""
        if place is None:
            return
        self.prompt.value = self.records[place]["prompt"]
        if (self.cell.value / results.RUN_INFO).is_file():
            found = results.load_info(self.cell.value)["settings"]
            for name in self.settings.keys() & found.keys():
                self.settings[name].value = found[name]
