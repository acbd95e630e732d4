"""A shell of an agent, locked up: one folder to write in, no network, no other processes, limits of time and size.

Linux namespaces by util-linux alone (`unshare`, `mount`, `pivot_root`, `setpriv`), without root: commands see the
system's programs read-only, their folder as /work, and nothing else of the machine. What they leave behind is in the
folder. A shell is opened for an episode; its processes end with it.
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass

from flywheel.errors import InfrastructureError, PrerequisiteError

PROGRAMS = ("unshare", "mount", "umount", "pivot_root", "setpriv", "prlimit", "timeout", "base64")
KILLED = 124
"""Status of a command that ran out of time, as of `timeout`."""
START_SECONDS = 30.0
GRACE_SECONDS = 5.0
"""How much longer than its limit a command may take to be killed, before the shell counts as lost."""
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc")
_LOCK_UP = """
set -e
root=$1 work=$2 readable=$3 hide=$4; shift 4
mount -t tmpfs -o size=64m,mode=755 tmpfs "$root"
cd "$root"
mkdir usr etc proc dev tmp work software old
mount -o bind,ro /usr usr
for name in bin sbin lib lib64; do
  if [ -L "/$name" ]; then ln -s "usr/$name" "$name"
  elif [ -d "/$name" ]; then mkdir "$name"; mount -o bind,ro "/$name" "$name"; fi
done
if [ -d /etc/alternatives ]; then mkdir etc/alternatives; mount -o bind,ro /etc/alternatives etc/alternatives; fi
mount --bind "$work" work
if [ -n "$readable" ]; then
  mount -o bind,ro "$readable" software
  for hidden in $hide; do [ ! -d "software/$hidden" ] || mount -t tmpfs -o size=0,ro tmpfs "software/$hidden"; done
fi
for name in null zero urandom; do : > dev/$name; mount --bind /dev/$name dev/$name; done
mount -t proc proc proc
pivot_root . old
umount -l old
rmdir old
cd /work
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- sh -c "$@"
"""
_SERVE = """
echo ready
while read -r seconds most command; do
  printf %s "$command" | base64 -d > /tmp/.command
  status=0
  timeout -k 1 "$seconds" sh /tmp/.command < /dev/null > /tmp/.output 2>&1 || status=$?
  echo "$status $(head -c "$most" /tmp/.output | base64 -w 0)"
done
"""
"""Reads commands and answers each with its status and what it said, a line each."""
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_AUTHOR_NAME": "agent",
    "GIT_AUTHOR_EMAIL": "agent@example.com",
    "GIT_COMMITTER_NAME": "agent",
    "GIT_COMMITTER_EMAIL": "agent@example.com",
}
"""The same each time, so that the same commands say the same."""


@validated_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Limits:
    """Of one command. `file_mib`: of each file that it writes."""

    seconds: float = Field(default=10.0, gt=0, le=600)
    memory_mib: int = Field(default=512, gt=0)
    file_mib: int = Field(default=64, gt=0)
    output_chars: int = Field(default=4000, gt=0, le=100_000)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command said, output and errors in one, and its exit status."""

    output: str
    status: int


class LockedShell:
    """A shell that may write in `folder` alone (its /work). `readable`: another one that it sees, as /software, but for
    the folder `hidden` in it.

    Raises `PrerequisiteError` where the machine cannot lock it up.
    """

    def __init__(self, folder: Path, limits: Limits, readable: Path | None = None, hidden: str = "") -> None:
        if missing := [name for name in PROGRAMS if not shutil.which(name, path=_ENVIRONMENT["PATH"])]:
            raise PrerequisiteError(f"a shell needs {missing[0]} of util-linux and coreutils, on Linux")
        self._limits = limits
        self._root = tempfile.TemporaryDirectory(prefix="flywheel-root-")
        bounds = (f"--as={limits.memory_mib << 20}", f"--fsize={limits.file_mib << 20}", "--core=0")
        places = (self._root.name, str(folder.resolve()), str(readable.resolve()) if readable else "", hidden)
        self._process = subprocess.Popen(
            ("prlimit", *bounds, *_NAMESPACES, "sh", "-c", _LOCK_UP, "sh", *places, _SERVE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        if (first := self._line(START_SECONDS)) != "ready":
            self.close()
            raise PrerequisiteError(f"a shell cannot be locked up on this machine: {first or 'it does not start'}")

    def run(self, command: str) -> Ran:
        """Run one. Raises `InfrastructureError` where the shell is lost."""
        limits, encoded = self._limits, base64.b64encode(command.encode()).decode()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{limits.seconds:g} {4 * limits.output_chars + 4} {encoded}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise InfrastructureError(f"the shell is gone: {error}") from error
        status, _, output = self._line(limits.seconds + GRACE_SECONDS).partition(" ")
        if not status.isdigit():
            raise InfrastructureError(f"the shell is gone, or does not answer: {status[:200]}")
        text = base64.b64decode(output).decode(errors="replace")
        if len(text) > limits.output_chars:
            text = f"{text[: limits.output_chars]}\n[cut]"
        killed = f"{text}\n[killed after {limits.seconds:g} s]"
        return Ran(killed if int(status) == KILLED else text, int(status))

    def close(self) -> None:
        """End it with all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self._root.cleanup()

    def _line(self, seconds: float) -> str:
        """The next line of its output; empty where it says nothing for so long, or has ended."""
        assert self._process.stdout is not None
        descriptor, read, deadline = self._process.stdout.fileno(), b"", time.monotonic() + seconds
        while not read.endswith(b"\n"):
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, 1 << 16) if ready else b""
            if not chunk:
                return ""
            read += chunk
        return read.decode(errors="replace").strip()


@contextmanager
def locked_shell(folder: Path, limits: Limits, readable: Path | None = None, hidden: str = "") -> Iterator[LockedShell]:
    """A shell that is closed again."""
    shell = LockedShell(folder, limits, readable, hidden)
    try:
        yield shell
    finally:
        shell.close()


@cache
def sandbox_problem() -> str:
    """Why no shell can be locked up on this machine; empty where one can."""
    try:
        with tempfile.TemporaryDirectory() as folder, locked_shell(Path(folder), Limits()):
            return ""
    except PrerequisiteError as error:
        return str(error)
