"""Evaluation: metrics of predictions against targets, subject by subject."""
