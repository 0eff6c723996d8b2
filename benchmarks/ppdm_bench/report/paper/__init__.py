"""The figures of a paper, one module each; `ppdm_bench.report.paper_registry` lists them."""
