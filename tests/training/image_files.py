"""Made-up image files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def idx_file(values: np.ndarray) -> bytes:
    """The IDX file of bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.astype(np.uint8).tobytes()


def write_idx(
    folder: Path, *, train: int = 64, test: int = 16, side: int = 12, packed: bool = False
) -> dict[str, np.ndarray]:
    """A data set of four classes, each a bright band, which mirroring leaves; what the four files hold by name."""
    generator = np.random.default_rng(0)
    parts = {}
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 4
        images = generator.integers(0, 100, (count, side, side), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label * side // 4 : (label + 1) * side // 4] += 120
        parts |= {f"{name}-images-idx3": images, f"{name}-labels-idx1": labels}
    for name, values in parts.items():
        content = idx_file(values)
        path = folder / f"{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return parts
