"""The live notebook's widgets: one text, token by token, with its candidates and its scatter plot.

Contract: everything runs in the kernel and in JupyterLab's page, without a network and without a server of
its own. Text from models and data sets is inserted into the page as plain text, and escaped for plotly,
which interprets some HTML. A text is generated in a thread, so that the kernel keeps responding
to pointing, clicking, selecting and Stop. What takes seconds to import is in `engine`: a thread imports it, and loads
the model, while the notebook is read.

A candidate that is clicked is put in the place of its token, and the model continues from there: a fork. The texts
from the first one to the latest fork are the trail, in which one can go back and forth; a new fork replaces those after
the text that it begins from.
"""

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets as widgets

from nucleoscope import hub, quantities
from nucleoscope.explorer.controls import (
    COLUMN,
    NO_CARD,
    Field,
    FigurePlace,
    PromptMenu,
    TokenText,
    arrange,
    build_modes,
    build_settings,
    list_problems,
    list_run_options,
    number_earlier,
    read_settings,
)
from nucleoscope.settings import Settings, fill_defaults
from nucleoscope.store import results
from nucleoscope.store.context import Compared, Grouping, join_split, load_current
from nucleoscope.wording import count

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from nucleoscope.measure.recording import Token
    from nucleoscope.models import loading
    from nucleoscope.views import cards
    from nucleoscope.views.token_text import Reader

# The kernel, JupyterLab and the browser share the processors. By default torch's threads keep a processor while they
# wait for each other, perhaps the one that the other needs: on two busy cores, a text took ten times as long. This
# has an effect if torch is not imported yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
REFRESH = 0.15  # seconds between two updates of a text that is being generated
DRAW = 0.6  # seconds between two updates of its figures, which cost the browser ten times as much
SHARE = 0.1  # of the time may be spent on them
PATIENCE = 2  # seconds that a text which is being generated has to stop, in which the kernel does nothing else
NO_TEXT = (
    "Press Run to see the tokens of the text here, plotted by entropy and cosine similarity, and how similar the "
    "candidates of one token are."
)
EMPTY_CARD = "The text has no tokens, so there are no candidates to show."
HINT = "Point at a token to see its candidates; click it to keep them here. "
WIDEST = "Until then, this is the token where the model was least sure{}:"
FIRST = "Each token{} has only one candidate; this is the first token:"
TO_TINT = "To tint a text by uncertainty about what follows or about how it is put, measure its run with --context."
_loaded: dict[tuple, "loading.Model"] = {}  # one at most
_loading, _trying = threading.Lock(), threading.Lock()


def load(
    name: str, dtype: str, device: str, trust_remote_code: bool = False, revision: str | None = None
) -> "loading.Model":
    """A model, kept in memory if it was the last one loaded. Two large models need not fit in memory at once.

    The arguments are those of `loading.load`.
    """
    from nucleoscope.models import loading

    wanted = (name, dtype, device, trust_remote_code, revision)
    with _loading:
        if wanted not in _loaded:
            _loaded.clear()
            _loaded[wanted] = loading.load(*wanted)
        return _loaded[wanted]


def try_model(model: "loading.Model") -> None:
    """Finds out how a model generates (`checking.find_way`, which keeps what it found), once if two threads ask."""
    from nucleoscope.measure import checking

    with _trying:
        checking.find_way(model.model)


def describe_error(error: Exception) -> str:
    """An error for the page: one that Nucleoscope raises says all, another needs the name of its class as well."""
    said = str(error)
    return said if said and isinstance(error, (ValueError, OSError, MemoryError)) else f"{type(error).__name__}: {said}"


def _list_tints(in_context: bool) -> list[tuple[str, str]]:
    """The menu of tints, with those ``in_context`` or without."""
    titles = quantities.list_tints() if in_context else quantities.list_titles()
    return [(label, name) for name, label in titles.items()]


@dataclass
class Version:
    """A text of the trail: its ``tokens``, and the ``settings`` it was written with; None if these are unknown.

    ``source`` is "generate" if the model wrote it, "score" if it existed before. ``cut`` is the step at which it parts
    from the version before it, None for the first. ``name`` and ``said`` are for readers: what was put in, and how it
    ended, which is empty until then; ``failed`` if that was an error. ``ahead`` has what follows the candidates of a
    step, by the model, which compares and groups them as ``grouping`` says; ``compared`` has what the files of a run
    that was measured in context say.
    """

    name: str = "first text"
    settings: dict[str, Any] | None = None
    source: str = "generate"
    cut: int | None = None
    tokens: "list[Token]" = field(default_factory=list)
    said: str = ""
    failed: bool = False
    ahead: "dict[int, cards.Ahead]" = field(default_factory=dict)
    compared: "dict[int, cards.Ahead]" = field(default_factory=dict)
    grouping: Grouping = field(default_factory=Grouping)


class Explorer:
    """Widgets to generate one text, or measure an existing one, and inspect it; ``view`` displays them in a notebook.

    ``settings`` are those of `settings.Settings`, by name, and the initial values of the fields; measured
    runs are offered from its results_dir. ``quantity`` is the tint, ``text`` an existing text to measure. A
    kernel has one explorer: creating another, as happens when a cell is run again, closes the one before
    and stops its generation. Models are loaded once, not once per prompt, and the first one as soon as there is an
    explorer, if it is on this machine.

    ``model_revision`` and ``trust_remote_code`` apply to one model: another model clears the revision, and another
    model or revision withdraws the permission to run the model's own code. A prompt of a measured run
    brings the revision recorded in its run.json, but never the permission.
    """

    _latest: ClassVar["Explorer | None"] = None

    def __init__(
        self,
        prompt: str = "",
        model_name: str = hub.PACKAGED,
        *,
        quantity: str = "entropy",
        text: str = "",
        **settings: Any,
    ):
        given = {"model_name": model_name, "prompt_format": "chat", **settings}
        chosen = Settings(**given, text_column="text" if given.get("mode") == "score" else None).check()
        self.dtype, self.device = chosen.dtype, chosen.device
        self.model: loading.Model | None = None
        self.reader: Reader | None = None
        self.records: list[dict] = []  # prompts and tokens of the selected run
        self.measured_reader: Reader | None = None  # of its tokenizer, if that can be had without the network
        self.similarities: results.Similarities | None = None  # of a text that is drawn from files
        self.in_context: Compared | None = None  # of the selected run, if it was measured in context
        # a card compares candidates even where the setting turns that off for runs
        self._own_grouping = Grouping(max(chosen.context_candidates, 2), chosen.context_threshold)
        self.grouping = self._own_grouping  # or that of the selected run
        self.recorded: dict[str, Any] = {}  # the settings of the selected prompt's run
        self._versions, self._place = [Version()], 0
        self._thread: threading.Thread | None = None
        self._looker: threading.Thread | None = None
        self._asked: tuple[Version, int] | None = None  # of which token it is to find out what follows its candidates
        self._stop, self._closed, self._lock = threading.Event(), False, threading.RLock()
        self._using = threading.Lock()  # the model; who has it may wait for the other lock, but not the other way round
        self.scatter: go.FigureWidget | None = None  # created with the first token
        self.heat: go.FigureWidget | None = None
        self._drawn: Version | None = None  # the text in the scatter plot
        self._compared: tuple[Version, int] | None = None  # the token whose candidates are in the heat map
        self._turning = False  # whether another text is being put on the page
        self.settings = build_settings(chosen)
        self._build(prompt, text, chosen.mode, quantity, chosen.results_dir)
        self._connect()
        self._switch()
        if Explorer._latest is not None:
            Explorer._latest.close()
        Explorer._latest = self  # last, so that an explorer with invalid settings leaves nothing behind
        self._refused = False  # whether Run was, and nothing has been corrected since
        self._preparing = threading.Thread(target=self._prepare, args=(read_settings(self.settings),), daemon=True)
        self._preparing.start()

    @property
    def version(self) -> Version:
        """The text that is shown."""
        return self._versions[self._place]

    @property
    def tokens(self) -> "list[Token]":
        """The tokens of the text that is shown, so far."""
        return self.version.tokens

    def _build(self, prompt: str, text: str, mode: str, quantity: str, results_dir: str) -> None:
        """Creates the other widgets, and ``view`` with all of them."""
        self.text = TokenText()
        self.mode = build_modes(mode)
        self.prompt, self.given = (
            widgets.Textarea(value, description=name, rows=4, layout=widgets.Layout(width="auto"))
            for name, value in (("prompt", prompt), ("text", text))
        )
        self.quantity = widgets.Dropdown(
            options=_list_tints(False),
            value=quantity,
            description="tint by",
            layout=widgets.Layout(width="28em", max_width="98%"),  # for the longest label
        )
        wide = {"flex": "1 1 20em", "width": "auto", "min_width": "0"}
        self.measured = widgets.Dropdown(
            options=list_run_options(results_dir), description="run", layout=widgets.Layout(**wide)
        )
        self.picked = PromptMenu()
        self.run_button = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(layout=widgets.Layout(flex="1 1 10em", width="auto"))
        self.points, self.candidates = FigurePlace(NO_TEXT), FigurePlace()
        self.figures = widgets.VBox([self.points, self.candidates], layout=widgets.Layout(**COLUMN))
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
        for setting in self.settings.values():
            if isinstance(setting, Field):
                setting.observe(lambda _: self._say_problems(), "problem")
        self.quantity.observe(lambda _: self._choose_tint(), "value")
        self.measured.observe(lambda change: self._open(change.new), "value")
        self.picked.observe(lambda change: self._pick(change.new), "value")
        self.picked.observe(lambda change: self._hide_text(not change.new), "found")
        self.settings["model_name"].observe(lambda _: self._forget_revision(), "value")
        self.settings["model_revision"].observe(lambda _: self._withdraw_trust(), "value")
        self.settings["trust_remote_code"].observe(lambda change: self._retry_copy(change.new), "value")
        self.text.observe(lambda change: self._point(change.new), "hovered")
        self.text.observe(lambda change: self._click(change.new), "clicked")
        self.text.observe(lambda _: self._point(self.text.hovered), "tab")
        self.text.observe(lambda change: self._fork(*change.new[:2]), "picked")
        self.text.observe(lambda change: self._go(change.new[0]), "wanted")

    def _switch(self) -> None:
        """Shows only the controls of the selected mode: an existing text is pasted, a generated one has a seed."""
        self.given.layout.display = None if self.mode.value == "score" else "none"
        self.settings["seed"].layout.display = "none" if self.mode.value == "score" else None
        # a failure is not about the text that will be asked for now; settings that are refused still are
        if self.version.failed and not self.tokens and not self._refused:
            self._say("", False)

    def _forget_revision(self) -> None:
        """Another model was entered: the revision and the permission to run code were for the previous one."""
        self.settings["model_revision"].value = ""
        self._withdraw_trust()

    def _withdraw_trust(self) -> None:
        self.settings["trust_remote_code"].value = False

    def _prepare(self, chosen: dict[str, Any]) -> None:
        """The work of a thread as the notebook opens: imports what takes long, and loads the model if it is here."""
        name, revision = chosen["model_name"], chosen["model_revision"]
        try:
            self._report("Importing the libraries …", busy=True)
            from nucleoscope.explorer import engine

            if hub.is_on_hub(name) and not hub.is_cached(name, revision):
                self._report("Press Run to load the model and generate a text.")
                return
            if self._closed:  # another explorer's model may be on its way
                return
            self._report(f"Loading {name} …", busy=True)
            model = load(name, self.dtype, self.device, chosen["trust_remote_code"], revision)
            self._report(f"Trying {name} on short prompts …", busy=True)
            with contextlib.suppress(ValueError):  # which Run reports, if it matters for the text
                try_model(model)
            engine.Reader(model.tokenizer)
        except Exception as error:  # any error is shown on the page
            self._report(describe_error(error), failed=True)
        else:
            self._report(f"{name} is loaded. Press Run.")

    def _report(self, status: str, **options: bool) -> None:
        """`_say`, unless there is a text: then its own status is shown."""
        with self._lock:
            if self._thread is None and not self.tokens:
                self._say(status, **options)

    def _draw(self) -> None:
        """Creates the figures, with the tokens there are; later texts change them, because to create one takes long.

        Not before the first text: JupyterLab may request a widget's state while a cell is still running, and
        then draws a figure that is created in the meantime without its data and layout.
        """
        from nucleoscope.explorer.live_figures import build_heat, build_scatter

        self.text.figure = self.text.model_id
        self.scatter = build_scatter(self.text.figure, list(self.tokens), self.text.room)
        self.heat = build_heat(self.text.room)
        self.points.frame.children, self.candidates.frame.children = [self.scatter], [self.heat]
        self._drawn = self.version

    def run(self) -> None:
        """Generates or measures a text with the current settings, in a thread; does nothing while that is running.

        If a setting is refused, the status says why, and nothing else happens.
        """
        if self._is_writing():
            return
        self._refused = bool(list_problems(self.settings))
        if self._refused:
            self._say_problems()
            return
        chosen = read_settings(self.settings) | {"dtype": self.dtype}
        place, prompt = self.picked.value, self.prompt.value
        same = place >= 0 and self.records[place]["prompt"] == prompt
        chosen |= {"prompt": prompt, "index": place if same else 0}
        version, given = Version(settings=dict(chosen), source=self.mode.value, grouping=self.grouping), {}
        again = same and read_settings(self.settings) == self.recorded
        if again:
            version.compared = self._read_compared(place)
        if self.mode.value == "score":
            given["text"] = self.given.value
        elif again:
            given["tokens"] = self.records[place]["tokens"].tolist()
        self._begin(version, self._describe_start(version, bool(given)))
        self._start(version, given)

    def _describe_start(self, version: Version, measure: bool = False) -> str:
        """The status of a version that is about to be written, or measured."""
        if self._list_names(version.settings) not in _loaded:
            return f"Loading {version.settings['model_name']} …"
        return "Measuring …" if measure else "Generating …"

    def _list_names(self, chosen: dict[str, Any]) -> tuple:
        """The arguments of `load` for a text with these settings."""
        names = (chosen["model_name"], chosen["dtype"], self.device)
        return (*names, chosen["trust_remote_code"], chosen["model_revision"])

    def _say_problems(self) -> None:
        """Says what is wrong with the settings, after Run was refused for it, until nothing is."""
        if self._refused:
            problems = list_problems(self.settings)
            self._refused = bool(problems)
            self._say("; ".join(problems) or "Press Run.", failed=self._refused)

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, version: Version, given: dict[str, Any]) -> None:
        """Writes a version in a thread; ``given`` is what there is of it already: its text, or its tokens."""
        self._stop.clear()
        # what exists already is measured in one pass
        self.run_button.disabled, self.stop_button.disabled = True, bool(given)
        self._thread = threading.Thread(target=self._write, args=(version, given), daemon=True)
        self._thread.start()

    def _begin(self, version: Version, status: str = "", similarities: "results.Similarities | None" = None) -> None:
        """A new first text: there is nothing to go back to. ``status`` is that of a text that has yet to be written."""
        with self._lock:
            self._versions, self._place, self.similarities = [version], 0, similarities
            self._hide_text(False)
            self._turn(status)

    def wait(self, seconds: float | None = None) -> None:
        """Returns when the text is complete, or after this many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Stops the generation and removes the widgets from the page."""
        self._closed = True
        self._stop.set()
        figures = [figure for figure in (self.scatter, self.heat) if figure is not None]
        for widget in (self.text, self.picked, *figures, self.points, self.candidates, self.view):
            widget.close()

    def _turn(self, status: str = "", at: int | None = None) -> None:
        """Puts the version that is shown on the page in place of the one before: nothing is pointed at or selected.

        Status, text and card change together, then the figures. ``status`` is that of a version that is about to be
        written; without one the version is complete. ``at`` is the step that is clicked.
        """
        with self._lock:
            with self.text.hold_sync():
                if status:
                    self._say(status, busy=True)
                else:
                    self._say(self.version.said, self.version.failed)
                self._clear(-1 if at is None else at)
                self._show_text(complete=not status)
            self._show_figures(complete=not status)
            settings = self.version.settings or {}
            self.progress.max = settings.get("max_tokens") or max(len(self.tokens), 1)
            self.progress.value = self.progress.max if self.tokens and not status else len(self.tokens)

    def _clear(self, at: int) -> None:
        """Prepares the page for the tokens of the version that is shown, of which number ``at`` is clicked."""
        cut, before = self.version.cut, self._find_earlier()
        self._turning = True  # what is set here is not for the text before
        try:
            self.text.turned += 1
            self.text.prompt = (self.version.settings or {}).get("prompt", self.prompt.value)
            self.text.pieces, self.text.marked, self.text.card, self.text.scale = [], [], {"note": NO_CARD}, {}
            self.text.hovered = self.text.clicked = at
            self._offer_tints()
            self.text.earlier = {} if before is None else {
                "cut": cut,
                "pieces": self._split(before.tokens)[cut:],
                "names": [before.name, self.version.name],
            }  # fmt: skip
            self.text.trail, self.text.place = [each.name for each in self._versions], self._place
        finally:
            self._turning = False

    def _offer_tints(self) -> None:
        """Has the menu of tints offer those that a text on the page has: few are measured in context."""
        shown = [self.version, self._find_earlier()]
        known = any(version is not None and version.compared for version in shown)
        options = _list_tints(known)
        if options == list(self.quantity.options):
            return
        chosen = self.quantity.value
        with self.quantity.hold_sync():
            self.quantity.options = options  # which selects the first one
            if chosen in dict(options).values():
                self.quantity.value = chosen

    def _choose_tint(self) -> None:
        """A tint was chosen: the card opens the tab that shows what it is about, if there is one."""
        if self.text.pieces and quantities.is_in_context(self.quantity.value):
            self.text.tab = "context"
        self._tint()

    def _find_earlier(self) -> Version | None:
        """The text beside the one that is shown, from which that was forked."""
        return self._versions[self._place - 1] if self._place else None

    def _split(self, tokens: "list[Token]") -> list[str]:
        from nucleoscope.views import cards

        return cards.split_text(self.reader, tokens)

    def _write(self, version: Version, given: dict[str, Any]) -> None:
        """The thread's work: loads, generates, displays, and reports the outcome."""
        try:
            version.said = self._write_text(version, **given)
        except Exception as error:  # any error is shown on the page
            version.said, version.failed = describe_error(error), True
        try:
            self._show(complete=True)
        except Exception as error:
            self._say(describe_error(error), failed=True)
        finally:
            if not self._closed:
                self.run_button.disabled, self.stop_button.disabled = False, True

    def _write_text(self, version: Version, text: str | None = None, tokens: list[int] | None = None) -> str:
        """Generates or measures the text, and returns a message about it."""
        chosen, names = dict(version.settings), self._list_names(version.settings)
        if names not in _loaded:
            self._say(self._describe_start(version), busy=True)
            self.model = None  # makes room for the next model
        from nucleoscope.explorer.engine import Reader, cards, streaming

        model = load(*names)
        for name in ("model_name", "dtype", "trust_remote_code", "model_revision"):
            del chosen[name]
        prompt = chosen.pop("prompt")
        with self._using:
            self.model, self.reader, begun = model, Reader(model.tokenizer), time.monotonic()
            both = model.model, model.tokenizer
            if text is None and tokens is None:
                old = len(version.tokens)
                ended = self._stream(version, model, prompt, chosen)
                if not (version.tokens or old or self._stop.is_set()):
                    return f"0 tokens in {time.monotonic() - begun:.1f} s: {self._explain_empty(model, chosen)}"
                written = count(max(len(version.tokens) - old, 0), "more token" if old else "token")
                return f"{written} in {time.monotonic() - begun:.1f} s ({ended})"
            self._say("Measuring …", busy=True)
            del chosen["index"]
            if text is None:
                version.tokens[:] = streaming.replay(*both, prompt, tokens, **chosen)
                if not tokens:
                    return f"0 tokens, as in the run: {self._explain_empty(model, chosen)}"
                remarks = [
                    "the tokens of the run, measured again; with other settings or another prompt, new ones are drawn"
                ]
            else:
                del chosen["seed"]
                found, remarks = streaming.read(*both, prompt, text, **chosen)
                version.tokens[:] = found
            cards.add_split(version.tokens, version.compared)
        said = "; ".join(remarks or ["done"])
        return f"{count(len(version.tokens), 'token')} in {time.monotonic() - begun:.1f} s ({said})"

    def _explain_empty(self, model: "loading.Model", chosen: dict[str, Any]) -> str:
        """Why a text has no tokens, and what to try."""
        advice = results.advise_on_empty(bool(getattr(model.tokenizer, "chat_template", None)), chosen["prompt_format"])
        return f"the text is empty, {results.STOPPED}; {advice or 'another seed or prompt may help'}"

    def _stream(self, version: Version, model: "loading.Model", prompt: str, chosen: dict[str, Any]) -> str:
        """Generates a text, or what follows its tokens, shows it as it grows, and returns how it ended."""
        from nucleoscope.explorer.engine import checking, model_facts, streaming

        begun = [token.id for token in version.tokens]
        if begun and begun[-1] in model_facts.find_end_tokens(model.model, model.tokenizer):
            del version.tokens[-1]
            return f"the candidate that you chose ends the text: {self.reader.show(begun[-1])}"
        if not checking.is_tried(model.model):
            self._say(f"Trying {version.settings['model_name']} on short prompts …", busy=True)
        try_model(model)
        self._say("Generating …", busy=True)
        shown = drawn = cost = 0.0
        for token in streaming.stream(model.model, model.tokenizer, prompt, begun=begun, **chosen):
            version.tokens.append(token)
            if self._stop.is_set():
                return "stopped"
            if (now := time.monotonic()) - shown > max(REFRESH, cost / SHARE):
                due = now - drawn > DRAW
                self._show(figures=due)
                shown = time.monotonic()
                drawn = shown if due else drawn
                cost = shown - now
        return "ended by the model" if len(version.tokens) < chosen["max_tokens"] else "done"

    def _say(self, status: str, failed: bool = False, busy: bool = False) -> None:
        with self._lock:
            if self._closed:
                return
            with self.text.hold_sync():
                self.text.status, self.text.failed, self.text.busy = status, failed, busy

    def _show(self, complete: bool = False, figures: bool = True) -> None:
        """Updates text, tint, card, figures and progress with the tokens so far; of a complete text the status too."""
        with self._lock:
            if self._closed:
                return
            with self.text.hold_sync():
                if complete:
                    self._say(self.version.said, self.version.failed)
                self._show_text(complete)
            if figures:
                self._show_figures(complete)
            self.progress.value = self.progress.max if complete and self.tokens else len(self.tokens)

    def _show_text(self, complete: bool) -> None:
        """The text, its tint, and the card of the token pointed at, or else of the widest choice so far."""
        if not self.tokens:
            empty = complete and not self.version.failed
            self.text.pieces, self.text.scale, self.text.card = [], {}, {"note": EMPTY_CARD if empty else NO_CARD}
            return
        from nucleoscope.explorer.engine import find_widest

        self.text.pieces = self._split(self.tokens)
        self._tint()
        if self._find(self.text.hovered) is None:
            step = find_widest(self.tokens)
            if complete or self.text.card.get("number") != step:
                any_choice = any(len(token.ids) > 1 for token in self.tokens)
                hint = HINT + (WIDEST if any_choice else FIRST).format("" if complete else " so far")
                self.text.card = self._describe(step) | {"hint": hint}
        elif complete or "tokens" not in self.text.card:
            self.text.card = self._describe(self.text.hovered)  # it says how a token compares with the others

    def _show_figures(self, complete: bool) -> None:
        """The scatter plot of the text, and the matrix of the token clicked, or else of the widest choice so far."""
        tokens = list(self.tokens)
        if not tokens:
            self._compared = None
            self.points.say(self._describe_absence(complete), False, keep_room=not complete)
            self.candidates.say("", False, keep_room=not complete)
            return
        from nucleoscope.explorer import live_figures
        from nucleoscope.explorer.engine import find_widest

        if self.scatter is None:
            self._draw()
        marked = self.text.hovered
        mark = tokens[marked] if 0 <= marked < len(tokens) else None
        reset, self._drawn = self._drawn is not self.version, self.version
        any_point = live_figures.show_points(self.scatter, tokens, mark, reset)
        self.points.say(live_figures.describe_points(tokens, complete), any_point, keep_room=not complete)
        wanted = find_widest(tokens) if self._find(self.text.clicked) is None else self.text.clicked
        self._show_matrix(wanted)

    def _describe_absence(self, complete: bool) -> str:
        """What to say in the place of the figures of a text without tokens."""
        if not complete:
            return "The tokens of the text will be plotted here."
        return NO_TEXT if self.version.failed else "The text has no tokens, so there is nothing to plot."

    def _tint(self) -> None:
        if not self.text.pieces:  # and perhaps no model either
            return
        from nucleoscope.explorer.engine import build_scale

        with self._lock, self.text.hold_sync():
            before = self._find_earlier()
            earlier = before.tokens[self.version.cut :] if before else ()
            self.text.scale = build_scale(self.quantity.value, self.tokens[: len(self.text.pieces)], earlier)

    def _find(self, number: int) -> tuple[int, int] | None:
        """Which version a token's number in the page belongs to, and its step; None if there is no such token."""
        earlier = number < -1
        place, step = (self._place - 1, number_earlier(number)) if earlier else (self._place, number)
        return (place, step) if place >= 0 and 0 <= step < len(self._versions[place].tokens) else None

    def _point(self, number: int) -> None:
        """A token was pointed at: shows its card, and its mark in the scatter plot."""
        with self._lock:
            if self._turning or self._find(number) is None:
                return
            self.text.card = self._describe(number)
            if number >= 0 and self.scatter is not None:
                from nucleoscope.explorer.live_figures import show_mark

                show_mark(self.scatter, self.tokens[number])

    def _click(self, number: int) -> None:
        """A token was clicked: shows card and mark, and the matrix of its candidates."""
        with self._lock:
            if not self._turning and self._find(number) is not None:
                self.text.hovered = number
                self._show_matrix(number)

    def _show_matrix(self, number: int) -> None:
        """Shows the matrix of a token's candidates, unless it is shown already, or says why there is none."""
        from nucleoscope.explorer import engine

        place, step = self._find(number)
        version = self._versions[place]
        if self.heat is None or (self._compared is not None and self._compared == (version, step)):
            return
        token = version.tokens[step]
        matrix = engine.find_matrix(self.model, self._find_similarities(place, step), token, step)
        drawn = engine.live_figures.show_matrix(self.heat, token.ids, matrix, self.reader)
        self.candidates.say(engine.live_figures.describe_matrix(step, len(token.ids), matrix), drawn)
        self._compared = (version, step)

    def _describe(self, number: int) -> dict[str, Any]:
        """The card of a token, with what is known of what follows its candidates."""
        from nucleoscope.explorer import engine

        place, step = self._find(number)
        version = self._versions[place]
        token = version.tokens[step]
        cosines = engine.find_cosines(self.model, self._find_similarities(place, step), token, step)
        options = {"mode": self._find_mode(place, step)}
        content = engine.cards.describe_token(version.tokens, step, self.reader, cosines, **options)
        content |= {"number": number, "forks": version.settings is not None}
        if not version.said:  # nobody knows yet how many tokens there will be
            content["total"] = None
        return content | (self._describe_ahead(version, step) if len(token.ids) > 1 else {})

    def _find_similarities(self, place: int, step: int) -> "results.Similarities | None":
        """Those of a text's files, if the token is the one that they are about: they do not know what was put in."""
        cuts = (version.cut for version in self._versions[1 : place + 1] if version.cut is not None)
        return self.similarities if step < min(cuts, default=step + 1) else None

    def _find_mode(self, place: int, step: int) -> str:
        """Where a token of a version is from: the model, an existing text, or the reader, who put it in."""
        version = self._versions[place]
        if version.cut is None:
            return version.source
        if step < version.cut:
            return self._find_mode(place - 1, step)
        return "fork" if step == version.cut else "generate"

    def _describe_ahead(self, version: Version, step: int) -> dict[str, Any]:
        """The tabs of a card: from the model, which is asked once one of them is open, or from the files of its run."""
        from nucleoscope.explorer import engine

        found = version.ahead.get(step)
        if found is None and self.model is None:
            found = version.compared.get(step)
        elif found is None and self.model is not None and version.settings:
            found = "Reading each candidate …"
            if self.text.tab:
                self._ask(version, step)
            if self._is_writing():
                found = "The candidates will be read when the text is complete …"
        if found is None:
            return {}
        if isinstance(found, str):
            return {"waiting": found}
        described = engine.cards.describe_ahead(self.reader, found, version.tokens[step].id)
        content = {"context": [described], "threshold": found.groups.threshold}
        return content if version.compared else content | {"remark": TO_TINT}

    def _ask(self, version: Version, step: int) -> None:
        """Has a thread find out what follows a token's candidates; only the latest token that was asked for counts."""
        with self._lock:
            self._asked = (version, step)
            if self._looker is None:
                self._looker = threading.Thread(target=self._look_ahead, daemon=True)
                self._looker.start()

    def _look_ahead(self) -> None:
        """The work of that thread, as long as something is asked."""
        from nucleoscope.explorer import engine

        while True:
            with self._using:
                with self._lock:
                    asked, self._asked = self._asked, None
                    if asked is None or self._closed or self.model is None:
                        self._looker = None
                        return
                    model = self.model
                version, step = asked
                try:
                    found = engine.look_ahead(model, version.tokens, step, version.settings, version.grouping)
                except Exception as error:  # any error is shown on the page; the next click tries again
                    self._say(describe_error(error), failed=True)
                    continue
            with self._lock:
                version.ahead[step] = found
                number = self.text.card.get("number")
                place, at = (number is not None and self._find(number)) or (0, -1)
                if at == step and self._versions[place] is version:
                    self.text.card = self._describe(number)

    def _fork(self, number: int, candidate: int) -> None:
        """A candidate was clicked: the text is cut at its token, it is put in, and the model continues from it."""
        found = self._find(number)
        if found is None:
            return
        place, step = found
        version, token = self._versions[place], self._versions[place].tokens[step]
        if version.settings is None or not 0 <= candidate < len(token.ids) or token.ids[candidate] == token.id:
            return
        if not self._stop_writing():
            return
        from nucleoscope.explorer.engine import put_in

        word = self.reader.show(int(token.ids[candidate]))
        tokens = [*version.tokens[:step], put_in(token, candidate)]
        compared = {place: each for place, each in version.compared.items() if place <= step}
        new = Version(
            f"{word} at token {step}", version.settings, version.source, step, tokens,
            compared=compared, grouping=version.grouping,
        )  # fmt: skip
        with self._lock:
            self._versions[place + 1 :] = [new]
            self._place = place + 1
            self._turn(self._describe_start(new), at=step)
        self._start(new, {})

    def _stop_writing(self) -> bool:
        """Stops a text that is being generated; where that is not possible, or takes too long, a line says so."""
        if self._is_writing() and self.model is None:
            self._say("The model is loading. Try again when it is ready.", busy=True)
            return False
        self._stop.set()
        if self._is_writing():
            self._say("Stopping …", busy=True)
        self.wait(PATIENCE)
        if self._is_writing():
            self._say("The model is busy. Try again when it is not.", busy=True)
        return not self._is_writing()

    def _go(self, place: int) -> None:
        """Another text of the trail was asked for."""
        if place == self._place or not 0 <= place < len(self._versions) or not self._stop_writing():
            return
        with self._lock:
            self._place = place
            self._turn(at=self.version.cut)

    def _open(self, folder: Path | str) -> None:
        """A measured run was selected: offers its prompts."""
        self.records, self.measured_reader, self.picked.value, self.picked.content = [], None, -1, {}
        self.in_context, self.grouping, self.picked.found = None, self._own_grouping, -1
        if not folder:
            return
        from nucleoscope.explorer.engine import Reader, local_tokenizers, texts

        try:
            self.records = list(results.load_records(folder, fields=("prompt", "tokens")).values())
            table = results.load_run(results.find_measurements(folder), folder.name, folder.parent.name)
            tokenizer = local_tokenizers.find_tokenizer(folder)
            self.measured_reader = None if tokenizer is None else Reader(tokenizer)
            self.in_context = load_current(folder)
            self.grouping = self.in_context.grouping if self.in_context else self._own_grouping
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        prompts = {place: record["prompt"] for place, record in enumerate(self.records)}
        self.picked.content = texts.build_menu(prompts, join_split(table, folder), self.measured_reader)

    def _read_compared(self, place: int) -> "dict[int, cards.Ahead]":
        """What the files of the selected run say of what follows the candidates of a prompt's text, by step."""
        if self.in_context is None:
            return {}
        from nucleoscope.explorer.engine import cards

        return cards.read_ahead(self.in_context.matrices, place, self.in_context.grouping.threshold)

    def _show_measured(self, place: int) -> Version | None:
        """Draws the text of a measured prompt from the files of its run, or says why that is not possible."""
        if self._is_writing():
            return None
        from nucleoscope.explorer.engine import cards, strip

        folder = self.measured.value
        record = results.load_records(folder, [place])[place]
        lacking = [name for name in strip.NEEDED if name not in record]
        if lacking or self.measured_reader is None:
            why = f"the files have no {lacking[0]}" if lacking else "its tokenizer is not on this machine"
            self._say(f"This text cannot be shown from its files ({why}). Press Run to measure it again.")
            return None
        compared = self._read_compared(place)
        version = Version(tokens=cards.list_tokens(record), compared=compared, grouping=self.grouping)
        cards.add_split(version.tokens, compared)
        number = count(len(version.tokens), "token")
        if version.tokens:
            version.said = f"{number}, from the files of the run. Press Run to measure them again, with the model."
        else:
            advice = results.find_advice(folder)
            version.said = f"The text is empty, {results.STOPPED}" + (f"; {advice}" if advice else "")
        with self._lock:
            self.model, self.reader = None, self.measured_reader
            self._begin(version, similarities=results.load_similarities(folder, [place]).get(place))
        return version

    def _pick(self, place: int) -> None:
        """A prompt of a run was picked: its text is drawn, and Run measures it again, with the run's settings."""
        self.recorded = {}
        if place < 0:
            return
        self.prompt.value = self.records[place]["prompt"]
        try:
            version = self._show_measured(place)
        except (ValueError, OSError) as error:
            self._say(str(error), failed=True)
            return
        if not (self.measured.value / results.RUN_INFO).is_file():
            return
        try:
            found = fill_defaults(results.read_recorded(self.measured.value))
        except (OSError, ValueError) as error:
            self._say(str(error), failed=True)
            return
        found["model_revision"] = (found.get("model") or {}).get("revision") or ""
        for name in self.settings:  # in order: a new model name clears the revision
            if name in found:
                self.settings[name].value = found[name]
        self.recorded = read_settings(self.settings)
        self.mode.value, self.dtype = found["mode"], found["dtype"]
        if version is not None:
            version.source, version.settings = self.mode.value, self.recorded | {
                "dtype": self.dtype, "prompt": self.prompt.value, "index": place,
            }  # fmt: skip
            self._show(complete=True)  # the card says where its token is from, and the candidates can be clicked
        if self.mode.value == "score":
            self._copy_text(self.records[place]["tokens"].tolist())

    def _hide_text(self, hidden: bool) -> None:
        """Hides the text of the prompt that was picked while the search in the menu finds none; another text stays."""
        place = self.picked.value
        own = 0 <= place < len(self.records) and self.prompt.value == self.records[place]["prompt"]
        for part in (self.text, self.figures):
            part.layout.visibility = "hidden" if hidden and own else None

    def _copy_text(self, tokens: list[int]) -> None:
        """Puts the text of a scored record into its field, decoded by the tokenizer of the model in its field."""
        from nucleoscope.models import tokenizers

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
