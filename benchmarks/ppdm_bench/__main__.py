"""``python -m ppdm_bench``: the command line without an installation."""

from ppdm_bench.cli import main

main()
