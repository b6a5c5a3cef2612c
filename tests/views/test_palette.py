"""Colours: written once, readable on each other, and the same in Python, style sheets and scripts."""

import json
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from nucleoscope.book import sphinx_extension
from nucleoscope.explorer import controls
from nucleoscope.views import assets, palette

ROOT = Path(__file__).parents[2]
NAMES = (
    "black|white|gray|grey|red|blue|green|orange|yellow|purple|brown|pink|cyan|magenta|gold|crimson|navy|teal|silver"
)
# "#12ab" and "#12ab9f", rgb(1 2 3), "240 165 0", and names that are a whole string or a whole value in CSS
COLOR = re.compile(
    r"(?<![&\w])#(?:[0-9a-f]{8}|[0-9a-f]{6}|[0-9a-f]{3,4})\b(?![-\w])"
    r"|(?:rgb|hsl|hwb|lab|lch|oklab|oklch)a?\(\s*[\d.]+[^)]*\)"
    r"|[\"'`]\d{1,3}(?:, ?| )\d{1,3}(?:, ?| )\d{1,3}[\"'`]"
    rf"|[\"'`](?:(?:dark|light)?(?:{NAMES})|viridis)[\"'`]"
    rf"|(?<=[a-z]): *(?:dark|light)?(?:{NAMES})(?=[;\s}}])",
    re.IGNORECASE,
)


def list_sources() -> list[Path]:
    """The code and style sheets that may draw something."""
    folders = [ROOT / name for name in ("lib", "notebooks", "book", "scripts")]
    kinds = (".py", ".js", ".css", ".html", ".svg")
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in kinds]


def find_colors(text: str) -> list[str]:
    return [match[0].lower().strip(" :\"'`") for match in COLOR.finditer(text)]


def test_every_colour_is_written_once_and_in_the_palette():
    written = {path: find_colors(path.read_text()) for path in list_sources()}
    own = written.pop(Path(palette.__file__).resolve())
    assert {path: colors for path, colors in written.items() if colors} == {}
    assert len(own) > 20
    # a docstring may quote a colour as an example of a form
    code = find_colors(re.sub(r'"""(.*?)"""', "", Path(palette.__file__).read_text(), flags=re.DOTALL))
    assert [color for color, count in Counter(code).items() if count > 1] == []


@pytest.mark.parametrize(
    "text",
    [
        "color: #0072b2;",
        "x = '#FFF'",
        "rgb(1 2 3 / 0.5)",
        "rgba(0,0,0,0)",
        '"240 165 0"',
        "color='red'",
        "a { color: grey; }",
    ],
)
def test_a_second_colour_would_be_found(text):
    assert len(find_colors(text)) == 1


@pytest.mark.parametrize(
    "text", ["rgb(var(--ns-tint) / 0)", "&#36;", "# %% [markdown]", "the red one", "color: inherit"]
)
def test_what_is_no_colour_is_not_found(text):
    assert find_colors(text) == []


def read_channels(color: str) -> list[float]:
    """Red, green and blue, 0 to 1, of "#0072B2" or "240 165 0"."""
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)] if color.startswith("#") else map(int, color.split())
    return [part / 255 for part in parts]


def compute_contrast(left: list[float], right: list[float]) -> float:
    """The contrast ratio of WCAG 2, 1 to 21."""

    def compute_luminance(channels: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted(map(compute_luminance, (left, right)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colors", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_is_readable_on_every_ground_and_every_tint(colors):
    for text, ground in product(("ink", "muted", "drawn", "failed"), ("ground", "raised")):
        assert compute_contrast(read_channels(colors[text]), read_channels(colors[ground])) >= 4.5, (text, ground)
    assert compute_contrast(read_channels(colors["bar"]), read_channels(colors["raised"])) >= 3  # not text
    ground, tint = read_channels(colors["ground"]), read_channels(colors["tint"])
    for share in (0, 0.25, 0.5, 0.75, 1):
        strength = palette.OPACITY * share
        mixed = [strength * above + (1 - strength) * below for above, below in zip(tint, ground, strict=True)]
        assert compute_contrast(read_channels(colors["ink"]), mixed) >= 4.5, share


def test_both_themes_have_the_same_names_and_style_sheets_use_no_others():
    assert palette.LIGHT.keys() == palette.DARK.keys()
    css = palette.format_css()
    for path in list_sources():
        if path.suffix in (".css", ".js"):
            for name in re.findall(r"var\((--ns-[\w-]+)\)", path.read_text()):
                assert f"{name}:" in css, (path, name)


def test_strips_and_the_live_notebook_contain_the_palette_and_the_book_gets_it_as_a_script():
    script = palette.format_script()
    given = json.loads(re.fullmatch(r"const nucleoscopePalette=(.*);\n", script)[1])
    assert [palette.BLUE, palette.SKY] in given["onDark"]
    assert palette.fade(0.5).startswith(f"rgba({given['onDark'][2][0]},")
    assert given["grid"] == palette.GRID
    assert "nucleoscopePalette" in (sphinx_extension.STATIC / "figures.js").read_text()
    assert sphinx_extension.SCRIPTS.index("palette.js") < sphinx_extension.SCRIPTS.index("figures.js")
    for style in (assets.join_style(assets.STATIC / "strip.css"), controls.TokenText._css):
        assert style.startswith(palette.format_css() + assets.read_compactly(assets.STATIC / "card.css"))
    for script in (assets.join_script(assets.STATIC / "strip.js"), controls.TokenText._esm):
        assert script.startswith(assets.read_compactly(assets.STATIC / "card.js"))
