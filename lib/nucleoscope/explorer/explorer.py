"""The live notebook's widgets: one text, token by token, with its candidates and its scatter plot.

Contract: everything runs in the kernel and in JupyterLab's page, without a network and without a server of
its own. Text from models and data sets is inserted into the page as plain text, and escaped for plotly,
which interprets some HTML. A text is generated in a thread, so that the kernel keeps responding
to pointing, clicking, selecting and Stop.
"""

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go

from nucleoscope import quantities
from nucleoscope.explorer.controls import (
    COLUMN,
    PromptMenu,
    TokenText,
    arrange,
    build_modes,
    build_settings,
    list_run_options,
    read_settings,
)
from nucleoscope.explorer.live_figures import build_heat, build_scatter, show_mark, show_matrix, show_points
from nucleoscope.measure.model_facts import find_embedding_matrix
from nucleoscope.measure.streaming import Token, read, replay, stream
from nucleoscope.models import loading, tokenizers
from nucleoscope.settings import Settings, fill_defaults
from nucleoscope.store import local_tokenizers, results
from nucleoscope.views import cards, strip, texts
from nucleoscope.views.token_text import Reader

REFRESH = 0.15  # seconds between two updates of a text that is being generated
_loaded: dict[tuple, loading.Model] = {}  # one at most
_loading = threading.Lock()


def load(
    name: str, dtype: str, device: str, trust_remote_code: bool = False, revision: str | None = None
) -> loading.Model:
    """A model, kept in memory if it was the last one loaded. Two large models need not fit in memory at once.

    The arguments are those of `loading.load`.
    """
    wanted = (name, dtype, device, trust_remote_code, revision)
    with _loading:
        if wanted not in _loaded:
            _loaded.clear()
            _loaded[wanted] = loading.load(*wanted)
        return _loaded[wanted]


class Explorer:
    """Widgets to generate one text, or measure an existing one, and inspect it; ``view`` displays them in a notebook.

    ``settings`` are those of `settings.Settings`, by name, and the initial values of the fields; measured
    runs are offered from its results_dir. ``quantity`` is the tint, ``text`` an existing text to measure. A
    kernel has one explorer: creating another, as happens when a cell is run again, closes the one before
    and stops its generation. Models are loaded once, not once per prompt.

    ``model_revision`` and ``trust_remote_code`` apply to one model: another model clears the revision, and another
    model or revision withdraws the permission to run the model's own code. A prompt of a measured run
    brings the revision recorded in its run.json, but never the permission.
    """

    _latest: ClassVar["Explorer | None"] = None

    def __init__(
        self,
        prompt: str = "",
        model_name: str = loading.PACKAGED,
        *,
        quantity: str = "entropy",
        text: str = "",
        **settings: Any,
    ):
        given = {"model_name": model_name, "prompt_format": "chat", **settings}
        chosen = Settings(**given, text_column="text" if given.get("mode") == "score" else None).check()
        self.dtype, self.device = chosen.dtype, chosen.device
        self.tokens: list[Token] = []
        self.model: loading.Model | None = None
        self.reader: Reader | None = None
        self.source = "generate"  # or "score": the mode of the text that is shown
        self.records: list[dict] = []  # prompts and tokens of the selected run
        self.measured_reader: Reader | None = None  # of its tokenizer, if that can be had without the network
        self.similarities: results.Similarities | None = None  # of a text that is drawn from files
        self.recorded: dict[str, Any] = {}  # the settings of the selected prompt's run
        self._thread: threading.Thread | None = None
        self._stop, self._closed, self._lock = threading.Event(), False, threading.RLock()
        self.scatter: go.FigureWidget | None = None  # created with the first text
        self.heat: go.FigureWidget | None = None
        self.settings = build_settings(chosen)
        self._build(prompt, text, chosen.mode, quantity, chosen.results_dir)
        self._connect()
        self._switch()
        if Explorer._latest is not None:
            Explorer._latest.close()
        Explorer._latest = self  # last, so that an explorer with invalid settings leaves nothing behind

    def _build(self, prompt: str, text: str, mode: str, quantity: str, results_dir: str) -> None:
        """Creates the other widgets, and ``view`` with all of them."""
        self.text = TokenText()
        self.mode = build_modes(mode)
        self.prompt, self.given = (
            widgets.Textarea(value, description=name, rows=4, layout=widgets.Layout(width="auto"))
            for name, value in (("prompt", prompt), ("text", text))
        )
        self.quantity = widgets.Dropdown(
            options=[(label, name) for name, label in quantities.list_titles().items()],
            value=quantity,
            description="tint by",
        )
        wide = {"flex": "1 1 20em", "width": "auto"}
        self.measured = widgets.Dropdown(
            options=list_run_options(results_dir), description="run", layout=widgets.Layout(**wide)
        )
        self.picked = PromptMenu()
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(layout=widgets.Layout(flex="1 1 10em", width="auto"))
        self.figures = widgets.VBox(layout=widgets.Layout(**COLUMN))
        picks = [self.measured] if len(self.measured.options) > 1 else []
        self.view = arrange(
            [self.mode, *picks],
            self.picked,
            [self.prompt, self.given],
            [*self.settings.values(), self.quantity],
            [self.run_button, self.stop_button, self.progress],
            self.text,
            self.figures,
        )

    def _connect(self) -> None:
        """Connects widgets and callbacks. Each widget is observed once: it is created together with this explorer."""
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self._stop.set())
        self.mode.observe(lambda _: self._switch(), "value")
        self.quantity.observe(lambda _: self._tint(), "value")
        self.measured.observe(lambda change: self._open(change.new), "value")
        self.picked.observe(lambda change: self._pick(change.new), "value")
        self.settings["model_name"].observe(lambda _: self._forget_revision(), "value")
        self.settings["model_revision"].observe(lambda _: self._withdraw_trust(), "value")
        self.settings["trust_remote_code"].observe(lambda change: self._retry_copy(change.new), "value")
        self.text.observe(lambda change: self._point(change.new), "hovered")
        self.text.observe(lambda change: self._click(change.new), "clicked")

    def _switch(self) -> None:
        """Shows only the controls of the selected mode: an existing text is pasted, a generated one has a seed."""
        self.given.layout.display = None if self.mode.value == "score" else "none"
        self.settings["seed"].layout.display = "none" if self.mode.value == "score" else None

    def _forget_revision(self) -> None:
        """Another model was entered: the revision and the permission to run code were for the previous one."""
        self.settings["model_revision"].value = ""
        self._withdraw_trust()

    def _withdraw_trust(self) -> None:
        self.settings["trust_remote_code"].value = False

    def _draw(self) -> None:
        """Creates the figures of a text; selection and zoom in the previous text's figures are lost.

        Not before the first text: JupyterLab may request a widget's state while a cell is still running, and
        then draws a figure that is created in the meantime without its data and layout.
        """
        before = self.figures.children
        self.text.figure = self.text.model_id
        self.scatter, self.heat = build_scatter(self.text.figure), build_heat()
        self.figures.children = [self.scatter, self.heat]
        for figure in before:
            figure.close()

    def run(self) -> None:
        """Generates or measures a text with the current settings, in a thread; does nothing while that is running."""
        if self._thread is not None and self._thread.is_alive():
            return
        chosen = read_settings(self.settings)
        place, prompt = self.picked.value, self.prompt.value
        same = place >= 0 and self.records[place]["prompt"] == prompt
        chosen |= {"prompt": prompt, "index": place if same else 0}
        if self.mode.value == "score":
            del chosen["seed"], chosen["index"]
            chosen["text"] = self.given.value
        elif same and read_settings(self.settings) == self.recorded:
            chosen["tokens"] = self.records[place]["tokens"].tolist()
        self._clear(chosen)
        self._thread = threading.Thread(target=self._write, args=(chosen,), daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Returns when the text is complete, or after this many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Stops the generation and removes the widgets from the page."""
        self._closed = True
        self._stop.set()
        for widget in (self.text, self.picked, *self.figures.children, self.view):
            widget.close()

    def _clear(self, chosen: dict[str, Any]) -> None:
        self._stop.clear()
        # what exists already is measured in one pass
        self.run_button.disabled, self.stop_button.disabled = True, "text" in chosen or "tokens" in chosen
        self.progress.value, self.progress.max = 0, chosen["max_tokens"]
        with self._lock:
            self.tokens, self.similarities = [], None
            with self.text.hold_sync():
                self.text.prompt, self.text.pieces, self.text.marked, self.text.card = chosen["prompt"], [], [], {}
                self.text.hovered = self.text.clicked = -1
            self._draw()

    def _write(self, chosen: dict[str, Any]) -> None:
        """The thread's work: loads, generates, displays, and reports the outcome."""
        said, failed = "", False
        try:
            said = self._write_text(dict(chosen))
            self._show()
        except Exception as error:  # any error is shown on the page
            said, failed = f"{type(error).__name__}: {error}", True
        finally:
            if not self._closed:
                self._say(said, failed)
                self.run_button.disabled, self.stop_button.disabled = False, True

    def _write_text(self, chosen: dict[str, Any]) -> str:
        """Generates or measures the text, and returns a message about it."""
        name, prompt = chosen.pop("model_name"), chosen.pop("prompt")
        trusted, revision = chosen.pop("trust_remote_code"), chosen.pop("model_revision")
        self._say(f"Loading {name} …")
        self.model = None  # makes room for the next model
        model = load(name, self.dtype, self.device, trusted, revision)
        self.model, self.reader, self.source = model, Reader(model.tokenizer), "generate"
        begun = time.monotonic()
        if "text" in chosen:
            self._say("Measuring …")
            self.source = "score"
            self.tokens, remarks = read(model.model, model.tokenizer, prompt, chosen.pop("text"), **chosen)
        elif "tokens" in chosen:
            self._say("Measuring …")
            del chosen["index"]
            self.tokens = replay(model.model, model.tokenizer, prompt, chosen.pop("tokens"), **chosen)
            remarks = [
                "the tokens of the run, measured again; with other settings or another prompt, new ones are drawn"
            ]
        else:
            self._say("Generating …")
            remarks = [self._stream(model, prompt, chosen)]
        return f"{len(self.tokens):,} tokens in {time.monotonic() - begun:.1f} s ({'; '.join(remarks or ['done'])})"

    def _stream(self, model: loading.Model, prompt: str, chosen: dict[str, Any]) -> str:
        """Generates a text, shows it as it grows, and returns how it ended."""
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
        """Updates text, tint, scatter plot and progress with the tokens so far."""
        with self._lock:
            if self._closed or self.reader is None:
                return
            tokens = list(self.tokens)
            with self.text.hold_sync():
                self.text.pieces = cards.split_text(self.reader, tokens)
                self._tint()
            show_points(self.scatter, tokens)
            self.progress.value = len(tokens) if self.source == "generate" else self.progress.max

    def _tint(self) -> None:
        with self._lock, self.text.hold_sync():
            name, tokens = self.quantity.value, self.tokens[: len(self.text.pieces)]
            values, k = (np.array([cards.find_value(token, each) for token in tokens]) for each in (name, "k"))
            self.text.scale = cards.build_scale(name, values, k)

    def _point(self, step: int) -> None:
        """A token was pointed at: shows its card, and its mark in the scatter plot."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.card = cards.describe_token(
                    self.tokens, step, self.reader, self._compare(step), mode=self.source
                )
                show_mark(self.scatter, self.tokens[step])

    def _click(self, step: int) -> None:
        """A token was clicked: shows card and mark, and the matrix of its candidates."""
        with self._lock:
            if 0 <= step < len(self.tokens):
                self.text.hovered = step
                show_matrix(self.heat, step, self.tokens[step].ids, self._find_matrix(step), self.reader)

    def _compare(self, step: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The cosines on the card of a token: from the model, or from the files of its run, or unknown."""
        if self.model is not None:
            return cards.compare_candidates(find_embedding_matrix(self.model.model), self.tokens[step])
        found = self.similarities
        return (found.taken[step], found.pairs[step]) if found else (None, None)

    def _find_matrix(self, step: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The `cards.order_matrix` of a token's candidates; from files, that of the likeliest ten."""
        if self.model is not None:
            return cards.compute_matrix(find_embedding_matrix(self.model.model), self.tokens[step].ids)
        return cards.order_matrix(cards.unpack_pairs(self.similarities.pairs[step])) if self.similarities else None

    def _open(self, folder: Path | str) -> None:
        """A measured run was selected: offers its prompts."""
        self.records, self.measured_reader, self.picked.value, self.picked.content = [], None, -1, {}
        if not folder:
            return
        try:
            self.records = list(results.load_records(folder, fields=("prompt", "tokens")).values())
            table = results.load_run(results.find_measurements(folder), folder.name, folder.parent.name)
            tokenizer = local_tokenizers.find_tokenizer(folder)
            self.measured_reader = None if tokenizer is None else Reader(tokenizer)
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        prompts = {place: record["prompt"] for place, record in enumerate(self.records)}
        self.picked.content = texts.build_menu(prompts, table, self.measured_reader)

    def _show_measured(self, place: int) -> None:
        """Draws the text of a measured prompt from the files of its run, or says why that is not possible."""
        if self._thread is not None and self._thread.is_alive():
            return
        folder = self.measured.value
        record = results.load_records(folder, [place])[place]
        lacking = [name for name in strip.NEEDED if name not in record]
        if lacking or self.measured_reader is None:
            why = f"the files have no {lacking[0]}" if lacking else "its tokenizer is not on this machine"
            self._say(f"This text cannot be drawn from its files ({why}). Press Run to measure it again.")
            return
        self._clear({"prompt": record["prompt"], "max_tokens": max(len(record["tokens"]), 1), "tokens": []})
        self.run_button.disabled = False
        with self._lock:
            self.model, self.reader = None, self.measured_reader
            self.tokens = cards.list_tokens(record)
            self.similarities = results.load_similarities(folder, [place]).get(place)
        self._show()
        self._say(f"{len(self.tokens):,} tokens, from the files of the run. Run measures them again, with the model.")

    def _pick(self, place: int) -> None:
        """A prompt of a run was picked: its text is drawn, and Run measures it again, with the run's settings."""
        self.recorded = {}
        if place < 0:
            return
        self.prompt.value, self.source = self.records[place]["prompt"], "generate"
        try:
            self._show_measured(place)
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        if not (self.measured.value / results.RUN_INFO).is_file():
            return
        try:
            found = fill_defaults(results.load_info(self.measured.value)["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say(f"the settings of this run cannot be read: {error}", failed=True)
            return
        found["model_revision"] = (found.get("model") or {}).get("revision") or ""
        for name in self.settings:  # in order: a new model name clears the revision
            if name in found:
                self.settings[name].value = found[name]
        self.recorded = read_settings(self.settings)
        self.mode.value, self.dtype = found["mode"], found["dtype"]
        self.source = self.mode.value
        if self.mode.value == "score":
            self._copy_text(self.records[place]["tokens"].tolist())

    def _copy_text(self, tokens: list[int]) -> None:
        """Puts the text of a scored record into its field, decoded by the tokenizer of the model in its field."""
        chosen, self.given.value = read_settings(self.settings), ""
        try:
            tokenizer = tokenizers.load_tokenizer(
                chosen["model_name"], chosen["trust_remote_code"], chosen["model_revision"]
            )
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
        else:
            self.given.value = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def _retry_copy(self, trusted: bool) -> None:
        """The model's own code may run now: a text that could not be decoded without it is copied."""
        if trusted and self.text.failed and self.mode.value == "score" and not self.given.value:
            self._pick(self.picked.value)
