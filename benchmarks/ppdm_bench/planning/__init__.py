"""Find the settings that fit into a memory budget, by a search over predictions."""
