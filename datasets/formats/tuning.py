"""Rows for supervised and preference tuning elsewhere (TRL, Axolotl, LLaMA-Factory): SFT per role, ShareGPT, DPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flywheel.conversation import output_of
from flywheel.datasets.formats.chat import messages_of, opening
from flywheel.datasets.formats.records import compact
from flywheel.messages import Image, openai_message
from flywheel.trajectory import Segment, Trajectory

PLANNER, EXECUTOR, FLAT = "planner", "executor", "flat"
_SPEAKER = {"system": "system", "developer": "system", "assistant": "gpt", "tool": "observation"}


def sft_rows(
    trajectory: Trajectory, segments: Sequence[Segment], images: Mapping[str, Image]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, row): one flat and one planner conversation an episode, one executor conversation a completed segment.

    Rows are conversational (`messages`, and `tools` where there were some) and hold all that the agent saw; `weight` 0
    marks answers that must not be learned. `tools` is JSON text, as TRL and LLaMA-Factory decode it: as structures, the
    parameters of one tool would leak into another's when rows become a table.
    """
    name = {"trajectory_id": trajectory.trajectory_id}
    begin, tools = opening(trajectory, images), _tools_as_text(trajectory)
    yield FLAT, {**name, "messages": [*begin, *messages_of(trajectory.steps, images)], **tools}
    completed = [segment for segment in segments if segment.completed]
    for segment in completed:
        order = {"role": "system", "content": segment.subgoal}
        steps = trajectory.steps[segment.start : segment.end]
        yield EXECUTOR, {**name, "segment": segment.index, "messages": [order, *messages_of(steps, images)], **tools}
    if completed:
        plan = list(begin)
        for segment in completed:
            *seen, _ = messages_of(trajectory.steps[segment.start : segment.start + 1], images)
            plan += [*seen, {"role": "assistant", "content": segment.subgoal}]
        yield PLANNER, {**name, "messages": plan}


def sharegpt_row(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """One conversation with `from` and `value`, calls and results as LLaMA-Factory has them; images are left out, the
    form has no place for them. `weight` 0 marks answers that must not be learned."""
    messages = [*opening(trajectory, images), *messages_of(trajectory.steps, images)]
    return {
        "id": trajectory.trajectory_id,
        "conversations": [turn for message in messages for turn in _sharegpt_turns(message)],
        **_tools_as_text(trajectory),
    }


def _sharegpt_turns(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    rest = {name: message[name] for name in ("reasoning_content", "weight") if name in message}
    calls, text = message.get("tool_calls", ()), _text(message["content"])
    if text or not calls:
        yield {"from": _SPEAKER.get(message["role"], "human"), "value": text, **rest}
    for call in calls:
        function = call["function"]
        yield {
            "from": "function_call",
            "value": compact({"name": function["name"], "arguments": function["arguments"]}),
            **rest,
        }


def dpo_row(good: Trajectory, bad: Trajectory) -> dict[str, Any] | None:
    """The first step at which a verified and a failed episode of one task part: same history, two answers.

    None if they never part, or part after something else than an answer, or if either answer was injected noise.
    """
    for index, (ours, theirs) in enumerate(zip(good.steps, bad.steps, strict=False)):
        if ours.observation != theirs.observation:
            return None
        if ours.action != theirs.action:
            if not (ours.trainable and theirs.trainable):
                return None
            *prompt, chosen = messages_of(good.steps[: index + 1], {})
            return {
                "prompt": [*opening(good, {}), *prompt],
                "chosen": [chosen],
                "rejected": [openai_message(output_of(theirs))],
                **_tools_as_text(good),
                "chosen_id": good.trajectory_id,
                "rejected_id": bad.trajectory_id,
            }
    return None


def _tools_as_text(trajectory: Trajectory) -> dict[str, Any]:
    """The key `tools`, where there were some."""
    return {} if trajectory.tools is None else {"tools": trajectory.tools}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
