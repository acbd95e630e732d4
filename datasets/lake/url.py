"""Where a lake is: a folder, or the URL of a catalog with the place of its files.

data/quickstart                                                     SQLite and files in one folder
postgresql://user@host/flywheel?files=s3://bucket/lake              several machines
postgresql://user@host/flywheel?files=/mnt/lake                     a shared disk
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from flywheel.errors import LakeError
from flywheel.trajectory import digest

CATALOG_FILE, PARTS = "catalog.sqlite", "parts"
SECRETS = frozenset({"password", "passfile", "sslpassword"})
"""Parameters of a URL that are none of its business."""
EXAMPLE = "postgresql://user@host/flywheel?files=s3://bucket/lake"


@dataclass(frozen=True, slots=True)
class LakeUrl:
    """`catalog` and `files` are shared; `root` is this machine's folder for students, reports and staging."""

    catalog: URL
    files: str
    root: Path
    name: str
    """For people."""


def parse_lake_url(where: Path | str, root: Path | None = None) -> LakeUrl:
    """The place that a folder or URL names. Raises `LakeError` for one that names none."""
    text = str(where)
    if "://" not in text:
        folder = Path(text)
        return LakeUrl(URL.create("sqlite", database=str(folder / CATALOG_FILE)), text, root or folder, text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise LakeError(f"not the URL of a lake; it looks like {EXAMPLE}") from error
    if url.password is not None or SECRETS & url.query.keys():
        raise LakeError("a lake's URL must not hold a password, it is shown and stored; use PGPASSWORD or ~/.pgpass")
    files = url.query.get("files", "")
    catalog = url.difference_update_query(["files"])
    name = catalog.render_as_string()
    if catalog.get_backend_name() not in ("postgresql", "sqlite"):
        raise LakeError(f"{name}: a catalog is a folder, sqlite:// or postgresql://, as in {EXAMPLE}")
    if not isinstance(files, str) or not files:
        raise LakeError(f"{name} does not say where its files lie; add ?files=…, as in {EXAMPLE}")
    local_root = root or (Path(files) if "://" not in files else _cache() / digest(name, files))
    return LakeUrl(catalog, files, local_root, name)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flywheel"


def refuse_lost_catalog(place: LakeUrl) -> None:
    """Raise `LakeError` for files without a catalog that lists them: that is damage, not an empty lake."""
    if place.catalog.get_backend_name() != "sqlite" or "://" in place.files:
        return
    catalog, parts = Path(place.catalog.database or ""), Path(place.files) / PARTS
    what = "is missing"
    if catalog.is_file():
        what = "is empty" if catalog.stat().st_size == 0 else "lists no files" if _lists_nothing(catalog) else ""
    if what and any(parts.glob("*.parquet")):
        raise LakeError(
            f"{catalog} {what}, and files of a lake lie beside it: the lake is damaged; bring back a backup with "
            f"`flywheel lake restore BACKUP --data-dir NEW`, or the catalog alone from one"
        )


def _lists_nothing(catalog: Path) -> bool:
    """Is it a database of something else? One that cannot be read at all is reported where it is opened."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(catalog.absolute()))}?mode=ro", uri=True)) as connection:
            return not connection.execute("select 1 from sqlite_master where name = 'part'").fetchall()
    except sqlite3.Error:
        return False
