"""Data: NIfTI volumes, manifests of pairs, and intensity scaling. This package does not import torch."""
