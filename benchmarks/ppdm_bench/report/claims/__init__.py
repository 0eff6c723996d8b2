"""The claims of the paper's abstract: rules, effects and verdicts."""
