"""Run commands of ``ppdm-bench`` in this process, with the arguments of a command line."""

import contextlib
import io
import signal
import sys

import pytest

from ppdm_bench import cli


def run(*words: object) -> tuple[int, str, str]:
    """Run a command in this process, and return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    arguments, sys.argv = sys.argv, ["ppdm-bench", *map(str, words)]
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = arguments
        signal.signal(signal.SIGTERM, handler)
    return int(end.value.code or 0), out.getvalue(), err.getvalue()


def refused(code: int, *words: object) -> str:
    """Check that a command fails with this exit code and only an error message, and return the message."""
    got, out, err = run(*words)
    assert (got, out) == (code, ""), err
    assert err.startswith("ppdm-bench: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    return err
