"""Common code of child processes: read a request, write the answer, and exit when the parent exits.

This module imports PyTorch only to classify a failure, so that children without PyTorch start fast.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Parts of messages of PyTorch's CPU allocator, cuDNN and cuBLAS, which raise no specific exception type.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a JSON request from standard input and write the answer to the open file that the request names.

    The answer has its own file, so that it cannot be mixed with output that a method prints.
    """
    request = json.load(sys.stdin)
    threading.Thread(target=_exit_with, args=(request["parent"],), daemon=True).start()
    content = json.dumps(answer(request))
    with open(request["answer"], "w") as stream:
        stream.write(content)


def failure(error: Exception) -> dict[str, str]:
    """Return status and reason of a measurement that raised an exception."""
    from ppdm_bench.memory.workload import fault

    if _ran_out_of_memory(error):
        return {"status": "oom", "reason": _allocation_error(error)}
    return {"status": "error", "reason": fault(error)}


def _exit_with(parent: int) -> None:
    """Exit when the parent exits: a killed parent cannot stop its children, which would keep the device busy.

    The request contains the parent's process ID: if the parent exits while this process is still importing,
    ``os.getppid`` returns the ID of another process.
    """
    while os.getppid() == parent:
        time.sleep(1)
    if os.getpgrp() == os.getpid():  # the runner started it in its own process group
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _ran_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _allocation_error(error: Exception) -> str:
    """Return the text of an allocation error without PyTorch's source location and advice."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return ". ".join(text.split(". ")[:2]).rstrip(".") or "the memory of the system is not sufficient"
