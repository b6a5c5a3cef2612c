"""The controls of the live notebook: the text with its tokens, and the settings around it.

Contract: widgets that do not depend on models; `explorer.Explorer` fills them and listens to them.
``static/explorer.js`` draws the text and inserts what it receives as text, never as HTML.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from nucleoscope.settings import FIELDS, Settings
from nucleoscope.store import results
from nucleoscope.store.run_names import describe_run
from nucleoscope.views import assets

COLUMN = {"flex": "1 1 26em", "min_width": "0", "padding": "0 0.5em 0 0"}
STATIC = Path(__file__).with_name("static")


class TokenText(anywidget.AnyWidget):
    """The running text with its legend and the card of one token.

    The kernel sets ``pieces`` (one string per token), ``scale`` (`cards.build_scale`, for the tint), ``card``
    (`cards.describe_token`) and ``status``; the page sets ``hovered`` and ``clicked`` (steps, or -1), and
    ``marked`` (steps) when points are selected in the plotly figure whose layout's meta is ``figure``: its
    customdata are steps.
    """

    _esm = assets.join_script(STATIC / "explorer.js")
    _css = assets.join_style(STATIC / "explorer.css")
    prompt = traitlets.Unicode("").tag(sync=True)
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    scale = traitlets.Dict().tag(sync=True)
    figure = traitlets.Unicode("").tag(sync=True)
    marked = traitlets.List(traitlets.Int()).tag(sync=True)
    card = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    hovered = traitlets.Int(-1).tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)


class PromptMenu(anywidget.AnyWidget):
    """The menu of a measured run's prompts, as on the run's page: ``content`` is a `texts.build_menu`.

    The page sets ``value`` to the number of the prompt that is picked; -1 means none. Without prompts it is hidden.
    """

    _esm = assets.join_script(assets.STATIC / "menu.js", STATIC / "prompt_menu.js")
    _css = assets.join_style(assets.STATIC / "menu.css")
    content = traitlets.Dict().tag(sync=True)
    value = traitlets.Int(-1).tag(sync=True)


def build_settings(chosen: Settings) -> dict[str, Any]:
    """A field for each setting that has a name in the live notebook, with its value in ``chosen``, by name.

    They are in the order of `settings.FIELDS`: the model, and later its revision and whether its code may run.
    """
    return {
        name: _build_field(field.metadata, getattr(chosen, name))
        for name, field in FIELDS.items()
        if field.metadata["live"]
    }


def _build_field(facts: Mapping[str, Any], value: Any) -> Any:
    """The widget for a setting's value, within the setting's range; ``facts`` is its metadata."""
    small = {"width": "11em"}  # each widget gets its own layout, because one of them may be hidden
    options = {"description": facts["live"], "layout": small, "style": {"description_width": "initial"}}
    if facts["type"] is bool:
        return widgets.Checkbox(value, indent=False, **options)
    if facts["choices"]:
        return widgets.Dropdown(options=facts["choices"], value=value, **options)
    if facts["type"] is float:
        low = facts["least"] if facts["above"] is None else facts["above"] + 1e-6
        high, step = facts["most"] or 1e6, 0.05 if facts["most"] else 0.1
        return widgets.BoundedFloatText(value, min=low, max=high, step=step, **options)
    if facts["type"] is int and facts["least"] is not None:
        return widgets.BoundedIntText(value, min=facts["least"], max=10**6, **options)
    if facts["type"] is int:
        return widgets.IntText(value, **options)
    return widgets.Text(value or "", continuous_update=False, **options | {"layout": {"width": "20em"}})


def read_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `build_settings`, by name; an empty field means None for a setting that may be None."""
    return {
        name: None if field.value == "" and FIELDS[name].default is None else field.value
        for name, field in fields.items()
    }


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
    wrap = {"flex_flow": "row wrap", "align_items": "center"}
    text_side = widgets.VBox([text], layout=widgets.Layout(**COLUMN))
    both = widgets.HBox([text_side, figures], layout=widgets.Layout(flex_flow="row wrap", align_items="flex-start"))
    rows = [widgets.HBox(row, layout=widgets.Layout(**wrap)) for row in (picks, settings, actions)]
    return widgets.VBox([rows[0], menu, *texts, *rows[1:], both])


def list_run_options(results_dir: str) -> list[tuple[str, Path | str]]:
    """The measured runs whose prompts can be selected, as a menu; "" means none of them.

    The value None would not work: a menu takes it to mean that no option is selected.
    """
    found = results.list_runs(results_dir)
    return [("no measured run", ""), *((describe_run(folder.name, folder.parent.name), folder) for folder in found)]
