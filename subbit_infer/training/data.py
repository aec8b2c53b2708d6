"""Labelled images in memory: IDX files (MNIST, Fashion-MNIST), CIFAR's binary files, folders of images."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")
_MOST_BYTES = 4 * 2**30  # of an unpacked file: a small one may say that it is huge
_IDX_BYTES = 8  # the type of elements that image and label files have
_CIFAR = 3 * 32 * 32

HOW_TO_GET = (
    "Fashion-MNIST: Debian's package dataset-fashion-mnist has it in /usr/share/datasets/fashion-mnist; MNIST: four "
    "IDX files; CIFAR-10: the 'binary version', unpacked; or folders train/CLASS/*.png and test/CLASS/*.png"
)


class Images(NamedTuple):
    """Images of classes.

    Attributes:
        train: uint8 (N, C, H, W).
        train_labels: int64 (N,).
        test: uint8 (M, C, H, W).
        test_labels: int64 (M,).
        classes: names, or numbers where there are no names.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def load(folder: str | os.PathLike[str]) -> Images:
    """Reads a data set from a folder, whatever kind of files it has.

    Raises:
        FileNotFoundError: there is no data set; the message says how to get one.
        ValueError: a file is not what its name says, is cut off, or files do not fit each other.
    """
    path = Path(folder)
    if path.is_dir():
        for kind in (_idx, _cifar, _folders):
            found = kind(path)
            if found is not None:
                _check(found, path)
                return found
    raise FileNotFoundError(f"no data set in {path}. {HOW_TO_GET}")


def _check(images: Images, path: Path) -> None:
    for values, labels, name in (
        (images.train, images.train_labels, "training"),
        (images.test, images.test_labels, "test"),
    ):
        if len(values) != len(labels) or len(values) == 0:
            raise ValueError(f"{path}: {len(values)} {name} images must have as many labels, got {len(labels)}")
        if int(labels.max()) >= len(images.classes):
            raise ValueError(f"{path}: labels must be below {len(images.classes)}, got {int(labels.max())}")
    if images.train.shape[1:] != images.test.shape[1:]:
        raise ValueError(
            f"{path}: images must be of one size, got {images.train.shape[1:]} and {images.test.shape[1:]}"
        )


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Reads an IDX file of bytes, plain or packed by gzip.

    Returns:
        uint8, of the sizes that the file says.

    Raises:
        ValueError: it is no such file, or is shorter or longer than it says.
    """
    content = _bytes_of(Path(path))
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_BYTES or not 1 <= content[3] <= 4:
        raise ValueError(f"{path} must be an IDX file of bytes, got the head {content[:4].hex()}")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    sizes = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    if len(content) - start != math.prod(sizes):
        raise ValueError(f"{path} must hold {math.prod(sizes)} bytes of {sizes}, got {len(content) - start}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(sizes)


def _bytes_of(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a readable gzip file: {error}") from error
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} must unpack to at most {_MOST_BYTES} bytes")
    return content


def _idx(path: Path) -> Images | None:
    parts = []
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        found = [p for p in (path / f"{name}-ubyte", path / f"{name}-ubyte.gz") if p.is_file()]
        if not found:
            return None
        tensor = read_idx(found[0])
        if tensor.dim() != (3 if "images" in name else 1):
            raise ValueError(f"{found[0]} must have {3 if 'images' in name else 1} dimensions, got {tensor.dim()}")
        parts.append(tensor)
    train, train_labels, test, test_labels = parts
    count = int(max(train_labels.max(), test_labels.max())) + 1 if len(train_labels) and len(test_labels) else 0
    return Images(train[:, None], train_labels.long(), test[:, None], test_labels.long(), tuple(map(str, range(count))))


def _cifar(path: Path) -> Images | None:
    """CIFAR-10: data_batch_1.bin and so on and test_batch.bin; CIFAR-100: train.bin and test.bin, of two labels."""
    if (path / "test_batch.bin").is_file():
        files, test, labels, classes = sorted(path.glob("data_batch_*.bin")), path / "test_batch.bin", 1, 10
    elif (path / "train.bin").is_file() and (path / "test.bin").is_file():
        files, test, labels, classes = [path / "train.bin"], path / "test.bin", 2, 100
    else:
        return None
    if not files:
        raise FileNotFoundError(f"no data_batch_*.bin beside {test}")
    read = [_cifar_file(file, labels) for file in (*files, test)]
    train, train_labels = torch.cat([x for x, _ in read[:-1]]), torch.cat([y for _, y in read[:-1]])
    return Images(train, train_labels, *read[-1], _names(path, classes))


def _cifar_file(path: Path, labels: int) -> tuple[Tensor, Tensor]:
    content = _bytes_of(path)
    row = labels + _CIFAR
    if len(content) == 0 or len(content) % row:
        raise ValueError(f"{path} must hold rows of {row} bytes, got {len(content)} bytes")
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, row)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].long()


def _names(path: Path, classes: int) -> tuple[str, ...]:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (path / name).is_file():
            found = tuple((path / name).read_text().split())
            if len(found) == classes:
                return found
    return tuple(map(str, range(classes)))


def _folders(path: Path) -> Images | None:
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if test is None or not (path / "train").is_dir():
        return None
    classes = tuple(sorted(p.name for p in (path / "train").iterdir() if p.is_dir()))
    if not classes:
        return None
    return Images(*_folder(path / "train", classes), *_folder(test, classes), classes)


def _folder(path: Path, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for image in _images_of(path / name):
            if images and image.shape != images[0].shape:
                raise ValueError(f"{path / name}: images must be of one size, got {image.shape} and {images[0].shape}")
            images.append(image)
            labels.append(label)
    if not images:
        raise FileNotFoundError(f"no images ({', '.join(SUFFIXES)}) in the folders of {path}")
    return torch.stack(images), torch.tensor(labels)


def _images_of(folder: Path) -> Iterator[Tensor]:
    import numpy as np

    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("folders of images need Pillow: pip install pillow") from error
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES):
        with Image.open(path) as image:
            yield torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
