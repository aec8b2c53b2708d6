"""Exported programs (.pt2) from untrusted sources: read without running anything that they hold.

torch promises nothing here: ``torch.export.load`` unpickles inputs and constants, loads compiled code (AOTInductor),
gives expressions of sizes to sympy, which evaluates them, and writes names into source code that it runs. So each part
is looked at first, and torch is given an archive of just these parts.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

_MOST_BYTES = 2**36  # of all parts, unpacked; no model is that large
_COMPILED = re.compile(r"/(data/aotinductor|data/executorch|.*(opaque|custom)_obj_)|\.(so|dll|dylib|py|pyc)$")
_GRAPH = re.compile(r"^([^/]+/)?(models/|serialized_exported_program\.json$)")
_EXTRA = re.compile(r"^[^/]+/extra/")  # files of the user's, which torch hands out as text
_WORD = re.compile(r"[\w.-]*")  # nothing that could end a name in source code
_TARGET = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+")
_TARGETS_WITH_FILES = ("torch.ops.aten.from_file",)
_PLAIN_TEXT = ("as_string", "as_strings", "in_spec", "out_spec", "torch_version")  # never evaluated
_IMPORTS = ("default_factory_module", "__enum__")  # in pytree specs, name modules to import
_CALLS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Max", "Min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
})  # fmt: skip
_MEASURES = ("size", "stride", "storage_offset")  # methods of inputs that guards compare
_EXPRESSION_PARTS = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.operator, ast.UnaryOp,
    ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.Subscript, ast.Attribute,
)  # fmt: skip


def load_program(path: Path) -> ExportedProgram:
    """Reads a .pt2 file after checking all of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not one, is corrupt, was made by another version of torch, or holds what could run code.
    """
    parts = read_parts(path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    archive.seek(0)
    try:
        with _without_pickles():
            return torch.export.load(archive)
    except Exception as error:  # a broken file may raise anything
        raise ValueError(
            f"{path} cannot be read by torch {torch.__version__} without running code in it: it is damaged, or made "
            "by another version; export the model again"
        ) from error


def read_parts(path: Path) -> dict[str, bytes]:
    """The parts of a .pt2 file by name, of which none can run code when torch loads them without pickles.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_program`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            if sum(entry.file_size for entry in entries) > min(_MOST_BYTES, 2 * path.stat().st_size + 2**20):
                raise ValueError(f"{path} unpacks to more than an exported program does")
            parts = {entry.filename: file.read(entry) for entry in entries}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{path} is not an exported program of torch.export.save, or is cut off: {error}") from error
    if len({name.lower() for name in parts}) != len(entries):  # torch's reader does not tell cases apart
        raise ValueError(f"{path} must not hold two parts of one name")
    if not program_parts(parts):
        raise ValueError(f"{path} is not an exported program of torch.export.save: it holds no graph")
    for name, content in parts.items():
        if _COMPILED.search("/" + name.lower()):
            raise ValueError(f"{path} holds {name!r}, which could run code when it is loaded; export the model again")
        if _GRAPH.match(name) or (name.lower().endswith(".json") and not _EXTRA.match(name)):
            _check_json(path, name, content)
    return parts


def program_parts(parts: dict[str, bytes]) -> list[str]:
    """The names of the parts that are graphs."""
    return [name for name in parts if _GRAPH.match(name)]


@contextmanager
def _without_pickles() -> Iterator[None]:
    """Restricts ``torch.load`` to tensors and plain values, whatever its callers ask for."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _check_json(path: Path, name: str, content: bytes) -> None:
    try:
        _check_value(json.loads(content), "")
    except RecursionError as error:
        raise ValueError(f"{path}: {name} is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: {name} is not what torch.export.save writes: {error}") from error


def _check_value(value: Any, key: str) -> None:
    """Checks every string according to its key, or the key of the list that holds it."""
    if isinstance(value, dict):
        for inner, item in value.items():
            _check_word(inner)
            if not _is_metadata(inner, item):
                _check_value(item, inner)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, key)
    elif not isinstance(value, str):
        return
    elif any(word in value for word in _IMPORTS):
        raise ValueError(f"it imports a module: {value[:80]!r}")
    elif key in ("expr_str", "guards_code"):
        _check_expression(value)
    elif key == "target":
        if not _TARGET.fullmatch(value) or value.startswith(_TARGETS_WITH_FILES):
            raise ValueError(f"it calls {value[:80]!r}")
    elif key not in _PLAIN_TEXT:
        _check_word(value)


def _is_metadata(key: str, value: Any) -> bool:
    """Whether this is what a node or graph says about where it comes from; no size or name is taken from there."""
    is_flat = key == "metadata" and isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return is_flat and not value.keys() & {"expr_str", "as_expr"}


def _check_word(value: str) -> None:
    if not _WORD.fullmatch(value):
        raise ValueError(f"it has {value[:80]!r} for a name")


def _check_expression(text: str) -> None:
    """Checks that an expression is only about sizes: it is evaluated as Python, by sympy or as a guard of inputs."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"it has {text[:80]!r} for a size") from error
    for node in nodes:
        is_plain = isinstance(node, _EXPRESSION_PARTS)
        if isinstance(node, ast.Call):
            is_plain = isinstance(node.func, ast.Attribute) or getattr(node.func, "id", None) in _CALLS
        elif isinstance(node, ast.Attribute):
            is_plain = node.attr in _MEASURES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            is_plain = node.value.isidentifier()
        elif isinstance(node, ast.Name):
            is_plain = "__" not in node.id
        if not is_plain:
            raise ValueError(f"it has {text[:80]!r} for a size")
