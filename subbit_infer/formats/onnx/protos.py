"""ONNX files: fully checked when read, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from subbit_infer.core.atomic import replacing

_MOST_BYTES = 2**31 - 1  # of a protobuf message


def read(path: str | os.PathLike[str]) -> ModelProto:
    """Reads and checks a file, with its external data.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a valid ONNX model, or its external data is missing, outside its folder or broken.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        model = onnx.load_model(path, format="protobuf")
        onnx.checker.check_model(model)
    except DecodeError as error:
        raise ValueError(f"{path} is not a readable ONNX file: it is no protobuf message, or cut off") from error
    except (onnx.checker.ValidationError, ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a valid ONNX file: {first_line(error)}") from error
    return model


def write(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Writes a model to one file, replacing it at once or, on failure, leaving it as it was.

    Raises:
        OSError: the file cannot be written.
        ValueError: the model takes 2 GiB or more, which one protobuf message cannot hold.
    """
    target = Path(path)
    try:
        data = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ValueError(f"{target} would take 2 GiB or more, which a file without external data cannot") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{target} would take {len(data)} bytes, a file without external data at most {_MOST_BYTES}")
    with replacing(target) as temporary:
        temporary.write_bytes(data)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
