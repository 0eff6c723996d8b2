"""Peak memory of an unmodified training script: a child process runs it on fake tensors for a few optimizer steps.

``invocation`` parses the command line, ``prediction`` starts the child process and returns the result, ``launch`` and
``child`` run in the child process, and ``overlay`` redirects the files that the script writes to a temporary folder.
"""
