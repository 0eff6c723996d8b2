"""The figures of a paper, one module each; `ppdm_bench.report.paper_registry` lists them.

Each `show` makes an exhibit from a library. If records are missing, it raises `Missing` with
the command that makes them.
"""
