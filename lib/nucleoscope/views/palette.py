"""The colours of figures, strips, cards and the live notebook: the only place where a colour is written.

Okabe and Ito's palette, which people with any kind of colour vision can tell apart; see Wong, Points of
view: Color blindness, Nature Methods 8, 441 (2011). Strips and cards need two sets, for light and dark pages.

Contract: Python imports the names, style sheets use the variables of `format_css`, and the book's script
for figures reads the object of `format_script`.
"""

import json

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#777777"  # legible on light and dark pages
FAINT = "#999999"
DUSK = "#222222"  # almost black
BUTTON, BUTTON_TEXT = "#dddddd", DUSK
PALE = "#BFE3F7"  # a lighter SKY, for what is SKY on light pages
ON_DARK = [(BLUE, SKY), (SKY, PALE)]  # which colours of figures change on a dark page, and to which
CLEAR = "rgba(0,0,0,0)"
MATRIX = "Viridis"  # plotly's name of a colour scale that is monotone in lightness

# by the names that style sheets use: --ns-ink and so on; the tint is a triple because its opacity varies
LIGHT = {
    **{"ink": "#1f1f1f", "muted": "#5c5c5c", "line": "#c9c9c9", "ground": "#ffffff", "raised": "#f6f6f6"},
    **{"tint": "240 165 0", "bar": BLUE, "drawn": "#a84300", "failed": "#b00020", "shadow": "#0006"},
}
DARK = {
    **{"ink": "#e8e8e8", "muted": "#b0b0b0", "line": "#555555", "ground": "#121212", "raised": DUSK},
    **{"tint": "158 84 0", "bar": SKY, "drawn": "#ffb454", "failed": "#ff8a80", "shadow": "#000c"},
}
OPACITY = 0.9  # of the strongest tint: the text on it stays readable


def fade(opacity: float, color: str = BLUE) -> str:
    """A colour such as "#0072B2" with an opacity, for areas behind a line, densities and grids."""
    return f"rgba({_list_channels(color)},{opacity})"


def _list_channels(color: str) -> str:
    """ "0,114,178" for "#0072B2"."""
    return ",".join(str(int(color[place : place + 2], 16)) for place in (1, 3, 5))


GRID, ZERO = fade(0.3, GREY), fade(0.4, GREY)  # visible on light and dark pages, but unobtrusive


def format_css() -> str:
    """The style sheet that gives every element of class "nucleoscope" the colours of the page's theme."""
    light, dark = ("".join(f"--ns-{name}:{color};" for name, color in colors.items()) for colors in (LIGHT, DARK))
    return f".nucleoscope{{--ns-opacity:{OPACITY};{light}}}\n" + _format_dark(".nucleoscope", dark)


def format_figure_css(selector: str) -> str:
    """The style sheet by which plotly's points within ``selector`` follow the theme, as `ON_DARK` says.

    It needs no script, and no message to a kernel that has to change its figures. Plotly writes the colour of a point
    into its style.
    """
    rules = []
    for light, dark in ON_DARK:
        channels = _list_channels(light).replace(",", ", ")
        points = f'{selector} .point[style*="fill: rgb({channels})"]'
        rules.append(_format_dark(points, f"fill:{dark}!important;"))
    return "".join(rules)


def _format_dark(selector: str, style: str) -> str:
    """The rules that give elements a style on dark pages: of the book, JupyterLab, VS Code, or a dark screen's."""
    themes = ('html[data-theme="dark"]', '[data-jp-theme-light="false"]', ".vscode-dark")
    unthemed = f"html:not([data-theme]) body:not([data-jp-theme-light],.vscode-light) {selector}"
    themed = ",".join(f"{theme} {selector}" for theme in themes)
    return f"{themed}{{{style}}}\n@media (prefers-color-scheme:dark){{{unthemed}{{{style}}}}}\n"


def format_script() -> str:
    """The script with which the book's figures follow the theme: which colours change on a dark page, and to which.

    ``onDark`` has pairs [light, dark], as "#0072B2" and as the channels in "rgba(0,114,178,0.3)".
    """
    pairs = [*ON_DARK, *(tuple(map(_list_channels, pair)) for pair in ON_DARK)]
    return f"const nucleoscopePalette={json.dumps({'grid': GRID, 'clear': CLEAR, 'onDark': pairs})};\n"
