"""The verifiers by name, and how each is made for a running world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flywheel.config.curate import VerifierConfig
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.verifiers.ensemble import Ensemble
from flywheel.filters.verifiers.integrity import Integrity
from flywheel.filters.verifiers.judge import Judge
from flywheel.filters.verifiers.outcome import Outcome
from flywheel.filters.verifiers.privileged import Privileged
from flywheel.filters.verifiers.process import Process
from flywheel.filters.verifiers.program import Program
from flywheel.filters.verifiers.protocol import Verifier
from flywheel.filters.verifiers.replay import Replay


@dataclass(frozen=True, slots=True)
class Tools:
    """What verifiers may use. `world` is None where no verifier of the pipeline needs one."""

    world: World | None
    cache: Path


VERIFIERS: dict[str, Callable[..., Verifier]] = {
    "outcome": lambda tools, **given: Outcome(**given),
    "program": lambda tools, **given: Program(**given),
    "privileged": lambda tools, **given: Privileged(tools.world, **given),
    "replay": lambda tools, **given: Replay(tools.world, **given),
    "integrity": lambda tools, **given: Integrity(**given),
    "process": lambda tools, **given: Process(tools.world, **given),
    "judge": lambda tools, **given: Judge(tools.world, tools.cache, **given),
    "ensemble": lambda tools, members=(), **given: Ensemble(make_verifiers(_members(members), tools), **given),
}
WORLDLESS = frozenset({"outcome", "integrity", "program"})


def needs_world(pipeline: Sequence[VerifierConfig]) -> bool:
    """Does a verifier of the pipeline open a simulator?"""
    return any(
        entry.name not in WORLDLESS
        and not (entry.name == "process" and entry.arguments.get("max_detour") == 0)
        and not (entry.name == "judge" and entry.arguments.get("rubric"))
        and not (entry.name == "ensemble" and not needs_world(_members(entry.arguments.get("members", ()))))
        for entry in pipeline
    )


def make_verifiers(pipeline: Sequence[VerifierConfig], tools: Tools) -> list[Verifier]:
    """The pipeline's verifiers, in order. Raises `ConfigError` for a name or an argument that there is not."""
    return [_make(entry.name, entry.arguments, tools) for entry in pipeline]


def _members(given: Sequence[str | dict[str, Any]]) -> list[VerifierConfig]:
    """The members of an ensemble, names or tables of name and arguments."""
    try:
        return [
            VerifierConfig.model_validate({"name": member} if isinstance(member, str) else member) for member in given
        ]
    except ValidationError as error:
        raise ConfigError(f"members of an ensemble: {error.errors()[0]['msg']}") from error


def _make(name: str, arguments: dict[str, Any], tools: Tools) -> Verifier:
    if name not in VERIFIERS:
        raise ConfigError(f"unknown verifier '{name}'; known: {', '.join(VERIFIERS)}")
    try:
        return VERIFIERS[name](tools, **arguments)
    except TypeError as error:
        raise ConfigError(f"verifier '{name}': {error}") from error
