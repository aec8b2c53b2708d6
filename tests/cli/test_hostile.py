"""Exported programs that somebody else made are read without running what is in them."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from cli_helpers import SHAPE, X, converted, dense, export_program, fail

from subbit_infer import save
from subbit_infer.cli.exported import load_program


class Evil:
    """What a pickle makes of it: it leaves a file where it ran."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def pickled() -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": Evil()}, content)
    return content.getvalue()


RUNS = "__import__('os').mkdir('ran')"


def edited(change) -> None:
    """Writes bad.pt2, a good program whose parts are changed."""
    export_program("good.pt2", dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    with zipfile.ZipFile("good.pt2") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    root = next(iter(parts)).split("/")[0]
    parts = {name.removeprefix(f"{root}/"): content for name, content in parts.items()}
    graph = json.loads(parts["models/model.json"])
    config = json.loads(parts["data/constants/model_constants_config.json"])
    change(parts, graph, config)
    parts.setdefault("models/model.json", b"")
    parts["models/model.json"] = json.dumps(graph).encode()
    parts["data/constants/model_constants_config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile("bad.pt2", "w") as file:
        for name, content in parts.items():
            file.writestr(f"{root}/{name}", content)


def first_node(graph):
    return graph["graph_module"]["graph"]["nodes"][0]


def rename_input(graph, name: str) -> None:
    text = json.dumps(graph["graph_module"])
    graph["graph_module"] = json.loads(text.replace('"input"', json.dumps(name)))


def constant(path: str, config) -> None:
    config["config"]["c"] = {"path_name": path, "is_param": False, "use_pickle": True, "tensor_meta": None}


ATTACKS = {
    "inputs": lambda parts, graph, config: parts.update({"data/sample_inputs/model.pt": pickled()}),
    "old weights": lambda parts, graph, config: parts.update({"data/weights/model.pt": pickled()}),
    "pickled constant": lambda parts, graph, config: (
        parts.update({"data/constants/tensor_0": pickled()}),
        constant("tensor_0", config),
    ),
    "object": lambda parts, graph, config: (
        parts.update({"data/constants/opaque_obj_0": pickle.dumps(Evil())}),
        constant("opaque_obj_0", config),
    ),
    "object in capitals": lambda parts, graph, config: (
        parts.update({"data/constants/OPAQUE_OBJ_0": pickle.dumps(Evil())}),
        constant("opaque_obj_0", config),
    ),
    "size": lambda parts, graph, config: graph["graph_module"]["graph"]["tensor_values"]["input"]["sizes"].__setitem__(
        0, {"as_expr": {"expr_str": RUNS, "hint": {"as_int": 2}}}
    ),
    "size called metadata": lambda parts, graph, config: graph["graph_module"]["graph"]["sym_int_values"].update(
        {"metadata": {"as_expr": {"expr_str": RUNS, "hint": {"as_int": 2}}}}
    ),
    "guard": lambda parts, graph, config: graph.update(guards_code=[f"{RUNS} is None"]),
    "quoted guard": lambda parts, graph, config: graph.update(guards_code=[f"L['\"+{RUNS}+\"'].size()[0] <= 64"]),
    "name": lambda parts, graph, config: rename_input(graph, f"x={RUNS}"),
    "graph of another suffix": lambda parts, graph, config: parts.update(
        {"models/other.JSON": json.dumps(graph).replace("Symbol('", RUNS + "+Symbol('").encode()}
    ),
    "compiled": lambda parts, graph, config: parts.update({"data/aotinductor/model/m.so": b"\x7fELF"}),
    "function": lambda parts, graph, config: first_node(graph).update(target="torch.os.mkdir"),
    "file": lambda parts, graph, config: first_node(graph).update(target="torch.ops.aten.from_file.default"),
    "import": lambda parts, graph, config: graph["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.defaultdict", "context": "{\\"default_factory_module\\": \\"zoo\\"}"}]'
    ),
    "two parts of one name": lambda parts, graph, config: parts.update({"Models/model.json": b"{}"}),
    "nested": lambda parts, graph, config: parts.update({"models/deep.json": b"[" * 100_000}),
    "future": lambda parts, graph, config: parts.update({"archive_version": b"99"}),
    "future graph": lambda parts, graph, config: graph["schema_version"].update(major=99),
    "no graph": lambda parts, graph, config: graph.clear(),
}


class TestHostile:
    @pytest.mark.parametrize("attack", ATTACKS)
    def test_programs(self, attack):
        edited(ATTACKS[attack])
        assert fail("convert", "bad.pt2", "-o", "n.pt2").startswith("subbit: error: bad.pt2")
        assert not Path("ran").exists()
        assert "zoo" not in sys.modules

    @pytest.mark.parametrize("attack", ["inputs", "size"])
    def test_the_attacks_are_real(self, attack):
        """Where torch alone no longer falls for them, our own checks may be less."""
        edited(ATTACKS[attack])
        with pytest.raises(Exception, match=r".*"):
            torch.export.load("bad.pt2")
        assert Path("ran").exists()

    def test_an_unchanged_program_is_read(self):
        edited(lambda *_: None)
        with torch.no_grad():
            assert torch.equal(load_program(Path("bad.pt2")).module()(X), dense()(X))

    @pytest.mark.parametrize("command", [["info"], ["convert", "-o", "n.pt2"]])
    @pytest.mark.parametrize("keep", [0, 10, 1000, -10])
    def test_truncated_programs(self, command, keep):
        export_program("m.pt2")
        Path("m.pt2").write_bytes(Path("m.pt2").read_bytes()[:keep])
        assert "is not an exported program" in fail(*command, "m.pt2")

    def test_archives_that_unpack_to_more(self):
        with zipfile.ZipFile("m.pt2", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("m/models/model.json", b"0" * 2**26)
        assert "unpacks to more" in fail("info", "m.pt2")

    def test_pickles(self):
        Path("m.pt").write_bytes(pickled())
        Path("m.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
        Path("m.safetensors").write_bytes(pickled())
        Path("m.pt2").write_bytes(pickled())
        for path in ("m.pt", "m.pth", "m.safetensors", "m.pt2"):
            fail("info", path)
        for path in ("m.pt", "m.pth", "m.pt2"):
            fail("convert", path, "-o", "n.pt2", "--input", SHAPE)
        fail("explain", "m.safetensors", "--model", "zoo:dense", "--input", SHAPE)
        assert not Path("ran").exists()

    def test_files_from_the_future(self):
        save(converted(), "m.safetensors")
        content = Path("m.safetensors").read_bytes()
        Path("m.safetensors").write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
        for command in (["info"], ["explain", "--model", "zoo:dense", "--input", SHAPE]):
            assert "version 2: made by a newer subbit_infer; update" in fail(*command, "m.safetensors")


def test_ordered_dicts_go_through_pytree_specs():
    """What models return may be a dict: its spec is read without an import."""

    class Model(torch.nn.Module):
        def forward(self, x):
            return collections.OrderedDict(a=x + 1, b={"c": x})

    export_program("m.pt2", Model())
    assert set(load_program(Path("m.pt2")).module()(X)) == {"a", "b"}
