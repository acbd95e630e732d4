"""Outcome: the environment's own claim, or a field of the record, where the record does not contradict it."""

from __future__ import annotations

import duckdb
import numpy as np

from flywheel.errors import ConfigError
from flywheel.filters.batch import Floats, TrajectoryBatch
from flywheel.filters.verifiers.checks import CLAIMS
from flywheel.filters.verifiers.integrity import checklist
from flywheel.filters.verifiers.protocol import arguments, verdicts
from flywheel.trajectory import Item, Verdict

FIELDS = ("total_reward", "score", "success", "final_feedback", "final_observation", "extra", "task_data")
"""Columns of a trajectory that an outcome may be read from."""


class Outcome:
    """The environment's claim, or what stands in a field.

    Completion: 100 × score, or success where no score is told. With `field` (and `path`, a JSON path into it, as
    `$.metadata.grade`): 100 × value / `at_least`, below 99 for a value that is less. Values are numbers or booleans;
    where there is none, nothing is shown: confidence 0. Integrity: the share of checks of the claim that hold.
    """

    name = "outcome"
    version = "2"

    def __init__(self, *, score_threshold: float = 1.0, field: str = "", path: str = "", at_least: float = 1.0) -> None:
        if field and field not in FIELDS:
            raise ConfigError(f"outcome: there is no field '{field}'; known: {', '.join(FIELDS)}")
        if path and not field:
            raise ConfigError('outcome: path leads into a field; name it, as field = "extra"')
        if at_least <= 0:
            raise ConfigError("outcome: at_least must be above 0")
        chosen = {"field": field, "path": path, "at_least": at_least} if field else {}
        self.arguments = arguments(score_threshold=score_threshold, **chosen)
        self._threshold = 100 * score_threshold
        self._field, self._path, self._at_least = field, path, at_least

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        holds, items = checklist(batch, CLAIMS)
        if self._field:
            return self._by_field(batch, holds, items)
        score, success = batch.numbers("score"), batch.numbers("success") > 0
        return verdicts(
            self,
            batch,
            completion=np.minimum(100 * np.where(np.isnan(score), success, score), np.where(success, 100, 99)),
            completion_threshold=min(self._threshold, 100 if self._threshold >= 100 else 99),
            integrity=holds,
            items=items,
        )

    def _by_field(self, batch: TrajectoryBatch, holds: Floats, items: list[list[Item]]) -> list[Verdict]:
        values = _values(batch, self._field, self._path)
        is_known_N = ~np.isnan(values)
        share = np.nan_to_num(values) / self._at_least
        where = f"{self._field} {self._path}".strip()
        field_items = [
            Item(f"{where} is at least {self._at_least:g}", 100.0, float(done), f"{value:g}" if known else "not told")
            for done, value, known in zip((share >= 1).tolist(), values.tolist(), is_known_N.tolist(), strict=True)
        ]
        return verdicts(
            self,
            batch,
            completion=np.where(share >= 1, 100.0, np.clip(100 * share, 0.0, 99.0)),
            completion_threshold=100.0,
            integrity=holds,
            items=[[item, *others] for item, others in zip(field_items, items, strict=True)],
            confidence=is_known_N.astype(np.float64),
        )


def _values(batch: TrajectoryBatch, field: str, path: str) -> Floats:
    """(N,): the field's number; NaN where there is none. Raises `ConfigError` for a path that is none."""
    with duckdb.connect() as connection:
        connection.register("batch", batch.trajectories.select([field]))
        text = f'json_extract_string("{field}"::varchar, $path)' if path else f'"{field}"::varchar'
        number = f"case {text} when 'true' then 1 when 'false' then 0 else try_cast({text} as double) end"
        safe = number if not path else f'case when json_valid("{field}"::varchar) then {number} end'
        try:
            column = connection.execute(f"select {safe} as value from batch", {"path": path} if path else None)
            values = column.fetchnumpy()["value"]
        except duckdb.Error as error:
            raise ConfigError(f"outcome: path '{path}': {str(error).splitlines()[0]}") from error
    return np.asarray(np.ma.filled(np.ma.masked_invalid(np.ma.asarray(values, np.float64)), np.nan), np.float64)
