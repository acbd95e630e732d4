"""The lake: immutable Parquet parts and a catalog; trajectories go in exactly once, SQL comes out.

A commit writes its files first and then takes one short transaction, whose primary key on trajectory ids decides
what is new. Killed at any moment, the lake holds a trajectory with all its steps or not at all.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa
from sqlalchemy import Connection, Table, func, insert, select

from flywheel.arrow import (
    ARROW_SCHEMAS,
    images_to_arrow,
    steps_to_arrow,
    trajectories_from_arrow,
    trajectories_to_arrow,
)
from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import (
    FACT,
    PART,
    REDACTION,
    SNAPSHOT,
    TRAJECTORY,
    Catalog,
    has_catalog,
    new_snapshot,
    now,
)
from flywheel.datasets.lake.derived import SOURCES, steps_with_text, trajectories_with_text
from flywheel.datasets.lake.files import Source, Written, flaw_of, read_rows, read_steps, write_parquet
from flywheel.datasets.lake.part_files import file_name, part_row, redaction_rows
from flywheel.datasets.lake.reading import Files, QueryLimits, open_views, run_query
from flywheel.datasets.lake.redaction import redacted
from flywheel.datasets.lake.results import Result, streamed
from flywheel.datasets.lake.snapshots import catalog_tables, files_of, part_rows
from flywheel.datasets.lake.storage import is_read_only, source, storage_at
from flywheel.datasets.lake.url import LakeUrl, parse_lake_url, refuse_lost_catalog
from flywheel.datasets.lake.views import PARQUET_KINDS, kinds_of
from flywheel.errors import LakeError
from flywheel.messages import Image
from flywheel.trajectory import Trajectory

CHEAP_BYTES = 16 << 20
"""So much is held against its checksums before every query of the command line."""
LOOKUP = 500
"""Keys of one catalog query."""
Tables = Iterable[pa.Table]
Contents = tuple[Files, dict[str, pa.Table]]


class Lake:
    """One lake. Safe for several processes at once; on several machines with PostgreSQL and S3-compatible storage."""

    def __init__(self, where: Path | str | LakeUrl, *, create: bool = False, redact: Sequence[str] = ()) -> None:
        place = where if isinstance(where, LakeUrl) else parse_lake_url(where)
        refuse_lost_catalog(place)
        if not create and not has_catalog(place.catalog):
            raise LakeError(f"no lake at {place.name}; run `flywheel run` first, or point data_dir at an existing one")
        self.place, self.root, self.name = place, place.root, place.name
        self.redact = tuple(redact)
        """Optional kinds of personal data that are replaced before anything is written."""
        self.staging = place.root / "staging"
        try:
            if not is_read_only(place.root):
                self.staging.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(f"cannot write to {place.root}: {error.strerror}; set another data_dir") from error
        self.storage = storage_at(place.files, place.root / "cache")
        self.catalog = Catalog(place.catalog)

    @classmethod
    def open(cls, url: Path | str, *, create: bool = False) -> Self:
        """The lake in a folder or at a URL (see `flywheel.datasets.lake.url`).

        Lake.open("data/quickstart").sql("from trajectories limit 5").to_pandas()
        """
        return cls(url, create=create)

    @classmethod
    def of(cls, config: Config, *, create: bool = False) -> Self:
        """The lake of a flywheel: `lake.url`, or else `data_dir`."""
        return cls(_place(config), create=create, redact=config.lake.redact)

    @classmethod
    def exists(cls, config: Config) -> bool:
        """False where `of` would have to create one."""
        return has_catalog(_place(config).catalog)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.catalog.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def append(self, trajectories: Sequence[Trajectory], message: str) -> int:
        """Commit trajectories with all their steps; ids already there are left out. How many were new."""
        by_id = {trajectory.trajectory_id: trajectory for trajectory in trajectories}

        def tables_of(fresh: Sequence[str]) -> dict[str, Tables]:
            new = [by_id[trajectory_id] for trajectory_id in fresh]
            files: dict[str, Tables] = {"trajectories": [trajectories_to_arrow(new)], "steps": steps_to_arrow(new)}
            if any(trajectory.images for trajectory in new):
                files["images"] = images_to_arrow(new)
            return files

        return self._commit(TRAJECTORY, "trajectories", by_id, tables_of, message)

    def append_facts(self, kind: str, table: pa.Table, message: str, *, key: Sequence[str] = ()) -> int:
        """Commit late facts (verdicts, routes, segments, credits, embeddings) about trajectories, once per key.

        The key of a fact is its trajectory id with the columns named in `key`; rows that share a key are one fact.
        """
        columns = [table["trajectory_id"].to_pylist(), *(table[column].to_pylist() for column in key)]
        keys = ["/".join(map(str, parts)) for parts in zip(*columns, strict=True)]

        def tables_of(fresh: Sequence[str]) -> dict[str, Tables]:
            wanted = set(fresh)
            return {kind: [table.filter(pa.array([key in wanted for key in keys]))]}

        return self._commit(FACT, kind, keys, tables_of, message)

    def _commit(
        self,
        ledger: Table,
        kind: str,
        keys: Iterable[str],
        tables_of: Callable[[Sequence[str]], dict[str, Tables]],
        message: str,
    ) -> int:
        fresh = list(dict.fromkeys(keys))
        while True:
            with self.catalog.read() as connection:
                known = _known(connection, ledger, kind, fresh)
            fresh = [key for key in fresh if key not in known]
            if not fresh:
                return 0
            name = uuid.uuid4().hex  # never another writer's: two may bring the same ids with other timings
            files: dict[str, Written] = {}
            try:
                for file_kind, tables in tables_of(fresh).items():
                    files[file_kind] = self.write(name, file_kind, tables)
                if self.record(ledger, kind, name, files, fresh, message):
                    return len(fresh)
            except BaseException:
                self.withdraw(name, files)
                raise
            self.discard(name, files)

    def write(self, name: str, kind: str, tables: Tables) -> Written:
        """Write one file of a part that no snapshot reads yet."""
        file, redactions = file_name(name, kind), Counter[str]()
        written = write_parquet(redacted(tables, redactions, self.redact), ARROW_SCHEMAS[kind], self.staging / file)
        self.storage.publish(self.staging / file, file)
        return replace(written, redacted=tuple(sorted(redactions.items())))

    def discard(self, name: str, kinds: Iterable[str]) -> None:
        """Remove the files of a part that did not get into the catalog."""
        self.storage.delete(file_name(name, kind) for kind in kinds)

    def withdraw(self, name: str, kinds: Iterable[str]) -> None:
        """Remove the files of a part after an error, unless the catalog lists them: Ctrl-C or a lost connection may
        come between its commit and the news of it. A catalog that does not answer leaves them to `lake gc`."""
        with suppress(LakeError):
            with self.catalog.write() as connection:  # waits for a commit that is under way
                listed = connection.scalar(select(PART.c.name).where(PART.c.name == name).limit(1))
            if not listed:
                self.discard(name, kinds)

    def record(
        self, ledger: Table, kind: str, name: str, files: Mapping[str, Written], keys: Sequence[str], message: str
    ) -> bool:
        """Add a part to the newest snapshot, unless one of its keys is there by now."""
        with self.catalog.write() as connection:
            if _known(connection, ledger, kind, keys):
                return False
            snapshot = new_snapshot(connection, message)
            connection.execute(insert(PART), [part_row(name, *file, snapshot) for file in files.items()])
            if redactions := [row for file in files.items() for row in redaction_rows(name, *file)]:
                connection.execute(insert(REDACTION), redactions)
            entries = [{_key(ledger): key, "part": name, "snapshot": snapshot} for key in keys]
            connection.execute(
                insert(ledger), entries if ledger is TRAJECTORY else [{**entry, "kind": kind} for entry in entries]
            )
        return True

    # -- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> int:
        """Number of the newest commit; 0 for an empty lake."""
        with self.catalog.read() as connection:
            return connection.scalar(select(func.max(SNAPSHOT.c.id))) or 0

    def now(self) -> float:
        """The time, never before what the catalog recorded last."""
        with self.catalog.read() as connection:
            return now(connection)

    def known_ids(self, ids: Sequence[str]) -> set[str]:
        """Which of these trajectories the lake holds."""
        with self.catalog.read() as connection:
            return _known(connection, TRAJECTORY, "trajectories", ids)

    def sql(self, statement: str, *, at: int | None = None, limits: QueryLimits | None = None) -> pa.Table:
        """Run one reading statement over the views, as of a snapshot or now. It cannot write, nor read other files.

        The table has `.to_pandas()`; Polars reads it with `polars.from_arrow`.
        """
        connection = self._views(at, kinds_of(statement))
        try:
            return run_query(connection, statement, limits or QueryLimits())
        finally:
            connection.close()

    @contextmanager
    def stream(
        self,
        statement: str,
        *,
        at: int | None = None,
        limits: QueryLimits | None = None,
        printed: bool = True,
        verify: bool = False,
    ) -> Iterator[Result]:
        """The result of one reading statement as it comes, in memory a few thousand rows at a time.

        Before anything is answered from them, files on this machine are checked by size and footer, and by checksum too
        where all that the query names have 16 MiB or less. `verify` checks the checksums of all of them, anywhere.
        """
        kinds = kinds_of(statement)
        self._check_files(at, kinds, verify)
        connection = self._views(at, kinds)
        try:
            with streamed(connection, statement, limits or QueryLimits(), printed=printed) as result:
                yield result
        finally:
            connection.close()

    def connect(self, at: int | None = None, kinds: Iterable[str] = PARQUET_KINDS) -> duckdb.DuckDBPyConnection:
        """A locked DuckDB connection with the views, as of a snapshot or now. Other kinds of file read as empty."""
        return self._views(at, kinds)

    def _views(self, at: int | None, kinds: Iterable[str]) -> duckdb.DuckDBPyConnection:
        files, tables = self.contents(at)
        read = {kind: files[kind] if kind in kinds else {} for kind in files}
        place = self.storage.fetch(
            [name for versions in read.values() for names in versions.values() for name in names]
        )
        paths = {
            kind: {version: [place[name] for name in names] for version, names in versions.items()}
            for kind, versions in read.items()
        }
        return open_views(paths, tables, self.storage.filesystem)

    def _check_files(self, at: int | None, kinds: Iterable[str], verify: bool) -> None:
        """Raise `LakeError` for a file that is not what was written."""
        local = self.storage.filesystem is None
        if not (local or verify):
            return  # a request a file; their sizes are in the listing
        with self.catalog.read() as connection:
            rows = [row for row in part_rows(connection, at, self.name) if row.kind in kinds]
        whole = verify or sum(row.bytes for row in rows) <= CHEAP_BYTES
        for row in rows:
            address = self.storage.address(file_name(row.name, row.kind))
            if reason := flaw_of(address, self.storage.filesystem, row.bytes, row.sha256 if whole else ""):
                raise LakeError(f"broken Parquet file: {address} {reason}; see: flywheel lake check")

    def contents(self, at: int | None = None) -> Contents:
        """The names of the Parquet files and the catalog's tables that the views read, as of a snapshot or now."""
        with self.catalog.read() as connection:
            return files_of(connection, at, self.storage, self.name), catalog_tables(connection, at)

    def parts_of(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """Part → which of these trajectories it holds."""
        by_part: dict[str, list[str]] = {}
        with self.catalog.read() as connection:
            for start in range(0, len(ids), LOOKUP):
                query = select(TRAJECTORY).where(
                    TRAJECTORY.c.trajectory_id.in_(ids[start : start + LOOKUP]),
                    TRAJECTORY.c.part.in_(select(PART.c.name)),
                )
                for row in connection.execute(query):
                    by_part.setdefault(row.part, []).append(row.trajectory_id)
        return by_part

    def by_commit(self, ids: Sequence[str]) -> list[str]:
        """The same trajectories in the order of their commits, those of one file together."""
        places: list[tuple[int, str, str]] = []
        with self.catalog.read() as connection:
            for start in range(0, len(ids), LOOKUP):
                query = select(TRAJECTORY.c.snapshot, TRAJECTORY.c.part, TRAJECTORY.c.trajectory_id)
                some = TRAJECTORY.c.trajectory_id.in_(ids[start : start + LOOKUP])
                places += [tuple(row) for row in connection.execute(query.where(some))]
        return [trajectory_id for _, _, trajectory_id in sorted(places)]

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]:
        """Whole trajectories without their images, in the order of the ids. Raises `LakeError` for an unknown one.

        The catalog knows their parts, so only the files that hold them are opened.
        """
        by_id = {trajectory.trajectory_id: trajectory for trajectory in trajectories_from_arrow(*self.tables(ids))}
        return [by_id[trajectory_id] for trajectory_id in ids]

    def tables(self, ids: Sequence[str]) -> tuple[pa.Table, pa.Table]:
        """The rows of trajectories and of their steps, as Arrow, in the order of the files."""
        rows, steps = [ARROW_SCHEMAS["trajectories"].empty_table()], [ARROW_SCHEMAS["steps"].empty_table()]
        for name, inside in self.parts_of(ids).items():
            rows.append(read_rows(self.source(name, "trajectories"), inside))
            steps.append(self.steps(name, inside))
        names = ARROW_SCHEMAS["trajectories"].names
        whole = trajectories_with_text(pa.concat_tables(rows, promote_options="default").select(names))
        if missing := set(ids).difference(whole["trajectory_id"].to_pylist()):
            raise LakeError(
                f"no trajectory '{min(missing)}' in {self.name}; "
                'list some with: flywheel sql "select trajectory_id from trajectories limit 5"'
            )
        return whole, pa.concat_tables(steps, promote_options="default").select(ARROW_SCHEMAS["steps"].names)

    def steps(self, name: str, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
        """The steps, whole or in part, of some trajectories of one part, in its order."""
        steps, trajectories = self.source(name, "steps"), self.source(name, "trajectories")
        if columns is None:
            return steps_with_text(read_steps(steps, trajectories, ids))
        texts = (*SOURCES, *SOURCES.values()) if SOURCES.keys() & set(columns) else ()
        read = list(dict.fromkeys((*columns, *texts)))
        stored = pa.schema([ARROW_SCHEMAS["steps"].field(name) for name in read]).empty_table()
        table = pa.concat_tables([stored, read_steps(steps, trajectories, ids, read)], promote_options="default")
        return steps_with_text(table).select(list(columns))

    def images(self, trajectory_id: str) -> dict[str, Image]:
        """What a trajectory's steps saw, by the SHA-256 that `Step.screenshot` names."""
        rows: list[dict[str, Any]] = []
        for name in self.parts_of([trajectory_id]):
            with self.catalog.read() as connection:
                query = select(PART.c.kind).where(PART.c.name == name, PART.c.kind == "images")
                if connection.scalar(query):
                    rows = read_rows(self.source(name, "images"), [trajectory_id]).to_pylist()
        return {row["sha256"]: Image(row["media_type"], row["data"]) for row in rows}

    def source(self, name: str, kind: str) -> Source:
        """What opens one file of a part."""
        return source(self.storage, file_name(name, kind))


def _place(config: Config) -> LakeUrl:
    return parse_lake_url(config.lake.url or config.data_dir, config.data_dir)


def _key(ledger: Table) -> str:
    return "trajectory_id" if ledger is TRAJECTORY else "key"


def _known(connection: Connection, ledger: Table, kind: str, keys: Sequence[str]) -> set[str]:
    column = ledger.c[_key(ledger)]
    known: set[str] = set()
    for start in range(0, len(keys), LOOKUP):
        query = select(column).where(column.in_(keys[start : start + LOOKUP]))
        if ledger is FACT:
            query = query.where(ledger.c.kind == kind)
        known.update(connection.scalars(query))
    return known
