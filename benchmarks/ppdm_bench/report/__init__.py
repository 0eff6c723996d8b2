"""Tables and figures, made only from records.

``tables`` turns records into tables, ``figures`` draws them, ``paper`` has the figures of a paper, ``claims`` decides
the claims of the abstract. None of them imports torch or a model, so a result can be tabulated and drawn again years
later, on a machine that could not have produced it. Nothing is imported here: tables are light, figures are not.
"""
