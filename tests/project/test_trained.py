"""The trained networks that lie in examples/fashion-mnist are as accurate as their files say."""

from __future__ import annotations

import pytest

import fashion
from subbit_infer import formats

ROUNDING = 4  # images whose two best classes are so near that another processor may turn them around


@pytest.fixture(scope="module")
def found() -> list[fashion.Trained]:
    return fashion.classify_all()


def test_as_many_images_are_classified_right_as_the_files_say(found):
    for one in found:
        assert abs(one.right - int(one.notes["right_of_first_2000"])) <= ROUNDING, one.name


def test_what_0_56_bit_costs(found):
    right = {one.title: one.right / len(one.predictions) for one in found}
    assert right["W32/A32"] > right["W0.56/A32"] > 0.88
    assert right["W1/A32"] - right["W0.56/A32"] < 0.02
    assert right["W0.56/A1"] > 0.84


def test_they_are_small():
    sizes = {path.stem: path.stat().st_size for path in fashion.FOLDER.glob("*.safetensors")}
    assert sizes["w0.56-a32"] + sizes["w0.56-a1"] < 1e6
    assert sum(path.stat().st_size for path in fashion.FOLDER.glob("*.gz")) < 1e6
    for file in ("w0.56-a32", "w0.56-a1"):
        info = formats.inspect(fashion.FOLDER / f"{file}.safetensors")
        assert {layer.tau for layer in info.layers} == {5}
        codebooks = len(info.layers) * 32 * 9 / 8
        assert info.body_bytes == pytest.approx(info.formula_bytes + codebooks, rel=0.01)


@pytest.mark.parametrize("key", ["accuracy", "data", "method", "seed", "epochs", "commit"])
def test_they_say_where_they_are_from(found, key):
    assert all(one.notes[key] for one in found)
