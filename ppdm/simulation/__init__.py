"""Synthetic data: phantoms, PET and MRI simulation. Nothing here imports torch."""
