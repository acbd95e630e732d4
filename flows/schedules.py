"""When a flywheel turns: cron, an interval or an RRULE of its config, as Prefect takes them."""

from __future__ import annotations

import asyncio

from prefect.schedules import Cron, Interval, RRule, Schedule
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

from flywheel.config.flows import NIGHTLY
from flywheel.config.root import Config
from flywheel.errors import ConfigError


def prefect_schedule(config: Config) -> Schedule:
    """The schedule that a config asks for; nightly if it asks for none. Raises `ConfigError` for one that is none."""
    settings = config.serve
    ticks(config, 1)
    if settings.interval:
        return Interval(settings.interval)
    if settings.rrule:
        return RRule(settings.rrule, timezone=settings.timezone)
    return Cron(settings.cron or NIGHTLY, timezone=settings.timezone)


def ticks(config: Config, count: int = 3) -> list[str]:
    """When it ticks next, as ISO 8601. Raises `ConfigError` for a schedule that never does."""
    settings = config.serve
    try:
        if settings.interval:
            schedule: CronSchedule | IntervalSchedule | RRuleSchedule = IntervalSchedule(interval=settings.interval)
        elif settings.rrule:
            schedule = RRuleSchedule(rrule=settings.rrule, timezone=settings.timezone)
        else:
            schedule = CronSchedule(cron=settings.cron or NIGHTLY, timezone=settings.timezone)
        dates = asyncio.run(schedule.get_dates(n=count))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"serve: this is no schedule: {' '.join(str(error).split())[:200]}") from None
    if not dates:
        raise ConfigError("serve: the schedule never ticks again; give another")
    return [date.isoformat(timespec="seconds") for date in dates]
