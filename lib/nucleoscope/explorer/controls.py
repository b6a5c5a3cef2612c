"""The controls of the live notebook: the text with its tokens, and the settings around it.

Contract: widgets that do not depend on models; `explorer.Explorer` fills them and listens to them.
``static/explorer.js`` draws the text and inserts what it receives as text, never as HTML.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from nucleoscope.settings import FIELDS, NUMBERS, Settings, parse, validate
from nucleoscope.store import results
from nucleoscope.store.run_names import describe_run
from nucleoscope.views import assets, palette

COLUMN = {"flex": "1 1 26em", "min_width": "0", "padding": "0 0.5em 0 0"}
NO_CARD = "The candidates of a token are shown here as soon as there is a text."
STATIC = Path(__file__).with_name("static")


class TokenText(anywidget.AnyWidget):
    """The running text with its legend and the card of one token; beside it, the text that it was forked from.

    The kernel sets ``pieces`` (one string per token), ``scale`` (`cards.build_scale`, for the tint), ``card``
    (`cards.describe_token`, or a ``note`` if there is no token) and ``status``; while ``busy``, the page counts the
    seconds beside the status. The page sets ``hovered`` and ``clicked`` (numbers of tokens, or -1), and ``marked``
    (steps) when points are selected in the plotly figure whose layout's meta is ``figure``: its customdata are steps.
    Until there is such a figure, the page says in ``room`` how many pixels wide its place is, of those beside the text.

    The number of a token of the text is its step; that of a token of the earlier text is `number_earlier`. ``earlier``
    has ``cut``, the step where the two texts diverge, the earlier one's ``pieces`` from there on, and the ``names`` of
    both; it is empty if there is no earlier text. In ``scale``, ``earlier`` are the values of these pieces. ``trail``
    names the texts from the first to the latest, of which ``place`` is shown. The page sets ``wanted`` to [the place of
    another, any number], and ``picked`` to [the number of a token, the place of one of its candidates, any number] to
    have the candidate put in. ``tab`` is the name of the tab of the card that is open. ``turned`` counts the texts
    that were put on the page: with another, the page forgets what was selected in the figure.
    """

    _esm = assets.join_script(STATIC / "explorer.js")
    _css = assets.join_style(STATIC / "explorer.css") + palette.format_figure_css(".nx-figure")
    prompt = traitlets.Unicode("").tag(sync=True)
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    scale = traitlets.Dict().tag(sync=True)
    figure = traitlets.Unicode("").tag(sync=True)
    room = traitlets.Int(0).tag(sync=True)
    marked = traitlets.List(traitlets.Int()).tag(sync=True)
    card = traitlets.Dict({"note": NO_CARD}).tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    hovered = traitlets.Int(-1).tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    earlier = traitlets.Dict().tag(sync=True)
    trail = traitlets.List(traitlets.Unicode()).tag(sync=True)
    place = traitlets.Int(0).tag(sync=True)
    wanted = traitlets.List(traitlets.Int()).tag(sync=True)
    picked = traitlets.List(traitlets.Int()).tag(sync=True)
    tab = traitlets.Unicode("").tag(sync=True)
    turned = traitlets.Int(0).tag(sync=True)


def number_earlier(step: int) -> int:
    """The number of a token of the earlier text, which no step is, nor -1; of a number, the step."""
    return -2 - step


class Field(anywidget.AnyWidget):
    """A setting that is typed: its ``label``, its ``text`` in the page, and the ``problem`` with it, in words, or "".

    ``value`` is what the text stands for, also if the setting must not have it: it is never replaced by another one.
    """

    _esm = assets.read_compactly(STATIC / "field.js")
    _css = palette.format_css() + assets.read_compactly(STATIC / "field.css")
    label = traitlets.Unicode("").tag(sync=True)
    text = traitlets.Unicode("").tag(sync=True)
    problem = traitlets.Unicode("").tag(sync=True)
    step = traitlets.Float(0).tag(sync=True)  # how much the arrow keys change a number; 0 for other settings
    value = traitlets.Any()

    def __init__(self, setting: str, value: Any, **options: Any):
        super().__init__(label=setting, **options)
        self.setting = setting
        self.observe(self._read, "text")
        self.observe(self._check, "value")
        self.value = value
        self._check()

    def _read(self, _: Any = None) -> None:
        self.value = parse(self.setting, self.text.strip())

    def _check(self, _: Any = None) -> None:
        """Shows the value and what is wrong with it."""
        if parse(self.setting, self.text.strip()) != self.value or not self.text:
            self.text = _format_value(self.value)
        try:
            validate(self.setting, read_value(self.setting, self.value))
        except ValueError as error:
            self.problem = str(error)
        else:
            self.problem = ""


def _format_value(value: Any) -> str:
    """A value as it is typed: 1 for 1.0."""
    return "" if value is None else str(value).removesuffix(".0") if isinstance(value, float) else str(value)


class FigurePlace(widgets.VBox):
    """A figure below its heading, or a sentence in place of it: text of the page, which is wrapped at any width.

    ``frame`` contains the figure, which is hidden by its frame: it keeps its width, and is not created again.
    """

    def __init__(self, sentence: str = ""):
        self.heading, self.frame = widgets.HTML(), widgets.Box(layout=widgets.Layout(overflow="clip", height="0"))
        super().__init__([self.heading, self.frame])
        self.frame.add_class("nx-figure")
        self.say(sentence, False)

    def say(self, text: str, with_figure: bool, keep_room: bool = False) -> None:
        """Shows ``text`` with the figure or without it; ``keep_room`` if the figure is expected soon."""
        self.heading.value = f"<p>{html.escape(text)}</p>" if text else ""
        self.frame.layout.visibility = None if with_figure else "hidden"
        self.frame.layout.height = None if with_figure or (keep_room and self.frame.children) else "0"

    def close(self) -> None:
        """Removes the place, but not the figure in it, from the page."""
        for part in (self.heading, self.frame):
            part.close()
        super().close()


class PromptMenu(anywidget.AnyWidget):
    """The menu of a measured run's prompts, as on the run's page: ``content`` is a `texts.build_menu`.

    The page sets ``value`` to the number of the prompt that is picked; -1 means none; and ``found`` to how many prompts
    the last search found, -1 before the first. Without prompts it is hidden.
    """

    _esm = assets.join_script(assets.STATIC / "menu.js", STATIC / "prompt_menu.js")
    _css = assets.join_style(assets.STATIC / "menu.css")
    content = traitlets.Dict().tag(sync=True)
    value = traitlets.Int(-1).tag(sync=True)
    found = traitlets.Int(-1).tag(sync=True)


def build_settings(chosen: Settings) -> dict[str, Any]:
    """A field for each setting that the live notebook has one for, with its value in ``chosen``, by name.

    They are in the order of `settings.FIELDS`: the model, and later its revision and whether its code may run.
    """
    return {
        name: _build_field(name, field.metadata, getattr(chosen, name))
        for name, field in FIELDS.items()
        if field.metadata["live"]
    }


def _build_field(name: str, facts: Mapping[str, Any], value: Any) -> Any:
    """The widget for a setting's value; ``facts`` is its metadata."""
    small = {"width": "11em"}  # each widget gets its own layout, because one of them may be hidden
    options = {"description": name, "layout": {"width": "14em"}, "style": {"description_width": "initial"}}
    if facts["type"] is bool:
        return widgets.Checkbox(value, indent=False, **options)
    if facts["choices"]:
        return widgets.Dropdown(options=facts["choices"], value=value, **options)
    if facts["type"] in NUMBERS:
        step = 1 if facts["type"] is int else 0.05 if facts["most"] else 0.1
        return Field(name, value, step=step, layout=small)
    return Field(name, value or "", layout={"width": "16em" if facts["is_date"] else "22em"})


def read_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `build_settings`, by name; an empty field means None for a setting that may be None."""
    return {name: read_value(name, field.value) for name, field in fields.items()}


def read_value(name: str, value: Any) -> Any:
    """A setting's value in its field; None if that is empty and the setting may be None."""
    return None if value == "" and FIELDS[name].default is None else value


def list_problems(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings that can be seen, in words."""
    shown = [field for field in fields.values() if isinstance(field, Field) and field.layout.display != "none"]
    return [field.problem for field in shown if field.problem]


def build_modes(mode: str) -> widgets.ToggleButtons:
    """The switch between a text that the model writes and an existing one."""
    options = [("generate a text", "generate"), ("measure a text", "score")]
    return widgets.ToggleButtons(options=options, value=mode, style={"button_width": "10em"})


def arrange(
    picks: list,
    menu: PromptMenu,
    texts: list,
    settings: list,
    actions: list,
    text: TokenText,
    figures: widgets.Box,
) -> widgets.VBox:
    """All widgets as one: rows of controls, then text and figures, side by side if there is room."""
    wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}  # problems are below their fields
    text_side = widgets.VBox([text], layout=widgets.Layout(**COLUMN))
    both = widgets.HBox([text_side, figures], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))
    both.add_class("nx-both")
    rows = [widgets.HBox(row, layout=widgets.Layout(**wrap)) for row in (picks, settings, actions)]
    return widgets.VBox([rows[0], menu, *texts, *rows[1:], both])


def list_run_options(results_dir: str) -> list[tuple[str, Path | str]]:
    """The measured runs whose prompts can be selected, as a menu; "" means none of them.

    The value None would not work: a menu takes it to mean that no option is selected.
    """
    found = results.list_runs(results_dir)
    return [("no measured run", ""), *((describe_run(folder.name, folder.parent.name), folder) for folder in found)]
