"""Settings of orchestration: schedule, triggers, budget, notifications, work pool, cluster."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from flywheel.config.section import Count, Section, Share

NIGHTLY = "0 2 * * *"

Occasion = Literal["failed", "champion", "budget", "drop"]


class ServeConfig(Section):
    """The schedule of `flywheel serve` and `flywheel deploy`: cron, an interval or an RRULE."""

    cron: str = Field(default="", description=f"When a new turn starts; without any schedule, '{NIGHTLY}'.")
    interval: timedelta | None = Field(default=None, description="Instead of cron: seconds between turns, or PT2M.")
    rrule: str = Field(default="", description="Instead of cron: an RFC 5545 rule, as FREQ=WEEKLY;BYDAY=SU;BYHOUR=3.")
    timezone: str = Field(default="UTC", description="Of cron and rrule.")
    late: Literal["skip", "queue"] = Field(
        default="skip", description="A tick while a turn runs, or that came when nothing served: left out, or waits."
    )
    grace: float = Field(default=60.0, gt=0, description="Seconds from which a tick counts as late.")
    port: int = Field(default=4200, ge=1, le=65535, description="Loopback port of the server that `serve` starts.")
    metrics_port: int = Field(default=0, ge=0, le=65535, description="Loopback port of Prometheus metrics; 0: none.")

    @model_validator(mode="after")
    def _one(self) -> ServeConfig:
        if sum(map(bool, (self.cron, self.interval, self.rrule))) > 1:
            raise ValueError("cron, interval and rrule exclude each other; keep one of them")
        if self.interval is not None and self.interval <= timedelta(0):
            raise ValueError("interval must be longer than nothing")
        return self


class TriggersConfig(Section):
    """What starts a distillation between turns; each is an automation of the Prefect server."""

    new_verified: int = Field(default=0, ge=0, description="So many verified trajectories taught no student; 0: off.")
    slice_drop: Share = Field(
        default=0.0, description="The champion's success in a slice fell by so much between gates; 0: off."
    )
    dataset: str = Field(default="", description="A new version of this dataset, or * for any; empty: off.")
    kind: Literal["hierarchical", "flat"] = Field(default="hierarchical", description="The student that is distilled.")


class BudgetConfig(Section):
    """What one turn may take. Spent, it stops between episodes or updates; the next run goes on."""

    seconds: float = Field(default=0.0, ge=0, description="Wall-clock time of one run of a turn; 0: any.")
    tokens: int = Field(default=0, ge=0, description="Tokens of an iteration's episodes; 0: any.")
    cost: float = Field(default=0.0, ge=0, description="Money for them, in the chat's prices; 0: any.")


class NotifyConfig(Section):
    """Who is notified, through Prefect's own blocks."""

    block: str = Field(
        default="", pattern=r"^$|^[a-z0-9-]+/[a-z0-9-]+$", description="A notification or webhook block: type/name."
    )
    on: tuple[Occasion, ...] = Field(
        default=("failed", "champion", "budget", "drop"), description="A failed turn, a new champion, …"
    )


class ClusterConfig(Section):
    """Where episodes are played and verified: here, or on a Ray cluster."""

    ray: str = Field(default="", description="auto, or an address of a Ray cluster; empty: this machine alone.")
    actors: Count = Field(default=2, description="Ray actors at once, each with a core, a simulator and a model.")
