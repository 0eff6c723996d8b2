"""The pairs of a folder: how well-known data sets name their files, who is in which split, and how SUV is had."""

from ppdm.data.layouts.pairing import pairs_from_folder
from ppdm.data.layouts.presets import LAYOUTS, Layout, LayoutError

__all__ = ["LAYOUTS", "Layout", "LayoutError", "pairs_from_folder"]
