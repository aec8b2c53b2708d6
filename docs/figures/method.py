"""Draws method.svg, the picture of docs/method.md: one input channel of a layer with tau = 2, all numbers computed.

The page puts the picture into its own HTML, so that text takes the colour of the page, light or dark.
"""

from pathlib import Path

TAU = 2
PATCH = ((2, 0, 1), (3, -1, 0), (1, 2, -2))  # what output pixel p sees of input channel c
CODEBOOK = (
    ((1, 1, 1), (-1, 1, -1), (-1, -1, -1)),
    ((1, -1, 1), (1, 1, -1), (1, -1, 1)),
    ((-1, -1, 1), (-1, 1, 1), (1, 1, 1)),
    ((1, 1, -1), (1, -1, -1), (1, 1, -1)),
)
INDICES = (3, 0, 1, 3, 2, 1, 3, 0)  # of 8 output channels
COLOURS = ("#3b82c4", "#c9782a", "#3f9463", "#a05fc0")  # legible on white and on near black

WIDTH, HEIGHT = 760, 392
TOP, BOTTOM = 84, 350  # of the rows


def responses() -> list[int]:
    """R[c, k, p] of every codeword k: the sum of the nine taps times the patch."""
    return [
        sum(x * w for values, taps in zip(PATCH, code, strict=True) for x, w in zip(values, taps, strict=True))
        for code in CODEBOOK
    ]


def text(x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", extra: str = "") -> str:
    """A line of text; y is that of its middle."""
    return f'<text x="{x:g}" y="{y + size * 0.35:g}" font-size="{size}" text-anchor="{anchor}" {extra}>{words}</text>'


def box(x: float, y: float, width: float, height: float, colour: str = "currentColor", fill: str = "none") -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" stroke="{colour}" '
        f'stroke-width="1.2" fill="{fill}"/>'
    )


def patch(x: float, y: float, side: float) -> list[str]:
    """The nine values that a pixel sees."""
    parts = []
    for row, values in enumerate(PATCH):
        for column, value in enumerate(values):
            left, top = x + column * side, y + row * side
            parts += [box(left, top, side, side), text(left + side / 2, top + side / 2, f"{value}")]
    return parts


def codeword(x: float, y: float, side: float, number: int) -> list[str]:
    """A codeword: full squares are +1, empty ones -1."""
    return [
        box(
            x + column * side,
            y + row * side,
            side - 2,
            side - 2,
            COLOURS[number],
            COLOURS[number] if tap > 0 else "none",
        )
        for row, taps in enumerate(CODEBOOK[number])
        for column, tap in enumerate(taps)
    ]


def curve(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    """A line that leaves and arrives level."""
    middle = (x + to_x) / 2
    path = f"M{x:g} {y:g} C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}"
    return f'<path d="{path}" stroke="{colour}" stroke-width="1.6" fill="none"/>'


def signed(value: int) -> str:
    """A number with its sign."""
    return f"{value:+d}"


def draw() -> str:
    """The picture as SVG."""
    bold, faint = 'font-weight="600"', 'opacity="0.75"'
    parts = [
        text(60, 22, "patch", extra=bold),
        text(60, 42, "input channel c,", size=11, extra=faint),
        text(60, 57, "pixel p", size=11, extra=faint),
        text(245, 22, "1. respond", extra=bold),
        text(245, 42, f"once for each of 2^tau = {2**TAU} codewords,", size=11, extra=faint),
        text(245, 57, "whatever the number of outputs", size=11, extra=faint),
        text(480, 22, "index[o, c]", extra=bold),
        text(480, 42, f"tau = {TAU} bits are stored", size=11, extra=faint),
        text(480, 57, "for each 3x3 kernel", size=11, extra=faint),
        text(655, 22, "2. gather", extra=bold),
        text(655, 42, "one addition for each", size=11, extra=faint),
        text(655, 57, "output channel o", size=11, extra=faint),
        *patch(18, 176, 28),
    ]
    step = (BOTTOM - TOP) / len(CODEBOOK)
    found = responses()
    middles = [TOP + step * (k + 0.5) for k in range(len(CODEBOOK))]
    for k, y in enumerate(middles):
        parts += [
            curve(104, 218, 158, y, "currentColor"),
            text(172, y, f"{k}", size=12, extra=faint),
            *codeword(184, y - 23, 16, k),
            text(250, y, "→", extra=faint),
            box(264, y - 14, 54, 28, COLOURS[k]),
            text(291, y, signed(found[k]), extra=bold),
        ]
    parts.append(text(291, 362, "R[c, k, p]", size=11, extra=faint))
    step = (BOTTOM - TOP) / len(INDICES)
    for o, k in enumerate(INDICES):
        y = TOP + step * (o + 0.5)
        parts += [
            curve(318, middles[k], 448, y, COLOURS[k]),
            box(448, y - 12, 64, 24, COLOURS[k]),
            text(480, y, f"{k} = {k:0{TAU}b}", size=12),
            text(534, y, "→", extra=faint),
            text(
                554, y, f"sum[{o}, p] += {signed(found[k])}", size=12, anchor="start", extra='font-family="monospace"'
            ),
        ]
    parts.append(text(226, 384, "codebook: 9 bits a codeword, filled is +1, empty -1", size=11, extra=faint))
    parts.append(text(610, 384, "then act(scale[o] * sum + bias[o] + ...)", size=11, extra=faint))
    title = (
        "One input channel of a sub-bit convolution: the patch meets each of four codewords once, "
        "and eight output channels take the responses that their indices name."
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'style="width: 100%; height: auto; max-width: 50rem" fill="currentColor" font-family="sans-serif">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
