"""Processes that end when their parent ends, even by kill -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PULSE = 0.5
"""Seconds between two looks at the parent, where the kernel is not asked."""


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Linux: have the kernel send this process a signal when its parent is gone. For `preexec_fn`, or at a start."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, number)


def end_without(parent: int) -> None:
    """End this process, without any cleaning up, as soon as that is not its parent (any more)."""

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(PULSE)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
