"""Planning for a memory budget: answers come from a search over predictions, not from a formula."""
