"""Where the files of a lake lie: a local folder, or a bucket of S3-compatible storage.

Both take a finished file under a name that nobody used before, whole or not at all, and never overwrite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from flywheel.datasets.files import Source, sync_directory, writing
from flywheel.errors import LakeError

SEGMENTS = "segments"
QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is there. `modified` in seconds since the epoch."""

    bytes: int
    modified: float


class Storage(Protocol):
    """The files of one lake, by name."""

    filesystem: Any
    """What DuckDB and PyArrow open addresses with; None for local files."""
    name: str

    def address(self, name: str) -> str:
        """Path or URL of a file."""

    def publish(self, staged: Path, name: str) -> None:
        """Move a finished local file into the lake."""

    def listing(self) -> dict[str, Entry]:
        """Every file by name."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; one that is gone already is no error."""

    def set_aside(self, name: str) -> str:
        """Move a file into quarantine. Where it lies now."""


def source(storage: Storage, name: str) -> Source:
    """What `flywheel.datasets.files` reads."""
    return storage.address(name), storage.filesystem


class LocalStorage:
    """Files under a folder: renamed into place, the directory synced."""

    filesystem: Any = None

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._segments = (folder / SEGMENTS).absolute()
        self._quarantine = (folder / QUARANTINE).absolute()
        self._segments.mkdir(parents=True, exist_ok=True)

    def address(self, name: str) -> str:
        return str(self._segments / name)

    def publish(self, staged: Path, name: str) -> None:
        with writing(self._segments / name):
            staged.replace(self._segments / name)
            sync_directory(self._segments)

    def listing(self) -> dict[str, Entry]:
        found = {}
        for path in self._segments.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # deleted while we looked
            found[path.name] = Entry(status.st_size, status.st_mtime)
        return found

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self._segments / name).unlink(missing_ok=True)
        sync_directory(self._segments)

    def set_aside(self, name: str) -> str:
        self._quarantine.mkdir(exist_ok=True)
        (self._segments / name).replace(self._quarantine / name)
        return str(self._quarantine / name)


class ObjectStorage:
    """Files in a bucket through fsspec: conditional puts (`If-None-Match: *`), so that no writer replaces a file.

    Key, secret, region and endpoint come from where the AWS tools look for them.
    """

    def __init__(self, url: str) -> None:
        try:
            self.filesystem: Any = fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise LakeError(f"cannot open {url}: {error}; pip install 'trajectory-flywheel[s3]'") from error
        self.name = url.rstrip("/")

    def address(self, name: str) -> str:
        return f"{self.name}/{SEGMENTS}/{name}"

    def publish(self, staged: Path, name: str) -> None:
        with writing(Path(self.address(name))):
            self.filesystem.pipe_file(self.address(name), staged.read_bytes(), mode="create")
        staged.unlink()

    def listing(self) -> dict[str, Entry]:
        try:
            found = self.filesystem.find(f"{self.name}/{SEGMENTS}/", detail=True)
        except (OSError, ValueError) as error:
            raise LakeError(f"cannot list {self.name}: {error}; check its address and your credentials") from error
        return {
            path.rpartition("/")[2]: Entry(entry["size"], entry["LastModified"].timestamp())
            for path, entry in found.items()
        }

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            if self.filesystem.exists(self.address(name)):
                self.filesystem.rm_file(self.address(name))

    def set_aside(self, name: str) -> str:
        target = f"{self.name}/{QUARANTINE}/{name}"
        self.filesystem.mv(self.address(name), target)
        return target


def storage_at(place: str) -> Storage:
    """The storage under a path or URL."""
    return ObjectStorage(place) if "://" in place else LocalStorage(Path(place))
