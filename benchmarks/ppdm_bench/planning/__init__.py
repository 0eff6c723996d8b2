"""What a budget of memory carries: answers found by search over predictions, never by a formula."""
