"""The helpdesk's agent: a plain loop over OpenAI's client. It knows nothing of Flywheel."""

from __future__ import annotations

from typing import Any

from shop import TOOLS, Shop, verify

SYSTEM = "You are the helpdesk of a shop. Look things up, follow the policies, do what was asked, and then say so."
MOST_TURNS = 40


async def run(task: Any, client: Any) -> bool:
    """Serve one customer; was everything done right? `client` talks to whoever answers."""
    shop = Shop(task.data["seed"])
    messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.instruction}]
    for _ in range(MOST_TURNS):
        reply = await client.chat.completions.create(model=task.model, messages=messages, tools=TOOLS)
        answer = reply.choices[0].message
        messages.append(answer.model_dump(exclude_none=True))
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            result = shop.call(call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return verify(shop, task.data)
