"""ATIF, the Agent Trajectory Interchange Format (Harbor RFC 0001, v1.0 to v1.8), both ways without loss.

What ATIF has no field for stands under `extra.flywheel`, at the root and on each agent step. A hierarchical episode
is a planner's trajectory whose steps delegate to one sub-agent trajectory per subgoal. A document of another tool is
kept verbatim beside the steps that were read from it, and written as it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import atif
from pydantic import ValidationError

from flywheel.datasets.formats.chat_messages import tools_of
from flywheel.datasets.formats.images import image_at, image_path
from flywheel.datasets.formats.parts import ContentParts
from flywheel.datasets.formats.records import (
    MAY_BE_ABSENT,
    ReadContext,
    Run,
    compact,
    episode,
    explain,
    identity_of,
    seconds_of,
    verbatim,
)
from flywheel.datasets.formats.turns import ImportedTurn, ReadMessage, conversation_of
from flywheel.datasets.lake.provenance import claims_of, with_claims
from flywheel.errors import RecordError
from flywheel.messages import Image, Message, ToolCall, action_of, message_of, text_of_inputs, thought_of
from flywheel.trajectory import Split, Step, StopReason, Trajectory
from flywheel.unknowns import known_sum

NAME = "atif"
VERSION = "ATIF-v1.8"
KNOWN = frozenset(f"ATIF-v1.{minor}" for minor in range(9))
OWN = "flywheel"
_NATIVE = {"observation", "thought", "action", "prompt_tokens", "completion_tokens", "logprobs", "screenshot"}
"""Fields of a step that ATIF has itself."""
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
        "extra": {OWN: {name: _plain(getattr(trajectory, name)) for name in _ROOT_EXTRA}},
    }
    if images:
        document["extra"][OWN]["images"] = [image_path(image) for image in images.values()]
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
        after, calls = later[step.index], _calls(step)
        seen = (
            _content(after.observation, after.screenshot, images) if after is not None else trajectory.final_observation
        )
        inputs_after = after.inputs if after is not None else trajectory.final_inputs
        metrics = {name: getattr(step, name) for name in ("prompt_tokens", "completion_tokens")}
        metrics |= {} if step.logprobs is None else {"logprobs": list(step.logprobs)}
        entry: dict[str, Any] = {
            "step_id": number,
            "source": "agent",
            "message": step.output.content if step.output else "",
            "tool_calls": calls,
            "observation": {"results": _results(calls, inputs_after, seen)},
            "metrics": {name: value for name, value in metrics.items() if value is not None},
            "extra": {OWN: {name: _plain(getattr(step, name)) for name in _STEP_EXTRA}},
        }
        if not calls:
            del entry["tool_calls"]
        if step.thought:
            entry["reasoning_content"] = step.thought
        written.append(entry)
    return written


def _calls(step: Step) -> list[dict[str, Any]]:
    """An answer's tool calls; a line of text is the one call of an environment's only tool."""
    if step.output is None:
        return [{"tool_call_id": f"step-{step.index}", "function_name": "act", "arguments": {"action": step.action}}]
    return [
        {"tool_call_id": call.id, "function_name": call.name, "arguments": _arguments(call.arguments)}
        for call in step.output.tool_calls
    ]


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as the object that ATIF has; what is none stands under one key."""
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    return arguments if isinstance(arguments, dict) else {"arguments": text}


def _results(
    calls: Sequence[Mapping[str, Any]], inputs_after: Sequence[Message] | None, seen: Any
) -> list[dict[str, Any]]:
    """What came of a step: of each call what its tool answered, or else all that was seen."""
    ids = {call["tool_call_id"] for call in calls}
    if inputs_after is None or isinstance(seen, list) or not calls:
        return [{"source_call_id": calls[0]["tool_call_id"], "content": seen} if calls else {"content": seen}]
    return [
        {"source_call_id": message.tool_call_id, "content": text_of_inputs([message])}
        if message.tool_call_id in ids
        else {"content": text_of_inputs([message])}
        for message in inputs_after
    ]


def _plain(value: Any) -> Any:
    """A field as JSON has it."""
    if isinstance(value, Message):
        return asdict(value)
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


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
        acted = [step for part in parts for step in part.steps if step.extra and OWN in step.extra]
        user_steps = [step for step in parts[0].steps if step.source == "user"]
        seen = [user_steps[-1].message, *map(_first_result, acted)]
        contents = [_restored_parts(content, folder) for content in seen]
        steps = tuple(_step(step, *content) for step, content in zip(acted, contents, strict=False))
        named = [image_at(folder, str(path)) for path in extra.get("images") or ()]
        images = {image.sha256: image for image in (*named, *(image for _, image in contents)) if image is not None}
        root = {name: extra.get(name) if name in MAY_BE_ABSENT else extra[name] for name in _ROOT_EXTRA}
        if root["final_inputs"] is not None:
            root["final_inputs"] = tuple(map(message_of, root["final_inputs"]))
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
    rest = {name: extra.get(name) if name in MAY_BE_ABSENT else extra[name] for name in _STEP_EXTRA}
    valid = rest["valid_actions"]
    for name in ("top_tokens", "top_logprobs"):
        rest[name] = None if rest[name] is None else tuple(map(tuple, rest[name]))
    inputs, output = rest["inputs"], rest["output"]
    rest["inputs"] = None if inputs is None else tuple(map(message_of, inputs))
    rest["output"] = answer = None if output is None else message_of(output)
    action = action_of(answer) if answer else (step.tool_calls or [])[0].arguments["action"]
    return Step(
        **{**rest, "valid_actions": None if valid is None else tuple(valid)},
        observation=observation if rest["inputs"] is None else text_of_inputs(rest["inputs"]),
        thought=thought_of(answer) if answer else step.reasoning_content or "",
        action=action,
        prompt_tokens=metrics.prompt_tokens,
        completion_tokens=metrics.completion_tokens,
        logprobs=None if metrics.logprobs is None else tuple(metrics.logprobs),
        screenshot=None if image is None else image.sha256,
    )


def _foreign(document: atif.Trajectory, record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """Another tool's run, then its sub-agents' runs."""
    agent, totals = document.agent, document.final_metrics or atif.FinalMetrics()
    conversation = conversation_of(message for step in document.steps for message in _messages(step, agent, source))
    counts = [source.count(name, getattr(totals, name)) for name in ("total_prompt_tokens", "total_completion_tokens")]
    run = Run(
        conversation.instruction,
        conversation.turns,
        _policy(agent, agent.model_name),
        agent.version,
        record,
        conversation.rest,
        system=conversation.system,
        tools=tools_of(agent.tool_definitions),
        tokens=known_sum(counts),
        cost=source.number("total_cost_usd", totals.total_cost_usd),
        started_at=next((seconds_of(step.timestamp, source) for step in document.steps if step.timestamp), 0.0),
        images=conversation.images,
        parent=source.parent,
    )
    yield episode(NAME, run, split)
    inner = replace(source, parent=identity_of(NAME, record))
    for child in record.get("subagent_trajectories") or []:
        yield from read(child, split, inner)


def _policy(agent: atif.Agent, model: str | None) -> str:
    return f"{agent.name}/{model}" if model else agent.name


def _messages(step: atif.Step, agent: atif.Agent, source: ReadContext) -> Iterator[ReadMessage]:
    """What a step says, then what came of it: of its calls in their order, whatever the order of the results."""
    message = _read_message(step.message, "assistant" if step.source == "agent" else step.source, source)
    calls = tuple(
        ToolCall(call.tool_call_id, call.function_name, compact(call.arguments)) for call in step.tool_calls or ()
    )
    if step.source == "agent":
        metrics = step.metrics or atif.Metrics()
        turn = replace(
            message.turn,
            prompt_tokens=source.count("metrics.prompt_tokens", metrics.prompt_tokens),
            completion_tokens=source.count("metrics.completion_tokens", metrics.completion_tokens),
            cost=source.number("metrics.cost_usd", metrics.cost_usd),
            logprobs=None if metrics.logprobs is None else tuple(metrics.logprobs),
            trainable=message.turn.trainable and not step.is_copied_context and step.llm_call_count != 0,
            policy=_policy(agent, step.model_name) if step.model_name else "",
        )
        answer = replace(message.message, reasoning=step.reasoning_content or None, tool_calls=calls)
        message = replace(message, message=answer, turn=turn)
    yield message
    names = {call.id: call.name for call in calls}
    results = []
    for result in step.observation.results if step.observation else ():
        read = _read_message(result.content or "", "tool" if result.source_call_id else "user", source)
        call = result.source_call_id
        results.append(replace(read, message=replace(read.message, tool_call_id=call, name=names.get(call or ""))))
    places = {call.id: place for place, call in enumerate(calls)}
    yield from sorted(results, key=lambda read: places.get(read.message.tool_call_id or "", len(places)))


def _read_message(text_or_parts: Any, role: str, source: ReadContext) -> ReadMessage:
    """A message of text or parts; one of which not everything could be read is no target."""
    if isinstance(text_or_parts, str):
        return ReadMessage(Message(role, text_or_parts))
    content = ContentParts(source)
    for part in text_or_parts:
        if part.type == "image":
            content.add_image(partial(image_at, source.folder, part.source.path))
        elif part.type == "text":
            content.add_text(part.text or "")
        else:
            content.keep(part.model_dump(mode="json", exclude_none=True), part.type)
    message = Message(role, content.text, content.json)
    return ReadMessage(message, content.images, ImportedTurn((), message, trainable=content.whole))


def _first_result(step: atif.Step) -> Any:
    results = step.observation.results if step.observation else []
    return (results[0].content or "") if results else ""


def _restored_parts(content: Any, folder: Path) -> tuple[str, Image | None]:
    """Text and image of a message of ours, neither of which may be missing."""
    if isinstance(content, str):
        return content, None
    texts = [part.text for part in content if part.type == "text"]
    images = [image_at(folder, part.source.path) for part in content if part.type == "image"]
    return "\n".join(texts), images[-1] if images else None
