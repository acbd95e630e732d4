"""Prometheus metrics of a flywheel, read from the lake whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import LakeError, PrerequisiteError
from flywheel.flows.api import HOST
from flywheel.flows.iterations import iterations
from flywheel.flows.triggers import untaught
from flywheel.policies.registry import champion, history


class LakeCollector(Collector):
    """What Prometheus shows of a lake. `flywheel_up` is 0 where the lake did not answer."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def collect(self) -> Iterable[Metric]:
        try:
            yield from _metrics(self._lake)
            up = 1
        except LakeError:
            up = 0
        yield GaugeMetricFamily("flywheel_up", "Does the lake answer?", value=up)


def _metrics(lake: Lake) -> Iterator[Metric]:
    trajectories = GaugeMetricFamily(
        "flywheel_trajectories", "Trajectories in the lake.", labels=["policy", "purpose", "route"]
    )
    tokens = GaugeMetricFamily("flywheel_tokens", "Tokens that they took.", labels=["policy", "purpose"])
    cost = GaugeMetricFamily(
        "flywheel_cost", "Money that they took, in the chat's prices.", labels=["policy", "purpose"]
    )
    for row in lake.sql(
        """select policy, purpose, coalesce(route, 'waiting') as route, count(*) as n from trajectories group by all"""
    ).to_pylist():
        trajectories.add_metric([row["policy"], row["purpose"], row["route"]], row["n"])
    for row in lake.sql(
        """select policy, purpose, case when bool_and(tokens is not null) then sum(tokens) end as tokens,
                  case when bool_and(cost is not null) then sum(cost) end as cost
           from trajectories group by all"""
    ).to_pylist():
        for family, spent in ((tokens, row["tokens"]), (cost, row["cost"])):
            if spent is not None:  # unknown is not free
                family.add_metric([row["policy"], row["purpose"]], float(spent))
    yield from (trajectories, tokens, cost)
    turns = iterations(lake)
    finished = [turn for turn in turns if turn.finished]
    yield GaugeMetricFamily("flywheel_iterations_finished", "Iterations that are done.", value=len(finished))
    yield GaugeMetricFamily("flywheel_snapshot", "The newest snapshot.", value=lake.snapshot())
    yield GaugeMetricFamily(
        "flywheel_untaught", "Verified trajectories that taught no student yet.", value=untaught(lake)
    )
    yield GaugeMetricFamily("flywheel_champion_changes", "Promotions and rollbacks so far.", value=len(history(lake)))
    reigning = GaugeMetricFamily("flywheel_champion", "1 for the policy in force.", labels=["policy_id"])
    reigning.add_metric([champion(lake)], 1)
    yield reigning
    if finished:
        newest = finished[-1].report
        rates = GaugeMetricFamily("flywheel_verified_rate", "P(verified) on test tasks.", labels=["policy"])
        for rate in newest["rates"]:
            rates.add_metric([rate["policy"]], rate["rate"])
        seconds = GaugeMetricFamily("flywheel_stage_seconds", "Wall-clock of the newest turn.", labels=["stage"])
        for stage, took in newest["seconds"].items():
            seconds.add_metric([stage], took)
        yield from (rates, seconds)


@contextmanager
def exposed(lake: Lake, port: int) -> Iterator[int]:
    """Answer Prometheus on the loopback interface until the context ends; the port, a free one for 0."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LakeCollector(lake))
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise PrerequisiteError(f"port {port} of the metrics is taken ({error.strerror}); choose another") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
