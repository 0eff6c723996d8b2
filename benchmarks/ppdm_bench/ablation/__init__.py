"""``ppdm-bench ablate``: cells around a method, what each costs, and how good it is."""
