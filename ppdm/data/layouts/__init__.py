"""Pairs from a folder: file names of well-known data sets, splits, and the SUV factors of PET scans."""

from ppdm.data.layouts.pairing import pairs_from_folder
from ppdm.data.layouts.presets import LAYOUTS, Layout, LayoutError

__all__ = ["LAYOUTS", "Layout", "LayoutError", "pairs_from_folder"]
