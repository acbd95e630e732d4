"""`python -m flywheel`, and what torchrun starts."""

import os
import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()] and Path(__file__).parents[1] != Path.cwd():  # noqa: PTH109
    del sys.path[0]  # nothing of the current folder is imported by accident

from flywheel.cli.main import main

try:
    main()
except SystemExit as stop:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo may outlive the interpreter and abort it: once in some forty runs of two sharded processes.
    os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
