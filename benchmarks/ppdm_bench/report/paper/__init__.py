"""The figures of a paper, one module each; `ppdm_bench.report.paper_registry` lists them.

Each `show` returns the content of a figure from a library. If records are missing, it raises `MissingRecords`, which
names the command that makes them.
"""
