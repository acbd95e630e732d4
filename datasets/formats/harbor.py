"""Harbor's job folders: each trial's `agent/trajectory.json` in ATIF, with the reward that its verifier wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flywheel.datasets.formats import atif
from flywheel.datasets.formats.records import ReadContext
from flywheel.trajectory import Split, Trajectory

TRAJECTORY = "trajectory.json"


def read(record: Any, split: Split, source: ReadContext) -> Iterator[Trajectory]:
    """The run of a trial, where a reward of 1 is a success, and those of its sub-agents, which have none."""
    main, *others = atif.read(record, split, source)
    reward = _reward(source.folder.parent, source)
    if reward is None:
        yield main
    else:
        *before, last = main.steps
        steps = (*(replace(step, reward=0.0) for step in before), replace(last, reward=reward, terminated=True))
        score = min(max(reward, 0.0), 1.0)
        yield replace(main, total_reward=reward, success=reward >= 1, score=score, steps=steps)
    yield from others


def _reward(trial: Path, source: ReadContext) -> float | None:
    """What the verifier said, in `result.json` or in a file of its own."""
    for path in (trial / "result.json", trial / "verifier" / "reward.json"):
        try:
            result = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        verdict = result.get("verifier_result", result) if isinstance(result, dict) else None
        rewards = verdict.get("rewards", verdict) if isinstance(verdict, dict) else None
        if isinstance(rewards, dict) and "reward" in rewards:
            return source.number("reward", rewards["reward"], least=-math.inf)
    try:
        return source.number("reward", float((trial / "verifier" / "reward.txt").read_text()), least=-math.inf)
    except (OSError, ValueError):
        return None
