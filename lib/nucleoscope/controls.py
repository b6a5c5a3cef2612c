"""The live notebook's controls: the text whose tokens can be pointed at, and the settings around it.

Contract: widgets that know nothing of models; `explorer.Explorer` fills them and listens to them.
``static/explorer.js`` draws the text and sets what it gets as text, never as HTML.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from nucleoscope import results

STATIC = Path(str(resources.files("nucleoscope") / "static"))


class TokenText(anywidget.AnyWidget):
    """The running text with its legend and the card of one token.

    The kernel sets ``pieces`` (one string a token), ``shares`` (0 to 1 or None each), ``legend``,
    ``marked`` (steps), ``card`` and ``status``; the page sets ``hovered`` and ``clicked`` (steps, or -1).
    """

    _esm = STATIC / "explorer.js"
    _css = STATIC / "explorer.css"
    prompt = traitlets.Unicode("").tag(sync=True)
    pieces = traitlets.List(traitlets.Unicode()).tag(sync=True)
    shares = traitlets.List().tag(sync=True)
    legend = traitlets.Dict().tag(sync=True)
    marked = traitlets.List(traitlets.Int()).tag(sync=True)
    card = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode("").tag(sync=True)
    failed = traitlets.Bool(False).tag(sync=True)
    hovered = traitlets.Int(-1).tag(sync=True)
    clicked = traitlets.Int(-1).tag(sync=True)


def settings(model_name: str, max_tokens: int, top_p: float, seed: int, prompt_format: str) -> dict[str, Any]:
    """The widgets of the settings that decide which tokens are written, by name."""
    small = widgets.Layout(width="11em")
    return {
        "model_name": widgets.Text(model_name, description="model", continuous_update=False),
        "max_tokens": widgets.BoundedIntText(max_tokens, min=1, max=10**6, description="length", layout=small),
        "top_p": widgets.BoundedFloatText(top_p, min=0.01, max=1, step=0.05, description="top_p", layout=small),
        "seed": widgets.IntText(seed, description="seed", layout=small),
        "prompt_format": widgets.Dropdown(
            options=["chat", "raw"], value=prompt_format, description="format", layout=small
        ),
    }


def cells(results_dir: str) -> list[tuple[str, Path | None]]:
    """The measured cells that prompts can be picked from, as a menu."""
    found = results.cells(results_dir)
    return [("no measured cell", None), *((f"{folder.name} on {folder.parent.name}", folder) for folder in found)]
