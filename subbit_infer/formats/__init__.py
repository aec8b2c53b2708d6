"""Converted models as one safetensors file, and what such a file holds."""

from subbit_infer.formats.header import FORMAT, FORMAT_VERSION
from subbit_infer.formats.inspect import FileInfo, LayerInfo, inspect
from subbit_infer.formats.model import load, save

__all__ = ["FORMAT", "FORMAT_VERSION", "FileInfo", "LayerInfo", "inspect", "load", "save"]
