"""The figures of a paper, one module each; `ppdm_bench.report.registry` lists them."""
