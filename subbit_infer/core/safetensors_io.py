"""Safetensors files and their metadata, read with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A safetensors file, opened; its header has been checked against its size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or is cut off.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def check_format(path: str | os.PathLike[str], metadata: Mapping[str, str], name: str, version: int) -> None:
    """Checks that a file's metadata name this format in this version.

    Raises:
        ValueError: it is another format, or another version of it.
    """
    if metadata.get("format") != name:
        raise ValueError(f"{path} must have format {name!r} in its metadata, got {metadata.get('format')!r}")
    given = metadata.get("version", "")
    if given == str(version):
        return
    # So many digits at most, that they are quickly read.
    is_newer = given.isdecimal() and len(given) < 10 and int(given) > version
    newer = f"version {given}: made by a newer subbit_infer; update" if is_newer else "no such version"
    raise ValueError(f"{path} must have format version {version}, got {given[:80]!r} ({newer})")


def json_object(path: str | os.PathLike[str], metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """The JSON object that a file's metadata hold under a key.

    Raises:
        ValueError: there is none.
    """
    try:
        found = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata {key!r} must be a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the metadata {key!r} must be a JSON object, got {type(found).__name__}")
    return found
