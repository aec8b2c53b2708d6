"""Converts models: detects sub-bit weights and puts sub-bit layers in."""
