"""The colours of figures, strips and cards, once.

Okabe and Ito's palette, which people with any kind of colour vision can tell apart; see Wong, Points of
view: Color blindness, Nature Methods 8, 441 (2011). Strips and cards need two sets, for light and dark pages.
"""

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#777777"  # legible on light and dark pages
FAINT = "#999999"
BUTTON, BUTTON_TEXT = "#dddddd", "#222222"

# by the names that style sheets use: --ns-ink and so on; the tint is a triple because its opacity varies
LIGHT = {
    **{"ink": "#1f1f1f", "muted": "#5c5c5c", "line": "#c9c9c9", "ground": "#ffffff", "raised": "#f6f6f6"},
    **{"tint": "240 165 0", "bar": BLUE, "drawn": "#a84300", "failed": "#b00020"},
}
DARK = {
    **{"ink": "#e8e8e8", "muted": "#b0b0b0", "line": "#555555", "ground": "#121212", "raised": "#222222"},
    **{"tint": "158 84 0", "bar": SKY, "drawn": "#ffb454", "failed": "#ff8a80"},
}


def fade(opacity: float) -> str:
    """BLUE with an opacity, for areas behind a line and for densities."""
    red, green, blue = (int(BLUE[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def format_css() -> str:
    """The style sheet that gives every element of class "nucleoscope" the colours of the page's theme."""
    light, dark = ("".join(f"--ns-{name}:{color};" for name, color in colors.items()) for colors in (LIGHT, DARK))
    themed = 'html[data-theme="dark"] .nucleoscope,[data-jp-theme-light="false"] .nucleoscope,.vscode-dark .nucleoscope'
    unthemed = "html:not([data-theme]) body:not([data-jp-theme-light],.vscode-light) .nucleoscope"
    return f".nucleoscope{{{light}}}\n{themed}{{{dark}}}\n@media (prefers-color-scheme:dark){{{unthemed}{{{dark}}}}}\n"
