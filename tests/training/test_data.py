"""Data sets as files: read as they are meant, refused where they are not."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from image_files import idx_file, write_idx

from subbit_infer.training import data

RANDOM = np.random.default_rng(0)


def images(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    parts = write_idx(tmp_path, packed=packed)
    found = data.load(tmp_path)
    assert np.array_equal(found.train.squeeze(1).numpy(), parts["train-images-idx3"])
    assert np.array_equal(found.test_labels.numpy(), parts["t10k-labels-idx1"])
    assert found.train.dtype == torch.uint8
    assert len(found.classes) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an IDX file of bytes, got the head $"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "must be an IDX file of bytes, got the head 00000d01"),
        (idx_file(np.zeros(5, np.uint8))[:-1], r"must hold 5 bytes of \(5,\), got 4"),
        (idx_file(np.zeros(5, np.uint8)) + b"x", r"must hold 5 bytes of \(5,\), got 6"),
        (b"\0\0\x08\4" + b"\xff" * 16, "must hold 340282366604025813516997721482669850625 bytes"),
    ],
)
def test_bad_idx_files(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


def test_a_packed_file_that_is_cut_off(tmp_path):
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_file(images(50)))[:-12])
    with pytest.raises(ValueError, match="is not a readable gzip file"):
        data.read_idx(path)


def test_files_that_do_not_fit_each_other(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_file(np.zeros(3, np.uint8)))
    with pytest.raises(ValueError, match="test images must have as many labels, got 3"):
        data.load(tmp_path)


@pytest.mark.parametrize("labels", [1, 2])
def test_cifar(tmp_path, labels):
    names = {1: ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"], 2: ["train.bin", "test.bin"]}[labels]
    pictures = {}
    for name in names:
        rows = images(6, labels + 3072)
        rows[:, :labels] %= 10
        (tmp_path / name).write_bytes(rows.tobytes())
        pictures[name] = rows
    (tmp_path / "batches.meta.txt").write_text("\n".join(f"kind{i}" for i in range(10)) + "\n\n")
    found = data.load(tmp_path)
    train = np.concatenate([pictures[name] for name in names[:-1]])
    assert np.array_equal(found.train.numpy(), train[:, labels:].reshape(-1, 3, 32, 32))
    assert np.array_equal(found.train_labels.numpy(), train[:, labels - 1])
    assert np.array_equal(found.test_labels.numpy(), pictures[names[-1]][:, labels - 1])
    assert found.classes[3] == ("kind3" if labels == 1 else "3")
    (tmp_path / names[-1]).write_bytes(b"12345")
    with pytest.raises(ValueError, match=f"must hold rows of {labels + 3072} bytes, got 5 bytes"):
        data.load(tmp_path)


def test_labels_out_of_range(tmp_path):
    rows = images(4, 3073)
    rows[:, 0] = 10
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(rows.tobytes())
    with pytest.raises(ValueError, match="labels must be below 10, got 10"):
        data.load(tmp_path)


def test_folders(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        for kind, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            image.new("RGB", (6, 5), colour).save(folder / "a.png")
            (folder / "notes.txt").write_text("no image")
    found = data.load(tmp_path)
    assert (found.train.shape, found.classes, found.train_labels.tolist()) == ((2, 3, 5, 6), ("cat", "dog"), [0, 1])
    assert found.test[1, :, 0, 0].tolist() == [0, 0, 255]
    image.new("RGB", (7, 5)).save(tmp_path / "train" / "dog" / "b.png")
    with pytest.raises(ValueError, match="images must be of one size"):
        data.load(tmp_path)


def test_no_data_set(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no data set in .* Debian's package dataset-fashion-mnist"):
            data.load(path)
