"""OpenTelemetry spans of episodes: `invoke_agent` over a `chat` span a decision and an `execute_tool` span a step.

Follows the semantic conventions for generative AI of version 1.37, which are still in development. Spans go where
OpenTelemetry's own variables say (OTEL_EXPORTER_OTLP_ENDPOINT, …); what was seen and done is in them only if
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is true.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flywheel.agents.policy import Decision
from flywheel.errors import PrerequisiteError
from flywheel.rollouts.episode import Episode
from flywheel.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
NANO = 1_000_000_000


@dataclass(slots=True)
class Tracing:
    """A callback of rollouts that writes spans."""

    tracer: Tracer
    content: bool = False
    _roots: dict[int, Span] = field(default_factory=dict)

    def begun(self, slot: int, episode: Episode) -> None:
        policy, task = episode.policy, episode.job.task
        known: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": policy.name,
            "gen_ai.agent.id": policy.policy_id,
            "gen_ai.conversation.id": episode.trajectory_id,
            "flywheel.task_id": task.task_id,
            "flywheel.attempt": episode.job.attempt,
        }
        self._roots[slot] = self.tracer.start_span(f"invoke_agent {policy.name}", attributes=known)

    def decided(self, slot: int, episode: Episode, decision: Decision, seconds: float) -> None:
        model = decision.policy_id or episode.policy.policy_id
        known: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "flywheel",
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": decision.prompt_tokens,
            "gen_ai.usage.output_tokens": decision.completion_tokens,
        }
        if self.content:
            known["flywheel.subgoal"] = decision.subgoal
            seen = [("system", episode.job.task.instruction), ("user", episode.observation.text)]
            known["gen_ai.input.messages"] = _messages(seen)
            known["gen_ai.output.messages"] = _messages([("assistant", decision.action or "")])
        self._child(slot, f"chat {model}", known, seconds)

    def stepped(self, slot: int, episode: Episode, seconds: float) -> None:
        step = episode.steps[-1]
        known: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "act",
            "flywheel.step": step.index,
            "flywheel.reward": step.reward,
            "flywheel.progress": step.progress,
        }
        if self.content:
            known["gen_ai.tool.call.arguments"] = json.dumps({"action": step.action})
            known["gen_ai.tool.call.result"] = episode.observation.feedback
        self._child(slot, "execute_tool act", known, seconds)

    def ended(self, slot: int, trajectory: Trajectory) -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self._roots.pop(slot)
        span.set_attributes(
            {
                "flywheel.stop_reason": str(trajectory.stop_reason),
                "flywheel.success": trajectory.success,
                "flywheel.score": trajectory.score,
                "flywheel.steps": trajectory.length,
            }
        )
        if trajectory.stop_reason is StopReason.INFRASTRUCTURE:
            span.set_status(Status(StatusCode.ERROR, trajectory.error))
        span.end()

    def _child(self, slot: int, name: str, known: dict[str, Any], seconds: float) -> None:
        from opentelemetry.trace import set_span_in_context

        end = time.time_ns()
        within = set_span_in_context(self._roots[slot])
        start = end - int(seconds * NANO)
        self.tracer.start_span(name, context=within, attributes=known, start_time=start).end(end)


@contextmanager
def tracing() -> Iterator[list[Tracing]]:
    """A callback that sends spans to where the environment's variables point; none where they point nowhere."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        yield []
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise PrerequisiteError(
            f"spans need {error.name}: pip install 'trajectory-flywheel[otel]', or unset {ENDPOINTS[0]}"
        ) from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield [Tracing(provider.get_tracer("flywheel"), os.environ.get(CONTENT, "").lower() == "true")]
    finally:
        provider.shutdown()


def _messages(messages: list[tuple[str, str]]) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in messages])
