"""Tables and figures, made only from records.

``tables`` turns records into tables, ``figures`` draws them, ``paper`` has the figures of the paper, ``claims`` decides
the claims of the abstract. None of them imports PyTorch or a model, so that results can be tabulated and drawn again
years later, on a machine that could not have produced them. This file imports nothing: figures need matplotlib, which
tables do not need.
"""
