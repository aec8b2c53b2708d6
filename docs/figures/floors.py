"""Draws floors.svg, the picture of docs/architecture.md: folders by floor; a folder imports those below it alone."""

from pathlib import Path

from method import box, text

FLOORS = (
    (("cli", "the subbit command"),),
    (("formats", "safetensors, ONNX, checkpoints"),),
    (
        ("training", "latent weights, codebooks"),
        ("models", "networks"),
        ("conversion", "detect, replace, fold, compress"),
        ("diagnostics", "explain"),
    ),
    (("nn", "layers"),),
    (("ops", "conv, linear, pack; torch.library operators"),),
    (("backends", "weights prepared, calls planned and run, by device"),),
    (("core", "plain torch: codebook, weight, activations, epilogue, reference"),),
)
COMPILED = (("csrc/cpu", "families of kernels, planner, driver"), ("csrc/cuda", "routes of kernels, planner"))
WIDTH, STEP, HEIGHT, GAP = 760, 50, 38, 8
COLOUR = "#3b82c4"


def floor(rooms: tuple[tuple[str, str], ...], y: float, colour: str) -> list[str]:
    """The rooms of a floor, side by side."""
    width = (WIDTH - 2 * GAP - (len(rooms) - 1) * GAP) / len(rooms)
    parts = []
    for number, (name, purpose) in enumerate(rooms):
        x = GAP + number * (width + GAP)
        parts += [
            box(x, y, width, HEIGHT, colour),
            text(x + width / 2, y + 13, name, size=14, extra='font-weight="bold"'),
            text(x + width / 2, y + 28, purpose, size=11),
        ]
    return parts


def draw() -> str:
    """The picture."""
    parts = []
    for number, rooms in enumerate(FLOORS):
        parts += floor(rooms, GAP + number * STEP, "currentColor")
    below = GAP + len(FLOORS) * STEP + 14
    parts += floor(COMPILED, below, COLOUR)
    parts.append(text(WIDTH / 2, below - 10, "compiled; backends alone imports it", size=11))
    height = below + HEIGHT + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif" '
    return head + 'fill="currentColor">\n' + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw())
