"""The packed weight: its bits, its sizes, its file."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch
from helpers import UNIT_1X1, UNIT_3X3, dense_weight, random_weight

from subbit_infer import PackedWeight, load_weights, save_weights
from subbit_infer.core.bits import pack_bits, unpack_bits


def test_bits_are_where_the_docstring_says():
    # Indices 1, 2, 3, 4 at tau = 5: 00001 00010 00011 00100, least significant bit first in the stream.
    packed = pack_bits(torch.tensor([[1, 2, 3, 4]]), 5)
    assert packed.tolist() == [[0b010_00001, 0b0_00011_00, 0b0010_0]] or packed.tolist() == [[0x41, 0x0C, 0x02]]
    value = sum(int(byte) << 8 * i for i, byte in enumerate(packed[0]))
    assert value == 1 | 2 << 5 | 3 << 10 | 4 << 15


def test_codebook_bits():
    codebook = -torch.ones(2, 3, 3)
    codebook[0, 0, 0] = codebook[0, 2, 2] = codebook[1, 0, 1] = 1  # taps 0 and 8 of codeword 0, tap 1 of codeword 1
    weight = PackedWeight.from_indices(torch.tensor([[0, 1]]), codebook)
    assert weight.packed_codebook.tolist() == [0b00000001, 0b00000101, 0b00]
    assert weight.packed_indices.tolist() == [[0b10]]


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("n", [1, 3, 8, 13])
def test_packing_round_trip(width, n):
    values = torch.randint(0, 2**width, (5, n), generator=torch.Generator().manual_seed(n))
    packed = pack_bits(values, width)
    assert packed.shape == (5, -(-n * width // 8))
    assert torch.equal(unpack_bits(packed, n, width), values)


@pytest.mark.parametrize(("unit", "codewords"), [(UNIT_3X3, 32), (UNIT_3X3, 5), (UNIT_1X1, 16), ((1, 5, 5), 200)])
def test_indices_codebook_and_decode_round_trip(unit, codewords):
    indices, codebook = random_weight(unit, 7, 11, codewords)
    scale = torch.rand(7)
    weight = PackedWeight.from_indices(indices, codebook, scale, torch.zeros(7))
    assert torch.equal(weight.indices(), indices)
    assert torch.equal(weight.codebook(), codebook)
    assert torch.equal(weight.decode(), dense_weight(indices, codebook) * scale[:, None, None, None])
    assert (weight.unit, weight.units, weight.codewords, weight.out_channels) == (unit, 11, codewords, 7)


def test_nbytes_is_the_truth():
    indices, codebook = random_weight(UNIT_3X3, 512, 512, 32)
    weight = PackedWeight.from_indices(indices, codebook)
    assert weight.nbytes == 512 * 512 * 5 // 8 + 32 * 9 // 8
    assert weight.bits_per_weight == pytest.approx(5 / 9, rel=1e-3)
    with_vectors = PackedWeight.from_indices(indices, codebook, torch.rand(512), torch.rand(512))
    assert with_vectors.nbytes == weight.nbytes + 2 * 4 * 512


@pytest.mark.parametrize("unit", [UNIT_3X3, UNIT_1X1, (1, 7, 9)])
def test_from_dense_finds_codebook_indices_and_scale(unit):
    indices = torch.randint(0, 11, (20, 16))
    codebook = torch.randn(11, *unit).sign()
    dense = dense_weight(indices, codebook) * torch.rand(20, 1, 1, 1).add(0.1)
    weight = PackedWeight.from_dense(dense)
    assert torch.equal(weight.decode(), dense)
    distinct = codebook[indices.unique()].unique(dim=0)
    assert (weight.unit, weight.codewords, weight.tau) == (unit, len(distinct), 4)


def test_from_dense_of_plus_minus_one_has_no_scale():
    indices, codebook = random_weight(UNIT_1X1, 4, 6, 8)
    assert PackedWeight.from_dense(dense_weight(indices, codebook).flatten(1)).scale is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, 2, 0, 1, 0.25), r"weight\[1, 2, 0, 1\] is 0.25 in a channel with alpha 1.0"),
        ((0, 0, 0, 0, 0.0), "alpha 0.0"),
        ((0, 0, 0, 0, float("nan")), "alpha nan"),
    ],
)
def test_from_dense_refuses_other_weights(change, message):
    indices, codebook = random_weight(UNIT_3X3, 4, 6, 8)
    dense = dense_weight(indices, codebook)
    dense[change[:4]] = change[4]
    with pytest.raises(ValueError, match=message):
        PackedWeight.from_dense(dense)


def test_from_dense_refuses_too_many_units():
    indices, codebook = random_weight(UNIT_3X3, 40, 60, 32)
    with pytest.raises(ValueError, match=r"at most 2\^tau = 16 distinct units, got 32"):
        PackedWeight.from_dense(dense_weight(indices, codebook), tau=4)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([[0, 8]]), ValueError, r"indices must be in \[0, 8\).*indices\[0, 1\] is 8"),
        (torch.tensor([[0, -1]]), ValueError, r"indices\[0, 1\] is -1"),
        (
            torch.tensor([[0.0, 1.0]]),
            TypeError,
            r"indices must be integers \(uint8 or int8 to int64\), got torch.float32",
        ),
        (torch.tensor([0, 1]), ValueError, r"indices must be \(C_out, C_in / g\).*\(2,\)"),
        ([[0, 1]], TypeError, "indices must be a tensor or a PackedWeight, got list"),
        (torch.zeros(0, 4, dtype=torch.int64), ValueError, "not empty"),
    ],
)
def test_bad_indices(indices, error, message):
    with pytest.raises(error, match=message):
        PackedWeight.from_indices(indices, random_weight(UNIT_3X3, 1, 1, 8)[1])


@pytest.mark.parametrize("tau", [0, 9, 100, 5.5, "3", True])
def test_from_dense_refuses_bad_tau(tau):
    indices, codebook = random_weight(UNIT_3X3, 4, 6, 8)
    with pytest.raises(ValueError, match="tau must be an int from 1 to 8, or None"):
        PackedWeight.from_dense(dense_weight(indices, codebook), tau=tau)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_bad_channel_vectors(name):
    indices, codebook = random_weight(UNIT_3X3, 4, 6, 8)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(C_out,\) = \(4,\), got \(5,\)"):
        PackedWeight.from_indices(indices, codebook, **{name: torch.ones(5)})
    with pytest.raises(TypeError, match=f"{name} must be floating point, got torch.int64"):
        PackedWeight.from_indices(indices, codebook, **{name: torch.ones(4, dtype=torch.int64)})


class TestFile:
    def weights(self):
        first = PackedWeight.from_indices(*random_weight(UNIT_3X3, 9, 10, 32), torch.rand(9), torch.rand(9))
        return {"a.b": first, "c": PackedWeight.from_indices(*random_weight(UNIT_1X1, 4, 6, 5))}

    def test_round_trip(self, tmp_path):
        weights = self.weights()
        save_weights(weights, tmp_path / "w.safetensors")
        loaded = load_weights(tmp_path / "w.safetensors")
        assert loaded.keys() == weights.keys()
        for name, weight in weights.items():
            for field in ("packed_indices", "packed_codebook", "scale", "bias"):
                ours, theirs = getattr(weight, field), getattr(loaded[name], field)
                assert (ours is None and theirs is None) or torch.equal(ours, theirs)
            assert (loaded[name].unit, loaded[name].codewords) == (weight.unit, weight.codewords)
        assert os.listdir(tmp_path) == ["w.safetensors"]

    def test_tied_weights(self, tmp_path):
        weight = self.weights()["c"]
        save_weights({"one": weight, "two": weight}, tmp_path / "w")
        loaded = load_weights(tmp_path / "w")
        assert torch.equal(loaded["one"].decode(), loaded["two"].decode())

    def test_single_weight(self, tmp_path):
        weight = self.weights()["c"]
        weight.save(tmp_path / "w")
        assert torch.equal(PackedWeight.load(tmp_path / "w").decode(), weight.decode())
        save_weights(self.weights(), tmp_path / "two")
        with pytest.raises(ValueError, match="must hold one weight, it holds 2"):
            PackedWeight.load(tmp_path / "two")

    def test_resnet18_body_takes_five_ninths_of_a_bit(self, tmp_path):
        widths = [64, 128, 256, 512]
        body, weights_count = {}, 0
        for stage, width in enumerate(widths):
            for conv in range(4):
                into = widths[max(stage - 1, 0)] if conv == 0 else width
                indices, codebook = random_weight(UNIT_3X3, width, into, 32, seed=conv)
                body[f"layer{stage + 1}.{conv // 2}.conv{conv % 2 + 1}"] = PackedWeight.from_indices(
                    indices, codebook, torch.rand(width)
                )
                weights_count += width * into * 9
        save_weights(body, tmp_path / "body")
        formula = weights_count * 5 / 9 / 8 + sum(32 * 9 / 8 + 4 * w.out_channels for w in body.values())
        assert sum(w.nbytes for w in body.values()) == formula
        assert (tmp_path / "body").stat().st_size == pytest.approx(formula, rel=0.01)

    def test_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "w"
        save_weights(self.weights(), path)
        before = path.read_bytes()
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            save_weights({}, path)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["w"]

    def rewritten(self, path, *, metadata=None, tensors=None):
        """A valid file with parts of it replaced."""
        save_weights({"c": self.weights()["c"]}, path)
        with safetensors.safe_open(path, "pt") as file:
            old_metadata, old = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        merged = old | (tensors or {})
        merged = {k: v for k, v in merged.items() if v is not None}
        safetensors.torch.save_file(merged, path, old_metadata | (metadata or {}))
        return path

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({"format": "pt"}, "must have format 'subbit_infer'"),
            (
                {"version": "2"},
                r"must have format version 1, got '2' \(version 2: made by a newer subbit_infer; update\)",
            ),
            ({"version": "1.0"}, r"got '1.0' \(no such version\)"),
            ({"weights": "not json"}, "must be a JSON object"),
            ({"weights": "[1]"}, "must be a JSON object"),
            ({"weights": "[" * 100_000}, "must be a JSON object"),
            ({"weights": '{"c": [Infinity, 5, 8, 1, 1]}'}, "five positive sizes"),
            ({"weights": '{"c": [6.5, 5, 8, 1, 1]}'}, "five positive sizes"),
            ({"weights": '{"c": ["6", 5, 8, true, 1]}'}, "five positive sizes"),
            ({"weights": json.dumps({"c": [6, 5, 8, 1]})}, "five positive sizes"),
            ({"weights": json.dumps({"c": [6, 0, 8, 1, 1]})}, "five positive sizes"),
            ({"weights": json.dumps({"c": [6, 257, 8, 1, 1]})}, "at most 256 codewords, got 257"),
            ({"weights": json.dumps({"c": [9, 5, 8, 1, 1]})}, "indices must be uint8 of shape"),
            ({"weights": json.dumps({"c": [6, 5, 8, 3, 3]})}, "codebook must be uint8 of shape"),
            ({"weights": json.dumps({"c": [2**62, 5, 2**62, 2**62, 4]})}, "indices must be uint8 of shape"),
            ({"weights": json.dumps({"d": [6, 5, 8, 1, 1]})}, "lacks the tensor 'd.indices'"),
            ({"weights": "{}"}, "must hold only tensors of its weights"),
        ],
    )
    def test_bad_metadata(self, tmp_path, metadata, message):
        with pytest.raises(ValueError, match=message):
            load_weights(self.rewritten(tmp_path / "w", metadata=metadata))

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"c.indices": torch.full((4, 3), 255, dtype=torch.uint8)}, r"indices must be in \[0, 5\)"),
            ({"c.indices": torch.zeros(4, 3)}, "indices must be uint8"),
            ({"c.codebook": None}, "lacks the tensor 'c.codebook'"),
            ({"c.scale": torch.ones(5)}, r"scale must be float32 of shape \(4,\)"),
            ({"c.bias": torch.ones(4, dtype=torch.float64)}, "bias must be float32"),
            ({"x": torch.ones(1)}, r"also holds \['x'\]"),
        ],
    )
    def test_bad_tensors(self, tmp_path, tensors, message):
        with pytest.raises(ValueError, match=message):
            load_weights(self.rewritten(tmp_path / "w", tensors=tensors))

    @pytest.mark.parametrize("keep", [0, 4, 8, 50, -1])
    def test_truncated_file(self, tmp_path, keep):
        path = tmp_path / "w"
        save_weights(self.weights(), path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            load_weights(path)

    def test_pickle_is_not_read(self, tmp_path):
        torch.save({"a": torch.ones(1)}, tmp_path / "w")
        with pytest.raises(ValueError, match="not a readable safetensors file"):
            load_weights(tmp_path / "w")

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_weights(tmp_path / "nothing")
