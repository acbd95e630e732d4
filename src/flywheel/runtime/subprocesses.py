"""Starting Python in other processes: nothing of the current folder is imported by accident.

`python -m` puts the current folder first on the path, so that a file `secrets.py` there would run in place of the
library's. Children start in safe-path mode and get the folders that this process was explicitly given.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

SAFE_PATH = "PYTHONSAFEPATH"


def python_command(*arguments: str) -> list[str]:
    """The command that runs this interpreter with some arguments, in safe-path mode."""
    return [sys.executable, "-P", *arguments]


def child_environment(**overrides: str) -> dict[str, str]:
    """This process's environment for a child in Python, with `overrides`; the child's own children are safe as well."""
    default_folders = {
        Path(path) for path in (*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages())
    }
    default_folders |= {folder / "lib-dynload" for folder in default_folders}
    added = [entry for entry in sys.path if entry and Path(entry).exists() and Path(entry) not in default_folders]
    return {**os.environ, SAFE_PATH: "1", "PYTHONPATH": os.pathsep.join(added), **overrides}


def stay_safe() -> None:
    """Have every process that this one starts from now on begin in safe-path mode."""
    os.environ[SAFE_PATH] = "1"
