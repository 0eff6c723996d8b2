"""Training: one loop for every method; an interrupted run resumes with bit-identical results."""
