"""``ppdm-bench ablate``: cells around a method, with the cost and the quality of each."""
