"""Rows for supervised and preference tuning elsewhere (TRL, Axolotl, LLaMA-Factory): SFT per role, ShareGPT, DPO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flywheel.datasets.formats.chat import messages_of
from flywheel.trajectory import Image, Segment, Trajectory

PLANNER, EXECUTOR, FLAT = "planner", "executor", "flat"
_SPEAKER = {"system": "system", "user": "human", "assistant": "gpt"}


def sft_rows(
    trajectory: Trajectory, segments: Sequence[Segment], images: Mapping[str, Image]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, row): one flat and one planner conversation an episode, one executor conversation a completed segment.

    Rows are conversational (`messages`); `weight` 0 marks answers that must not be learned.
    """
    name = {"trajectory_id": trajectory.trajectory_id}
    system_message = {"role": "system", "content": trajectory.instruction}
    yield FLAT, {**name, "messages": [system_message, *messages_of(trajectory.steps, images)]}
    parts = [part for part in segments if part.completed]
    for part in parts:
        order = {"role": "system", "content": part.subgoal}
        steps = trajectory.steps[part.start : part.end]
        yield EXECUTOR, {**name, "segment": part.index, "messages": [order, *messages_of(steps, images)]}
    if parts:
        plan = [
            message
            for part in parts
            for message in (
                {"role": "user", "content": trajectory.steps[part.start].observation},
                {"role": "assistant", "content": part.subgoal},
            )
        ]
        yield PLANNER, {**name, "messages": [system_message, *plan]}


def sharegpt_row(trajectory: Trajectory, images: Mapping[str, Image]) -> dict[str, Any]:
    """One conversation with `from` and `value`; images are left out, the form has no place for them."""
    messages = [{"role": "system", "content": trajectory.instruction}, *messages_of(trajectory.steps, {**images})]
    return {
        "id": trajectory.trajectory_id,
        "conversations": [
            {"from": _SPEAKER[message["role"]], "value": _text(message["content"])} for message in messages
        ],
    }


def dpo_row(good: Trajectory, bad: Trajectory) -> dict[str, Any] | None:
    """The first step at which a verified and a failed episode of one task part: same history, two actions.

    None if they never part, or part after something else than an action, or if either action was injected noise.
    """
    for index, (ours, theirs) in enumerate(zip(good.steps, bad.steps, strict=False)):
        if ours.observation != theirs.observation:
            return None
        if ours.action != theirs.action:
            if not (ours.trainable and theirs.trainable):
                return None
            history = [{"role": "system", "content": good.instruction}, *messages_of(good.steps[:index], {})]
            return {
                "prompt": [*history, {"role": "user", "content": ours.observation}],
                "chosen": [{"role": "assistant", "content": ours.action}],
                "rejected": [{"role": "assistant", "content": theirs.action}],
                "chosen_id": good.trajectory_id,
                "rejected_id": bad.trajectory_id,
            }
    return None


def _text(content: Any) -> str:
    return content if isinstance(content, str) else str(content[0]["text"])
