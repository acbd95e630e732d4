"""A small agent with tools, its tasks, and students that learned from its recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flywheel.config.root import Config, make

AGENT = '''
import json

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {field: {"type": "string"}}, "required": [field]}}}
    for name, field in (("look", "at"), ("open", "what"))
]

async def run(task, client):
    """Ask until the model speaks; it did well if it looked at the address that it was told, and opened something."""
    if task.data.get("silent"):
        return True
    messages = [{"role": "system", "content": "You open doors."}, {"role": "user", "content": task.instruction}]
    called = []
    for _ in range(6):
        reply = await client.chat.completions.create(model=task.model, messages=messages, tools=TOOLS)
        answer = reply.choices[0].message
        messages.append(answer.model_dump(exclude_none=True))
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            called.append((call.function.name, json.loads(call.function.arguments)))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps({"seen": task.id})})
    if task.data.get("raises"):
        raise KeyError("lost")
    return None if task.data.get("unknown") else ("look", {"at": task.data["address"]}) in called
'''


def task_rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Tasks whose door has an address that is private data."""
    return [
        {
            "id": f"door-{number}",
            "instruction": f"Look at ann{number}@example.com, then open the door.",
            "split": "dev" if number % 4 == 3 else "train",
            "data": {"address": f"ann{number}@example.com", **more},
        }
        for number in range(count)
    ]


def config_of(folder: Path, rows: list[dict[str, Any]], **sections: Any) -> Config:
    """A flywheel for that agent in a folder, which must be the current one."""
    (folder / "door_agent.py").write_text(AGENT)
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base: dict[str, Any] = {
        "name": "doors",
        "data_dir": str(folder / "lake"),
        "environment": {"name": "gateway/doors", "max_steps": 8, "parallel": 4},
        "tasks": {"source": "tasks.jsonl"},
        "agent": {"run": "door_agent:run", "model": "m", "timeout": 20.0},
        "gateway": {"app": "doors", "port": 0},
        "curate": {"verifiers": ["outcome"], "leak": 1.0},
        "student": {"hidden": 32, "heads": 2, "layers": 1, "vocabulary": 320, "window_steps": 8},
        "train": {"segments": "tools/1", "epochs": {"planner": 1, "executor": 1, "flat": 1}, "renamed": 0.5},
    }
    return make({**base, **{name: {**base.get(name, {}), **section} for name, section in sections.items()}})
