"""The live notebook's widgets: one text, token by token, with its candidates and its scatter.

Contract: everything runs in the kernel and in JupyterLab's page, with no network and no server of its
own. Text from models and data sets reaches the page as plain text: the widgets set it as such, and
what plotly gets, which reads a little HTML, is escaped. A text is written in a thread, so that the
kernel goes on answering: to pointing, clicking, selecting and Stop.
"""

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as widgets
import plotly.graph_objects as go

from nucleoscope import quantities
from nucleoscope.explorer.controls import COLUMN, TokenText, arranged, cells, modes, prompts, settings
from nucleoscope.explorer.live_figures import heat, scatter, show_mark, show_matrix, show_points
from nucleoscope.measure.streaming import Token, read, stream
from nucleoscope.models import loading
from nucleoscope.settings import Settings, fill_defaults
from nucleoscope.store import results
from nucleoscope.views import cards
from nucleoscope.views.token_text import Reader

REFRESH = 0.15  # seconds between two looks at a text that is being written
_loaded: dict[tuple[str, str, str], loading.Model] = {}  # one at most
_loading = threading.Lock()


def load(name: str, dtype: str, device: str) -> loading.Model:
    """A model, from memory where it is the one that was loaded last. Two large ones need not fit beside each other."""
    with _loading:
        if (name, dtype, device) not in _loaded:
            _loaded.clear()
            _loaded[name, dtype, device] = loading.load(name, dtype, device)
        return _loaded[name, dtype, device]


class Explorer:
    """Widgets to write one text, or read one, and look inside it; ``view`` is what a notebook shows.

    Arguments are the first values of the settings; ``results_dir`` is where measured cells are
    offered from. A kernel has one explorer: making another, as a cell that is run again does, ends
    the one before and whatever it was writing. Models are loaded once, not once a prompt.
    """

    _latest: ClassVar["Explorer | None"] = None

    def __init__(
        self,
        prompt: str = "",
        model_name: str = loading.PACKAGED,
        max_tokens: int = Settings.max_tokens,
        top_p: float = Settings.top_p,
        temperature: float = Settings.temperature,
        seed: int = Settings.seed,
        prompt_format: str = "chat",
        quantity: str = "entropy",
        dtype: str = Settings.dtype,
        device: str = Settings.device,
        results_dir: str = Settings.results_dir,
        mode: str = Settings.mode,
        text: str = "",
    ):
        column = "text" if mode == "score" else None
        Settings(max_tokens=max_tokens, top_p=top_p, temperature=temperature, seed=seed).check()
        Settings(prompt_format=prompt_format, mode=mode, text_column=column).check()
        self.dtype, self.device = dtype, device
        self.tokens: list[Token] = []
        self.model: loading.Model | None = None
        self.reader: Reader | None = None
        self.whose = "drawn"  # or "the text's": what a card calls the token that is there
        self.records: list[dict] = []  # of the measured cell that is picked: prompts and tokens
        self._thread: threading.Thread | None = None
        self._stop, self._closed, self._lock = threading.Event(), False, threading.RLock()
        self.scatter: go.FigureWidget | None = None  # the figures come with the first text
        self.heat: go.FigureWidget | None = None
        self.settings = settings(model_name, max_tokens, top_p, temperature, seed, prompt_format)
        self._build(prompt, text, mode, quantity, results_dir)
        self._connect()
        self._switch()
        if Explorer._latest is not None:
            Explorer._latest.close()
        Explorer._latest = self  # last, so that one whose settings are refused leaves nothing behind

    def _build(self, prompt: str, text: str, mode: str, quantity: str, results_dir: str) -> None:
        """Makes the other widgets, and ``view`` of all."""
        self.text = TokenText()
        self.mode = modes(mode)
        self.prompt, self.given = (
            widgets.Textarea(value, description=name, rows=4, layout=widgets.Layout(width="auto"))
            for name, value in (("prompt", prompt), ("text", text))
        )
        self.quantity = widgets.Dropdown(
            options=[(label, name) for name, label in quantities.list_titles().items()],
            value=quantity,
            description="tint",
        )
        wide = {"flex": "1 1 20em", "width": "auto"}
        self.cell = widgets.Dropdown(options=cells(results_dir), description="run", layout=widgets.Layout(**wide))
        self.picked = widgets.Dropdown(
            options=prompts([]), description="its prompt", disabled=True, layout=widgets.Layout(**wide)
        )
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(layout=widgets.Layout(flex="1 1 10em", width="auto"))
        self.figures = widgets.VBox(layout=widgets.Layout(**COLUMN))
        picks = [self.cell, self.picked] if len(self.cell.options) > 1 else []
        self.view = arranged(
            [self.mode, *picks],
            [self.prompt, self.given],
            [*self.settings.values(), self.quantity],
            [self.run_button, self.stop_button, self.progress],
            self.text,
            self.figures,
        )

    def _connect(self) -> None:
        """Who hears of what. Each widget is heard once: it is as old as this explorer."""
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self._stop.set())
        self.mode.observe(lambda _: self._switch(), "value")
        self.quantity.observe(lambda _: self._tint(), "value")
        self.cell.observe(lambda change: self._open(change.new), "value")
        self.picked.observe(lambda change: self._pick(change.new), "value")
        self.text.observe(lambda change: self._point(change.new), "hovered")
        self.text.observe(lambda change: self._click(change.new), "clicked")

    def _switch(self) -> None:
        """Shows the controls of the mode alone: only a text that is there is pasted, only a new one has a seed."""
        self.given.layout.display = None if self.mode.value == "score" else "none"
        self.settings["seed"].layout.display = "none" if self.mode.value == "score" else None

    def _draw(self) -> None:
        """Makes the figures of a text: what was selected or zoomed in those of the text before goes with them.

        Not before the first text: JupyterLab may ask for a widget's state while a cell still runs, and
        draws a figure that is made in between without its data and layout.
        """
        before = self.figures.children
        self.text.figure = self.text.model_id
        self.scatter, self.heat = scatter(self.text.figure), heat()
        self.figures.children = [self.scatter, self.heat]
        for figure in before:
            figure.close()

    def run(self) -> None:
        """Writes or reads a text with the settings as they stand, in a thread; does nothing while that runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        chosen = {name: widget.value for name, widget in self.settings.items()}
        place, prompt = self.picked.value, self.prompt.value
        same = place >= 0 and self.records[place]["prompt"] == prompt
        chosen |= {"prompt": prompt, "index": place if same else 0}
        if self.mode.value == "score":
            del chosen["seed"], chosen["index"]
            chosen["text"] = self.given.value
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
        self.run_button.disabled, self.stop_button.disabled = True, "text" in chosen  # a text is read in one go
        self.progress.value, self.progress.max = 0, chosen["max_tokens"]
        with self._lock:
            self.tokens = []
            with self.text.hold_sync():
                self.text.prompt, self.text.pieces, self.text.marked, self.text.card = chosen["prompt"], [], [], {}
                self.text.hovered = self.text.clicked = -1
            self._draw()

    def _write(self, chosen: dict[str, Any]) -> None:
        """The thread's work: loads, writes, shows, and says how it went."""
        said, failed = "", False
        try:
            said = self._written(dict(chosen))
            self._show()
        except Exception as error:  # whatever it is, the reader of the page is to know
            said, failed = f"{type(error).__name__}: {error}", True
        finally:
            if not self._closed:
                self._say(said, failed)
                self.run_button.disabled, self.stop_button.disabled = False, True

    def _written(self, chosen: dict[str, Any]) -> str:
        """Writes or reads the text, and returns what is to be said of it."""
        name, prompt = chosen.pop("model_name"), chosen.pop("prompt")
        self._say(f"Loading {name} …")
        self.model = None  # what nobody holds makes room for the next one
        model = load(name, self.dtype, self.device)
        self.model, self.reader, self.whose = model, Reader(model.tokenizer), "drawn"
        begun = time.monotonic()
        if "text" in chosen:
            self._say("Reading …")
            self.whose = "the text's"
            self.tokens, remarks = read(model.model, model.tokenizer, prompt, chosen.pop("text"), **chosen)
        else:
            self._say("Writing …")
            remarks = [self._stream(model, prompt, chosen)]
        return f"{len(self.tokens):,} tokens in {time.monotonic() - begun:.1f} s ({'; '.join(remarks or ['done'])})"

    def _stream(self, model: loading.Model, prompt: str, chosen: dict[str, Any]) -> str:
        """Writes a text, shows it as it comes, and returns how it ended."""
        shown = time.monotonic()
        for token in stream(model.model, model.tokenizer, prompt, **chosen):
            self.tokens.append(token)
            if self._stop.is_set():
                return "stopped"
            if time.monotonic() - shown > REFRESH:
                self._show()
                shown = time.monotonic()
        return "ended by the model" if len(self.tokens) < chosen["max_tokens"] else "done"

    def _say(self, status: str, failed: bool = False) -> None:
        with self._lock:
            if self._closed:
                return
            with self.text.hold_sync():
                self.text.status, self.text.failed = status, failed

    def _show(self) -> None:
        """Brings text, tint, scatter and progress up to the tokens that there are."""
        with self._lock:
            if self._closed or self.reader is None:
                return
            tokens = list(self.tokens)
            with self.text.hold_sync():
                self.text.pieces = cards.pieces(self.reader, tokens)
                self._tint()
            show_points(self.scatter, tokens)
            self.progress.value = len(tokens) if self.whose == "drawn" else self.progress.max

    def _tint(self) -> None:
        with self._lock, self.text.hold_sync():
            shares, legend = cards.scale(self.tokens[: len(self.text.pieces)], self.quantity.value)
            self.text.shares, self.text.legend = shares, legend | {"gaps": None in shares}

    def _point(self, step: int) -> None:
        """A token was pointed at: its card, and its mark in the scatter."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.card = cards.card(self.tokens, step, self.reader, self._embedding(), whose=self.whose)
                show_mark(self.scatter, self.tokens[step])

    def _click(self, step: int) -> None:
        """A token was clicked: beside card and mark, the matrix of its candidates."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.hovered = step
                show_matrix(self.heat, step, self.tokens[step].ids, self._embedding(), self.reader)

    def _embedding(self):
        return self.model.model.get_input_embeddings().weight.detach()

    def _open(self, folder: Path | str) -> None:
        """A measured cell was picked: its prompts can be."""
        self.records, self.picked.options, self.picked.disabled = [], prompts([]), True
        if not folder:
            return
        try:
            self.records = list(results.load_records(folder, fields=("prompt", "tokens")).values())
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        self.picked.options, self.picked.disabled = prompts(self.records), False

    def _pick(self, place: int) -> None:
        """A measured prompt was picked: Run then writes or reads the cell's text again, with the cell's settings."""
        if place < 0:
            return
        self.prompt.value = self.records[place]["prompt"]
        self._say("Press Run to write or read this text again.")
        if not (self.cell.value / results.RUN_INFO).is_file():
            return
        found = fill_defaults(results.load_info(self.cell.value)["settings"])
        for name in self.settings.keys() & found.keys():
            self.settings[name].value = found[name]
        self.mode.value, self.dtype = found["mode"], found["dtype"]
        if self.mode.value == "score":
            self._copy(found, self.records[place]["tokens"].tolist())

    def _copy(self, settings: dict[str, Any], tokens: list[int]) -> None:
        """Puts the text of a scored record into its field."""
        try:
            tokenizer = loading.tokenizer(settings["model_name"], revision=settings["model"].get("revision"))
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
        else:
            self.given.value = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
