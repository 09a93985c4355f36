"""Reads a network, never a kernel: sizes, memory, operations, receptive field, depth, claims."""

from .inspect import Report, Row, inspect_model
from .receptive_field import Field
from .render import render

__all__ = ["Field", "Report", "Row", "inspect_model", "render"]
