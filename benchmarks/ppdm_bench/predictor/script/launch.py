"""Entry point of the child process: import the predictor without changing the module search path.

The interpreter is the one in the user's command. Its environment needs PyTorch, but not this package.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = "ppdm_bench"
NO_TORCH = 90  # exit code of an interpreter without PyTorch


def start() -> None:
    """Import the package from its folder, and run the request whose path is the only argument."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this file
    try:
        import torch  # noqa: F401
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_TORCH)
    folder = Path(__file__).parents[2]
    found = spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert found is not None
    assert found.loader is not None
    sys.modules[PACKAGE] = package = module_from_spec(found)
    found.loader.exec_module(package)
    from ppdm_bench.predictor.script.child import run_request

    run_request(Path(sys.argv[1]))


if __name__ == "__main__":
    start()
