"""Tables and figures, made from records alone.

`table` turns records into a wide table and prints it; `figure` draws them. Neither imports torch or a model, so a
result can be tabulated and drawn again years later, on a machine that could not have produced it. Nothing is imported
here: `from ppdm_bench.report import table` is light, matplotlib comes with `figure`.
"""
