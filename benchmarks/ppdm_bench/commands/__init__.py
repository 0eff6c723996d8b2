"""The commands of ``ppdm-bench``: one module for each, and the options that they share."""
