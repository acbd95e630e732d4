"""Work pools: where a deployed flywheel's runs start."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound

from flywheel.errors import ConfigError


def ensure(client: SyncPrefectClient, pool: str, pool_type: str) -> None:
    """The pool exists and is of this type. Raises `ConfigError` where it is of another."""
    try:
        existing = client.read_work_pool(pool)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=pool, type=pool_type))
        return
    if existing.type != pool_type:
        raise ConfigError(f"the work pool '{pool}' is of type {existing.type}; say --type {existing.type}, or another")
