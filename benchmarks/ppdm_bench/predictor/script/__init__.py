"""Peak memory of an unmodified training script: it runs in a child process under prediction, for a few optimizer steps.

``invocation`` reads the command line, ``prediction`` starts the child and reports, ``launch`` and ``child`` run in it,
``overlay`` keeps the files that the script writes away from their places.
"""
