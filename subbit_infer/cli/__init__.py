"""The ``subbit`` command."""

from subbit_infer.cli.app import app, main

__all__ = ["app", "main"]
