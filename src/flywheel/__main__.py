"""`python -m flywheel`, and what torchrun starts."""

import os
import sys

from flywheel.cli import main

try:
    main()
except SystemExit as stop:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo may outlive the interpreter and abort it: once in some forty runs of two sharded processes.
    os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
