"""subbit bench."""

from __future__ import annotations

import pytest
import torch
from cli_helpers import SHAPE, X, converted, data, dense, export_program, fail, succeed


class TestBench:
    def test_converted_alone(self):
        found = data("bench", "zoo:converted", "--input", SHAPE, "--rounds", 2)
        assert set(found["milliseconds"]) == {"converted"}
        assert found["milliseconds"]["converted"] > 0
        assert (found["threads"], found["rounds"]) == (1, 2)

    def test_converted_program_knows_its_input(self):
        export_program("m.pt2", converted())
        assert "converted" in succeed("bench", "m.pt2", "--rounds", 2)

    def test_threads_are_put_back(self):
        before = torch.get_num_threads()
        assert data("bench", "zoo:converted", "--input", SHAPE, "--rounds", 1, "--threads", 2)["threads"] == 2
        assert torch.get_num_threads() == before

    @pytest.mark.parametrize("source", ["zoo:dense", "m.pt2"])
    def test_against_the_original(self, source):
        export_program("m.pt2")
        found = data("bench", source, "--input", SHAPE, "--rounds", 2)
        times = found["milliseconds"]
        assert found["speedup"] == pytest.approx(times["original"] / times["converted"])

    def test_half(self):
        found = data("bench", "zoo:dense", "--input", SHAPE, "--rounds", 2, "--half")
        assert (found["half"], found["device"]) == (True, "cpu")
        assert "1 thread, float16" in succeed("bench", "zoo:dense", "--input", SHAPE, "--rounds", 2, "--half")

    def test_nothing_to_convert(self):
        assert "nothing to convert: none of 1 layer of zoo:plain" in fail("bench", "zoo:plain", "--input", SHAPE)

    def test_onnx(self):
        torch.onnx.export(dense(), (X,), "m.onnx", dynamo=True, verbose=False, external_data=False)
        assert set(data("bench", "m.onnx", "--rounds", 2)["milliseconds"]) == {"original", "converted"}
