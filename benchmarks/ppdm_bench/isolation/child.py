"""Common part of every child process: read a request, write the answer, and exit when the parent exits.

PyTorch is imported only to classify a failure, so that a child that does not need it starts fast.
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

# Messages of PyTorch's CPU allocator, cuDNN and cuBLAS; none of them raises a specific exception type.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a JSON request from standard input and write the answer to the open file that the request names.

    The answer has a separate file, so that output printed by a method cannot be mistaken for it.
    """
    request = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    content = json.dumps(answer(request))
    with open(request["answer"], "w") as stream:
        stream.write(content)


def failure(error: Exception) -> dict[str, str]:
    """Status and reason of a measurement that raised an exception."""
    from ppdm_bench.memory.workload import fault

    if _ran_out_of_memory(error):
        return {"status": "oom", "reason": _shortage(error)}
    return {"status": "error", "reason": fault(error)}


def _end_with(parent: int) -> None:
    """Exit when the parent exits: a killed parent cannot stop its children, which would keep the device occupied.

    The request contains the parent's process ID, because the parent may exit while this process is still importing;
    ``os.getppid`` then returns another process.
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


def _shortage(error: Exception) -> str:
    """The allocation error without PyTorch's source location at the start and its advice at the end."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return ". ".join(text.split(". ")[:2]).rstrip(".") or "the system's memory does not suffice"
