"""What each stage leaves in Prefect's UI: one table an iteration and stage."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.artifacts import create_table_artifact


def publish(stage: str, iteration: int, rows: Sequence[dict[str, object]]) -> None:
    """A table under the key of the stage, so that Prefect shows its versions as a history."""
    key = f"flywheel-{stage}".replace("_", "-")
    create_table_artifact(table=list(rows), key=key, description=f"iteration {iteration}")
