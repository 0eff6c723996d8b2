"""``ppdm-bench ablate``: variations of a method (cells), with the cost and the quality of each."""
