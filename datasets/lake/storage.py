"""Where the files of a lake lie: a local folder, or a bucket of S3-compatible storage.

Both take a finished file under a name that nobody used before, whole or not at all, and never overwrite.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from flywheel.datasets.lake.files import Source, sync_directory, writing
from flywheel.datasets.lake.url import PARTS
from flywheel.errors import LakeError

QUARANTINE = "quarantine"
CACHED = 32 << 20
"""Larger files are read where they lie, in parts."""
REQUESTS = 16
"""Downloads at once."""
SETTLED = 60.0
"""Seconds after which a cached file that no listing shows has left the lake."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is there. `modified` in seconds since the epoch."""

    bytes: int
    modified: float


class Storage(Protocol):
    """The files of one lake, by name."""

    filesystem: Any
    """What DuckDB and PyArrow open URLs with; None for local files."""
    name: str

    def fetch(self, names: Sequence[str]) -> dict[str, str]:
        """What to read each file from: a path, here or in a cache, or the URL of a large one."""

    def address(self, name: str) -> str:
        """Path or URL of a file."""

    def length(self, address: str) -> int:
        """Bytes of a file."""

    def publish(self, staged: Path, name: str) -> None:
        """Move a finished local file into the lake."""

    def listing(self) -> dict[str, Entry]:
        """Every file by name."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; a missing one is no error."""

    def set_aside(self, name: str) -> str:
        """Move a file into quarantine. Where it lies now."""


def source(storage: Storage, name: str) -> Source:
    """What `flywheel.datasets.lake.files` reads."""
    place = storage.fetch([name])[name]
    return place, storage.filesystem if "://" in place else None


def is_read_only(folder: Path) -> bool:
    """Is it there, on a mount that takes no writes, or without permission to write?"""
    return folder.is_dir() and not os.access(folder, os.W_OK)


class LocalStorage:
    """Files under a folder: renamed into place, the directory synced."""

    filesystem: Any = None

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._parts = (folder / PARTS).absolute()
        self._quarantine = (folder / QUARANTINE).absolute()
        if not is_read_only(folder):
            self._parts.mkdir(parents=True, exist_ok=True)

    def fetch(self, names: Sequence[str]) -> dict[str, str]:
        return {name: self.address(name) for name in names}

    def address(self, name: str) -> str:
        return str(self._parts / name)

    def length(self, address: str) -> int:
        return Path(address).stat().st_size

    def publish(self, staged: Path, name: str) -> None:
        with writing(self._parts / name):
            staged.replace(self._parts / name)
            sync_directory(self._parts)

    def listing(self) -> dict[str, Entry]:
        entries = {}
        for path in self._parts.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # deleted while we looked
            entries[path.name] = Entry(status.st_size, status.st_mtime)
        return entries

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self._parts / name).unlink(missing_ok=True)
        sync_directory(self._parts)

    def set_aside(self, name: str) -> str:
        self._quarantine.mkdir(exist_ok=True)
        (self._parts / name).replace(self._quarantine / name)
        return str(self._quarantine / name)


class ObjectStorage:
    """Files in a bucket through fsspec: conditional puts (`If-None-Match: *`), so that no writer replaces a file.

    Key, secret, region and endpoint come from where the AWS tools look for them. Files never change, so small ones,
    which would cost several requests each time, are kept in a local cache; what leaves the lake leaves the cache.
    """

    def __init__(self, url: str, cache: Path) -> None:
        try:
            self.filesystem: Any = fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise LakeError(f"cannot open {url}: {error}; pip install 'trajectory-flywheel[s3]'") from error
        self.name = url.rstrip("/")
        self._cache = cache
        self._cache.mkdir(parents=True, exist_ok=True)

    def fetch(self, names: Sequence[str]) -> dict[str, str]:
        missing = [name for name in names if not (self._cache / name).is_file()]
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(self._download, missing))
        kept = {name: self._cache / name for name in names}
        return {name: str(path) if path.is_file() else self.address(name) for name, path in kept.items()}

    def _download(self, name: str) -> None:
        """Keep a small file; a large or missing one stays where it is, or is not."""
        try:
            if self.filesystem.size(self.address(name)) > CACHED:
                return
            data = self.filesystem.cat_file(self.address(name))
        except FileNotFoundError:
            return
        draft = self._cache / f".{name}.{uuid.uuid4().hex}"
        with writing(draft):
            draft.write_bytes(data)
            draft.replace(self._cache / name)

    def address(self, name: str) -> str:
        return f"{self.name}/{PARTS}/{name}"

    def length(self, address: str) -> int:
        return int(self.filesystem.size(address))

    def publish(self, staged: Path, name: str) -> None:
        try:
            self.filesystem.pipe_file(self.address(name), staged.read_bytes(), mode="create")
        except Exception as error:  # as above
            reason = " ".join(str(error).split())
            raise LakeError(f"cannot write {self.address(name)}: {reason}; fix it and run again") from error
        finally:
            staged.unlink()

    def listing(self) -> dict[str, Entry]:
        try:
            objects = self.filesystem.find(f"{self.name}/{PARTS}/", detail=True)
        except Exception as error:  # every kind of storage has a tree of errors of its own
            reason = " ".join(str(error).split())
            raise LakeError(f"cannot list {self.name}: {reason}; check its address and your credentials") from error
        entries = {
            path.rpartition("/")[2]: Entry(entry["size"], entry["LastModified"].timestamp())
            for path, entry in objects.items()
        }
        self._forget(entries)
        return entries

    def _forget(self, entries: Container[str]) -> None:
        """Drop what has left the lake from the cache; what came a moment ago may be newer than the listing."""
        before = time.time() - SETTLED
        for path in self._cache.iterdir():
            if path.name not in entries:
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        path.unlink()

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            (self._cache / name).unlink(missing_ok=True)
            if self.filesystem.exists(self.address(name)):
                self.filesystem.rm_file(self.address(name))

    def set_aside(self, name: str) -> str:
        (self._cache / name).unlink(missing_ok=True)
        target = f"{self.name}/{QUARANTINE}/{name}"
        self.filesystem.mv(self.address(name), target)
        return target


def storage_at(place: str, cache: Path) -> Storage:
    """The storage under a path or URL."""
    return ObjectStorage(place, cache) if "://" in place else LocalStorage(Path(place))
