"""ATIF, the Agent Trajectory Interchange Format (Harbor RFC 0001, v1.0 to v1.8), both ways without loss.

What ATIF has no field for stands under `extra.flywheel`, at the root and on each agent step. A hierarchical episode
is a planner's trajectory whose steps delegate to one sub-agent trajectory per subgoal. A document of another tool is
kept verbatim beside the steps that were read from it, and written as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import atif
from pydantic import ValidationError

from flywheel.datasets.formats.images import image_at, image_path
from flywheel.datasets.formats.records import ImportedTurn, ReadContext, Run, called, episode, explain, verbatim
from flywheel.datasets.lake.provenance import claims_of, with_claims
from flywheel.errors import RecordError
from flywheel.trajectory import Image, Split, Step, StopReason, Trajectory

NAME = "atif"
VERSION = "ATIF-v1.8"
KNOWN = frozenset(f"ATIF-v1.{minor}" for minor in range(9))
OWN = "flywheel"
_NATIVE = {"observation", "thought", "action", "prompt_tokens", "completion_tokens", "logprobs", "screenshot"}
"""Fields that documents of earlier versions lack."""
_SPENT = {"tokens": 0, "cost": 0.0}
_STEP_EXTRA = [field.name for field in fields(Step) if field.name not in _NATIVE]
_OF_THE_WRITER = frozenset({"origin", "origin_source", "origin_by", "claims"})
"""Fields that the writer sets; what a document says of them is not read."""
_ROOT_EXTRA = [
    field.name
    for field in fields(Trajectory)
    if field.name not in ("steps", "images", "instruction") and field.name not in _OF_THE_WRITER
]


# -- writing -----------------------------------------------------------------------------------------------------------


def write(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """One ATIF document, valid under ATIF's own models; images are named by path."""
    if (original := verbatim(trajectory, NAME)) is not None:
        return dict(original)
    trajectory = with_claims(trajectory)
    document: dict[str, Any] = {
        "schema_version": VERSION,
        "trajectory_id": trajectory.trajectory_id,
        "agent": _agent(trajectory),
        "steps": [_told(1, trajectory.instruction)],
        "final_metrics": {"total_steps": trajectory.length},
        "extra": {OWN: {name: getattr(trajectory, name) for name in _ROOT_EXTRA}},
    }
    if any(step.subgoal for step in trajectory.steps):
        document["subagent_trajectories"] = _delegate(trajectory, document["steps"], images)
    else:
        document["steps"] += _turns(trajectory, trajectory.steps, 2, images)
    atif.Trajectory.model_validate(document)
    return document


def _agent(trajectory: Trajectory) -> dict[str, Any]:
    return {"name": trajectory.policy or "agent", "version": trajectory.policy_version or "0"}


def _told(number: int, message: Any) -> dict[str, Any]:
    return {"step_id": number, "source": "user", "message": message}


def _delegate(
    trajectory: Trajectory, planner: list[dict[str, Any]], images: Mapping[str, Image]
) -> list[dict[str, Any]]:
    """Append the planner's steps, one a subgoal; the executor's trajectories."""
    starts = [step.index for step in trajectory.steps if step.new_subgoal or step.index == 0]
    children = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], trajectory.length], strict=True)):
        part, child = trajectory.steps[start:end], f"{trajectory.trajectory_id}/{number}"
        reference = {"results": [{"subagent_trajectory_ref": [{"trajectory_id": child}]}]}
        planner.append(
            {"step_id": len(planner) + 1, "source": "agent", "message": part[0].subgoal, "observation": reference}
        )
        children.append(
            {
                "schema_version": VERSION,
                "trajectory_id": child,
                "agent": _agent(trajectory),
                "steps": [_told(1, part[0].subgoal), *_turns(trajectory, part, 2, images)],
            }
        )
    return children


def _turns(
    trajectory: Trajectory, steps: Sequence[Step], first: int, images: Mapping[str, Image]
) -> list[dict[str, Any]]:
    """What was seen first, then each action with what was seen after it."""
    if not steps:
        return []
    later = [*trajectory.steps[1:], None]
    written = [_told(first, _content(steps[0].observation, steps[0].screenshot, images))]
    for number, step in enumerate(steps, start=first + 1):
        after, call = later[step.index], f"step-{step.index}"
        seen = (
            _content(after.observation, after.screenshot, images) if after is not None else trajectory.final_observation
        )
        metrics = {"prompt_tokens": step.prompt_tokens, "completion_tokens": step.completion_tokens}
        entry: dict[str, Any] = {
            "step_id": number,
            "source": "agent",
            "message": "",
            "tool_calls": [{"tool_call_id": call, "function_name": "act", "arguments": {"action": step.action}}],
            "observation": {"results": [{"source_call_id": call, "content": seen}]},
            "metrics": metrics if step.logprobs is None else {**metrics, "logprobs": list(step.logprobs)},
            "extra": {OWN: {name: getattr(step, name) for name in _STEP_EXTRA}},
        }
        if step.thought:
            entry["reasoning_content"] = step.thought
        written.append(entry)
    return written


def _content(text: str, screenshot: str | None, images: Mapping[str, Image]) -> Any:
    if screenshot is None:
        return text
    image = images[screenshot]
    picture = {"type": "image", "source": {"media_type": image.media_type, "path": image_path(image)}}
    return [{"type": "text", "text": text}, picture]


# -- reading -----------------------------------------------------------------------------------------------------------


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """The trajectories of one ATIF document: Flywheel's own as it was, with what it claims of its provenance, another
    tool's with its sub-agents'."""
    try:
        document = atif.Trajectory.model_validate(record)
    except ValidationError as error:
        raise RecordError(explain(error)) from error
    if document.schema_version not in KNOWN:
        raise RecordError(f"schema_version {document.schema_version}; known are ATIF-v1.0 to {VERSION}")
    extra = (document.extra or {}).get(OWN)
    if extra is None:
        yield from _foreign(document, record, split, source)
    else:
        yield _restored(document, extra, source.folder)


def _restored(document: atif.Trajectory, extra: Any, folder: Path) -> Trajectory:
    try:
        parts = document.subagent_trajectories or [document]
        acted = [step for part in parts for step in part.steps if step.tool_calls]
        user_steps = [step for step in parts[0].steps if step.source == "user"]
        seen = [user_steps[-1].message, *(step.observation.results[0].content for step in acted if step.observation)]
        contents = [_restored_parts(content, folder) for content in seen]
        steps = tuple(_step(step, *content) for step, content in zip(acted, contents, strict=False))
        images = {image.sha256: image for _, image in contents if image is not None}
        root = {name: extra.get(name, _SPENT[name]) if name in _SPENT else extra[name] for name in _ROOT_EXTRA}
        restored = Trajectory(
            **{**root, "split": Split(extra["split"]), "stop_reason": StopReason(extra["stop_reason"])},
            instruction=str(document.steps[0].message),
            steps=steps,
            images=tuple(images.values()),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"extra.{OWN} is not what Flywheel writes: {error!r}") from error
    if restored.length != len(steps) or [step.index for step in steps] != list(range(len(steps))):
        raise RecordError(f"{len(steps)} steps where extra.{OWN} says {restored.length}")
    return replace(restored, claims=claims_of(restored))


def _step(step: atif.Step, observation: str, image: Image | None) -> Step:
    extra, metrics = (step.extra or {})[OWN], step.metrics or atif.Metrics()
    rest = {name: extra[name] for name in _STEP_EXTRA}
    valid = rest["valid_actions"]
    for name in ("top_tokens", "top_logprobs"):
        rest[name] = None if rest[name] is None else tuple(map(tuple, rest[name]))
    call = (step.tool_calls or [])[0]
    return Step(
        **{**rest, "valid_actions": None if valid is None else tuple(valid)},
        observation=observation,
        thought=step.reasoning_content or "",
        action=call.arguments["action"],
        prompt_tokens=metrics.prompt_tokens or 0,
        completion_tokens=metrics.completion_tokens or 0,
        logprobs=None if metrics.logprobs is None else tuple(metrics.logprobs),
        screenshot=None if image is None else image.sha256,
    )


def _foreign(document: atif.Trajectory, record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    turns, images, waiting, event, screenshot = [], [], list[str](), "", None
    instruction, started = "", 0.0
    for step in document.steps:
        message, image, whole = _parts(step.message, source)
        if step.source == "user" and not instruction:
            instruction = message
        if step.timestamp and not started:
            started = _seconds(step.timestamp, source)
        if step.source == "agent":
            calls = [called(call.function_name, call.arguments) for call in step.tool_calls or []]
            thoughts = [step.reasoning_content or "", message if calls else ""]
            metrics = step.metrics or atif.Metrics()
            turns.append(
                ImportedTurn(
                    observation="\n\n".join(waiting),
                    action="\n".join(calls) or message,
                    feedback=event,
                    thought="\n".join(part for part in thoughts if part),
                    prompt_tokens=source.count("metrics.prompt_tokens", metrics.prompt_tokens),
                    completion_tokens=source.count("metrics.completion_tokens", metrics.completion_tokens),
                    logprobs=None if metrics.logprobs is None else tuple(metrics.logprobs),
                    trainable=whole and not step.is_copied_context,
                    screenshot=screenshot,
                )
            )
            waiting, screenshot = [], None
        else:
            waiting.append(message)
        results = [
            _parts(result.content or "", source) for result in (step.observation.results if step.observation else [])
        ]
        event = "\n".join(text for text, *_ in results)
        waiting += [event] if event else []
        for picture in (image, *(seen for _, seen, _ in results)):
            if picture is not None:
                images.append(picture)
                screenshot = picture.sha256
    name, version = document.agent.name, document.agent.version
    final = "\n\n".join(waiting)
    run = Run(instruction, turns, name, version, record, final, started_at=started, images=tuple(images))
    yield episode(NAME, run, split)
    for child in record.get("subagent_trajectories") or []:
        yield from read(child, split, source)


def _parts(content: Any, source: ReadContext) -> tuple[str, Image | None, bool]:
    """(text, image, was everything read) of a message."""
    if isinstance(content, str):
        return content, None, True
    texts, image, whole = [], None, True
    for part in content:
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "image":
            seen = source.image(partial(image_at, source.folder, part.source.path))
            if isinstance(seen, Image):
                image = seen
            else:
                texts.append(seen)
                whole = False
    return "\n".join(texts), image, whole


def _restored_parts(content: Any, folder: Path) -> tuple[str, Image | None]:
    """Text and image of a message of ours, neither of which may be missing."""
    if isinstance(content, str):
        return content, None
    texts = [part.text for part in content if part.type == "text"]
    images = [image_at(folder, part.source.path) for part in content if part.type == "image"]
    return "\n".join(texts), images[-1] if images else None


def _seconds(timestamp: str, source: ReadContext) -> float:
    """Seconds since 1970; 0, and reported, for what is no time."""
    try:
        return max(0.0, datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp())
    except (ValueError, OverflowError):
        source.count_unread("timestamp: no ISO 8601 time")
        return 0.0
