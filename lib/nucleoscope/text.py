"""Tokens in, readable HTML out.

Contract: all text that comes from a model or a data set is escaped.
"""

import html

from nucleoscope.results import LABELS


def tinted_text(prompt: str, pieces: list[str], values: list[float], name: str = "entropy") -> str:
    """A prompt and its continuation as HTML, each piece shaded by its value, with a legend.

    ``pieces`` and ``values`` run in parallel, one a token (see `pieces_of`); pointing at a piece
    shows its value. All text is escaped.
    """
    high = max(values, default=0) or 1
    spans = "".join(
        f'<span title="{LABELS[name]}: {value:.3f}" style="{_tint(value / high)}">{html.escape(piece)}</span>'
        for piece, value in zip(pieces, values, strict=True)
    )
    steps = "".join(f'<span style="{_tint(i / 8)};padding:0 0.7em">&nbsp;</span>' for i in range(9))
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8;max-width:46em"
    return (
        f'<p data-model-text style="font-size:0.9em">{LABELS[name]}: 0 {steps} {high:.2f}</p>'
        f'<div dir="auto" style="{style};opacity:0.7">{html.escape(prompt)}</div>'
        f'<div dir="auto" style="{style}">{spans or "(the model ended this text at once)"}</div>'
    )


def _tint(share: float) -> str:
    return f"background-color:rgba(230,159,0,{0.85 * min(max(share, 0), 1):.3f})"


def pieces_of(tokenizer, tokens: list[int]) -> list[str]:
    """The text that each token adds: (n,) ids -> n strings, whose concatenation is the decoded text.

    A character made of several tokens belongs to the one that completes it.
    """
    pieces, done = [], ""
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:end], clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and end < len(tokens):
            text = done  # an unfinished character: the next token brings it
        pieces.append(text[len(done) :])
        done = text
    return pieces
