"""Data: NIfTI volumes, manifests of pairs, and how intensities become network values. Nothing here imports torch."""
