"""Which student answers to which name. Names of students never change their meaning; the alias moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from flywheel.datasets.lake.lake import Lake
from flywheel.errors import FlywheelError, PolicyError
from flywheel.policies.registry import RANDOM, champion, policy_directory, registered
from flywheel.serving.loaded import Loaded
from flywheel.trajectory import digest

CHAMPION = "champion"
KEPT = 2
"""Students that stay in memory after the alias has left them, so that a rollback is at once."""
PARTS = ("planner", "executor", "flat")


@dataclass(frozen=True, slots=True)
class Canary:
    """A challenger that answers for the champion in a share of the episodes."""

    policy_id: str
    share: float


class Roster:
    """Students in memory by id. `pinned`: the one student to serve, or empty to follow the champion."""

    def __init__(self, lake: Lake, device: str, *, pinned: str = "", canary: Canary | None = None) -> None:
        self._lake, self._device, self._pinned, self._canary = lake, device, pinned, canary
        self._loaded: dict[str, Loaded] = {}
        self._loading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        self.current = ""

    async def start(self) -> None:
        """Load the first student. Raises `PolicyError` if there is none."""
        await self.follow()
        if not self.current:
            raise PolicyError("no student is champion yet; promote one, or name a policy id")
        if self._canary:
            await self._load(self._canary.policy_id)

    async def follow(self) -> None:
        """Move the alias to who is champion now: the new one is loaded while the old one answers on."""
        wanted = self._pinned or await asyncio.to_thread(champion, self._lake)
        if wanted in (self.current, RANDOM):
            return
        await self._load(wanted)
        self.current = wanted

    async def watch(self, seconds: float) -> None:
        """Follow the champion until cancelled. A champion that does not load changes nothing."""
        while True:
            await asyncio.sleep(seconds)
            with suppress(FlywheelError):
                await self.follow()

    @asynccontextmanager
    async def serving(self, model: str, user: str) -> AsyncIterator[tuple[Loaded, str]]:
        """(student, part or "") of a model's name, kept until it has answered: an alias or an id, perhaps with a
        version, perhaps with a part. `user` names the episode, which stays with one student."""
        policy, version, part = _parsed(model)
        if policy == CHAMPION:
            policy = self._chosen(user)
        student = await self._load(policy)
        if version and version != student.version:
            raise PolicyError(f"{policy} is served in version {student.version}, not {version}")
        student.under_way += 1
        try:
            yield student, part
        finally:
            student.under_way -= 1

    async def check(self, model: str) -> None:
        """Raise `PolicyError` for an unknown name. Nothing is loaded."""
        policy, _, _ = _parsed(model)
        if policy != CHAMPION:
            await asyncio.to_thread(registered, self._lake, policy)

    def _chosen(self, user: str) -> str:
        if self._canary and int(digest("canary", user, size=4), 16) / 2**32 < self._canary.share:
            return self._canary.policy_id
        return self.current

    async def _load(self, policy_id: str) -> Loaded:
        if policy_id in self._loaded:
            return self._loaded[policy_id]
        async with self._loading:
            row = await asyncio.to_thread(registered, self._lake, policy_id)
            whole = str(row.policy_id)
            if whole not in self._loaded:
                student = await asyncio.to_thread(Loaded, policy_directory(self._lake, whole), self._device)
                student.open()
                self._loaded[whole] = student
                self._retire(whole)
            return self._loaded[whole]

    def _retire(self, newest: str) -> None:
        """Let go of students whom the alias left long ago; what they are answering they finish."""
        busy = {newest, self.current, self._canary.policy_id if self._canary else ""}
        idle = [name for name in self._loaded if name not in busy]
        for name in idle[: max(0, len(idle) - KEPT)]:
            task = asyncio.create_task(self._loaded.pop(name).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def models(self) -> list[str]:
        """Every name that answers at once."""
        names = [CHAMPION] if not self._pinned else []
        for student in self._loaded.values():
            names += [student.card.policy_id, *(f"{student.card.policy_id}/{part}" for part in student.parts)]
        return names

    async def close(self) -> None:
        await asyncio.gather(*(student.close() for student in self._loaded.values()), *self._leaving)


def _parsed(model: str) -> tuple[str, str, str]:
    """(policy or alias, version or "", part or "") of a model's name."""
    whole, _, part = model.rpartition("/")
    if part not in PARTS:
        whole, part = model, ""
    policy, _, version = whole.partition("@")
    return policy, version, part
