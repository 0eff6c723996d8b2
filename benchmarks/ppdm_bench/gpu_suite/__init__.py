"""Everything that needs a GPU, in pieces that each end within ten minutes."""
