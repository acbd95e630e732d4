"""A long episode that goes to disk while it is played: memory holds a few steps, the lake sees it when it is whole."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from flywheel.arrow import ARROW_SCHEMAS, images_to_arrow, steps_to_arrow, trajectories_to_arrow
from flywheel.datasets.lake.catalog import TRAJECTORY
from flywheel.datasets.lake.files import ParquetSink, Written, writing
from flywheel.datasets.lake.lake import Lake, file_name
from flywheel.datasets.lake.redaction import redacted
from flywheel.errors import LakeError
from flywheel.trajectory import Image, Step, Trajectory

WAITING = 128
"""Steps that are turned into Arrow together."""


class StreamingWriter:
    """Steps in the order in which they are played; nobody reads them before `commit`.

        with StreamingWriter(lake, trajectory) as draft:
            for step in play():
                draft.add([step])
            draft.commit(replace(trajectory, stop_reason=StopReason.SUCCESS, success=True), "collect")

    Left without a commit, or killed, a draft leaves nothing in the lake.
    """

    def __init__(self, lake: Lake, trajectory: Trajectory) -> None:
        self._lake, self._blank, self._name = lake, replace(trajectory, steps=(), images=()), uuid.uuid4().hex
        self._steps: list[Step] = []
        self._sinks: dict[str, ParquetSink] = {}
        self._seen: set[str] = set()
        self._redacted = Counter[str]()
        self.length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self._sinks.values():
            sink.abandon()

    def add(self, steps: Sequence[Step], images: Sequence[Image] = ()) -> None:
        """Append the next steps, with the images that they are the first to name."""
        self.length += len(steps)
        self._steps += steps
        new = [image for image in dict.fromkeys(images) if image.sha256 not in self._seen]
        self._seen.update(image.sha256 for image in new)
        with writing(self._lake.staging):
            for table in images_to_arrow([replace(self._blank, images=tuple(new))]):
                self._sink("images").write(table)
            if len(self._steps) >= WAITING:
                self._flush()

    def commit(self, trajectory: Trajectory, message: str) -> bool:
        """Put the episode into the lake with its summary, whose `steps` are ignored. False if it was there already."""
        if trajectory.trajectory_id != self._blank.trajectory_id:
            raise LakeError(f"the draft is of {self._blank.trajectory_id}, not of {trajectory.trajectory_id}")
        with writing(self._lake.staging):
            self._flush()
            self._sink("steps")
            written = {kind: sink.close() for kind, sink in self._sinks.items()}
        written["steps"] = replace(written["steps"], redacted=tuple(sorted(self._redacted.items())))
        self._sinks.clear()
        whole = replace(trajectory, length=self.length)
        files: dict[str, Written] = {}
        ids = [trajectory.trajectory_id]
        try:
            for kind, file in written.items():
                staged = file_name(self._name, kind)
                self._lake.storage.publish(self._lake.staging / staged, staged)
                files[kind] = file
            files["trajectories"] = self._lake.write(self._name, "trajectories", [trajectories_to_arrow([whole])])
            if self._lake.record(TRAJECTORY, "trajectories", self._name, files, ids, message):
                return True
        except BaseException:
            self._lake.withdraw(self._name, files)
            raise
        self._lake.discard(self._name, files)
        return False

    def _flush(self) -> None:
        for table in redacted(steps_to_arrow([replace(self._blank, steps=tuple(self._steps))]), self._redacted):
            self._sink("steps").write(table)
        self._steps.clear()

    def _sink(self, kind: str) -> ParquetSink:
        if kind not in self._sinks:
            path = self._lake.staging / file_name(self._name, kind)
            self._sinks[kind] = ParquetSink(path, ARROW_SCHEMAS[kind])
        return self._sinks[kind]
