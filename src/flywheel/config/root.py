"""Configuration: one TOML file a flywheel, typed, frozen, unknown keys refused with the nearest known one."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from flywheel.config.agents import AuditorConfig, ChatConfig, MistakesConfig, MixingConfig, RemoteConfig, ServedConfig
from flywheel.config.curate import BalanceConfig, CurateConfig
from flywheel.config.flows import BudgetConfig, ClusterConfig, NotifyConfig, ServeConfig, TriggersConfig
from flywheel.config.gateway import AgentConfig, GatewayConfig
from flywheel.config.section import PASSWORD, Count, Section, Share
from flywheel.config.student import StudentConfig
from flywheel.config.tasks import TasksConfig
from flywheel.config.train import TrainConfig
from flywheel.errors import ConfigError
from flywheel.trajectory import digest

TAG = "algorithm"
"""The key that tells the sections of a union apart."""
AT_WORK = frozenset({"agent", "gateway", "serve", "triggers", "budget", "notify", "cluster"})
"""Sections that say when and where it is done."""
APART = (
    ("train", "parallelism"),
    ("train", "processes"),
    ("train", "side_by_side"),
    ("train", "trackers"),
    ("environment", "workers"),
    ("environment", "processes"),
    ("environment", "step_timeout"),
    ("collect", "teachers"),
)
"""Settings that decide how something is done, and not what comes of it."""
_SECRET_NAME = re.compile(r"(?i)(api_?key|token|secret|password|passwd|credential)s?$")
_SECRET = re.compile(r"(?i)(api_?key|access_?token|token|secret|password)s?=(?!\$\{)[^&\s]+")


class EnvironmentConfig(Section):
    """Which simulator, how hard, how many episodes at once."""

    name: str = Field(description="A name from environments.catalog, or of a module of yours.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The simulator's own parameters: numbers, texts, lists, tables."
    )
    max_steps: Count = Field(default=60, description="Steps after which an episode is truncated.")
    max_tokens: int = Field(default=0, ge=0, description="Tokens after which it is truncated; 0: any number.")
    max_seconds: float = Field(default=0.0, ge=0, description="Seconds after which it is truncated; 0: any number.")
    max_cost: float = Field(default=0.0, ge=0, description="Cost, in the chat's prices, after which it is; 0: any.")
    parallel: Count = Field(default=64, description="Episodes that run at once.")
    workers: int = Field(
        default=0, ge=0, description="Processes for the environments, each with a simulator; 0: this process."
    )
    processes: Count = Field(
        default=1, description="Processes that play a student's episodes, each with a model and a simulator of its own."
    )
    step_timeout: float = Field(
        default=60.0, gt=0, description="Seconds without an answer after which a worker's environment counts as hung."
    )

    @field_validator("parameters")
    @classmethod
    def _no_secret(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if _holds_secret(parameters):
            raise ValueError("must not hold a secret, every trajectory keeps them; write ${NAME} for a variable")
        return parameters


def _holds_secret(value: Any, name: str = "") -> bool:
    """Is there something in a setting that looks like a password or a key, by its name or within its text?"""
    if isinstance(value, dict):
        return any(_holds_secret(inner, str(key)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return any(_holds_secret(inner, name) for inner in value)
    if not isinstance(value, str) or value.startswith("${"):
        return False
    return bool(PASSWORD.search(value) or _SECRET.search(value) or (value and _SECRET_NAME.search(name)))


class CollectConfig(Section):
    """How many episodes an iteration collects, and who plays them."""

    episodes: int = Field(
        default=1000, ge=0, description="New training tasks of the first iteration; 0: what is recorded teaches."
    )
    later_episodes: int = Field(default=600, ge=0, description="New training tasks of every later iteration.")
    teachers: dict[str, float] = Field(
        default={"expert": 0.5, "noisy_expert": 0.5},
        min_length=1,
        description="Who plays the tasks that no student plays, and in which proportion: expert, noisy_expert, chat, "
        "served, human, random, or a policy id.",
    )
    overlap: Share = Field(
        default=0.0, description="Share of its tasks that the noisy expert takes from the expert's: preference pairs."
    )
    mistakes: MistakesConfig = MistakesConfig()
    mixing: MixingConfig = MixingConfig()
    champion_share: Share = Field(
        default=0.25, description="Share of a later iteration's tasks that the champion plays."
    )
    tutored_share: Share = Field(
        default=0.0, description="Share of a later iteration's tasks that the champion begins and the expert finishes."
    )
    curriculum: bool = Field(
        default=True, description="Does the champion get the tasks at which it neither surely wins nor surely fails?"
    )

    @model_validator(mode="after")
    def _shares(self) -> CollectConfig:
        if self.champion_share + self.tutored_share > 1:
            raise ValueError("champion_share and tutored_share are parts of one whole; lower one of them")
        if min(self.teachers.values()) < 0 or sum(self.teachers.values()) <= 0:
            raise ValueError("the proportions of teachers must not be negative, and one of them must be positive")
        return self


class EvaluateConfig(Section):
    """Held-out tasks. The gate reads dev, reports read test; neither ever trains."""

    dev_tasks: Count = Field(default=100, description="Tasks of the gate; every iteration draws new ones.")
    test_tasks: Count = Field(default=100, description="The fixed tasks of P(verified).")
    test_start: int = Field(
        default=0, ge=0, description="The first of them in the test fold; move it when tasks have been looked at."
    )
    normalise: str = Field(
        default="",
        description="def normalise(name, arguments) -> arguments, as my_tools:normalise: makes a call's arguments "
        "equal where they mean the same, before answers are held against recorded sessions.",
    )


class GateConfig(Section):
    """When a challenger replaces the champion."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="Level of the exact McNemar test.")
    baseline: str = Field(
        default="random",
        description="Whom the first students must beat, before there is a champion: random, or a teacher's name.",
    )
    margin: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="A student that is no worse than the baseline by this much is promoted, too, as one that answers "
        "at a fraction of a teacher's cost; later champions must be beaten. 0: only who is better.",
    )
    slices: tuple[str, ...] = Field(
        default=(),
        description="Fields of the tasks' data whose values are slices, too, such as a customer's segment: none of "
        "them may get worse.",
    )
    looks: Count = Field(default=1, description="Interim looks at growing data; the level is shared among them.")
    power: float = Field(default=0.8, gt=0, lt=1, description="Power at which the minimum detectable effect is told.")


class LakeConfig(Section):
    """Where trajectories lie, and for how long."""

    url: str = Field(
        default="", description="Catalog and files of a shared lake; empty: in data_dir. See docs/lake.md."
    )
    check: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Does each turn first hold every file against its checksum, and set broken ones aside? auto: where "
        "the files lie on this machine.",
    )
    redact: tuple[Literal["phone number", "iban"], ...] = Field(
        default=(), description="Personal data to replace besides keys, addresses and cards."
    )
    retire: tuple[str, ...] = Field(
        default=(), description="Conditions over trajectories: what they select leaves the newest snapshot."
    )

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if PASSWORD.search(url):
            raise ValueError(
                "must not hold a password, settings are stored with every run; use PGPASSWORD or ~/.pgpass"
            )
        return url


class Config(Section):
    """One flywheel."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="Of this flywheel, as in Prefect's UI.")
    data_dir: Path = Field(description="Where the lake, students and reports lie.")
    seed: int = Field(default=0, description="Of play, training and draws.")
    iterations: Count = Field(default=2, description="Turns of the wheel.")
    environment: EnvironmentConfig
    tasks: TasksConfig = TasksConfig()
    collect: CollectConfig = CollectConfig()
    curate: CurateConfig = CurateConfig()
    balance: BalanceConfig = BalanceConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    serve: ServeConfig = ServeConfig()
    triggers: TriggersConfig = TriggersConfig()
    budget: BudgetConfig = BudgetConfig()
    notify: NotifyConfig = NotifyConfig()
    cluster: ClusterConfig = ClusterConfig()
    lake: LakeConfig = LakeConfig()
    chat: ChatConfig = ChatConfig()
    auditor: AuditorConfig = AuditorConfig()
    served: ServedConfig = ServedConfig()
    remote: RemoteConfig = RemoteConfig()
    gateway: GatewayConfig = GatewayConfig()
    agent: AgentConfig = AgentConfig()

    @model_validator(mode="after")
    def _calibration_apart(self) -> Config:
        drawn = self.iterations * self.evaluate.dev_tasks
        if drawn > self.curate.calibration_start:
            raise ValueError(
                f"the gates of {self.iterations} iterations draw {drawn} dev tasks, and calibration begins at task "
                f"{self.curate.calibration_start}; raise curate.calibration_start"
            )
        return self

    @model_validator(mode="after")
    def _one_app(self) -> Config:
        name, recorded = self.environment.name, self.gateway.environment
        if name.startswith("gateway/") and name != recorded:
            raise ValueError(f"environment.name is {name}, and the gateway records {recorded}; set gateway.app")
        return self

    @model_validator(mode="after")
    def _costs_are_known(self) -> Config:
        if "chat" in self.collect.teachers and (problem := self.unpriced("chat", self.chat)):
            raise ValueError(problem)
        return self

    @property
    def is_recorded(self) -> bool:
        """Do all runs come from outside, through the gateway or an import, so that nothing is ever played?"""
        name = self.environment.name
        return name.startswith("imported/") or (name.startswith("gateway/") and not self.agent.run)

    def unpriced(self, name: str, server: ChatConfig) -> str:
        """Why a budget of money cannot hold what a server takes, whose prices nobody told; empty where it can."""
        limited = self.budget.cost or self.environment.max_cost
        if not limited or None not in (server.price_prompt, server.price_completion):
            return ""
        return f"a budget of money needs {name}.price_prompt and {name}.price_completion; 0 where tokens are free"

    def identity(self) -> str:
        """Digest of all that decides results; where they lie, when they run and how they are measured does not. Nor
        does who else collects: each trajectory says who played it."""
        apart: Any = {"name", "data_dir", "iterations", "lake", "chat", "auditor", "served", "remote", *AT_WORK}
        measured: Any = {"workers", "calibration_tasks", "calibration_start"}
        settings = self.model_dump(mode="json", exclude=apart)
        for section, setting in APART:
            del settings[section][setting]
        curate = self.curate.model_dump(mode="json", exclude=measured)
        curate["verifiers"] = [verifier.model_dump(mode="json", exclude={"bar"}) for verifier in self.curate.verifiers]
        return digest(settings | {"curate": curate})


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `key.path=value` overrides. Raises `ConfigError` in one line."""
    try:
        raw = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; shipped ones are in configs/") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return make(raw, overrides, str(path))


def make(raw: dict[str, Any], overrides: Sequence[str] = (), name: str = "settings") -> Config:
    """Settings as plain data, with overrides. Raises `ConfigError` in one line."""
    for override in overrides:
        _apply(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{name}: {explain(error)}") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value, as in --set collect.episodes=50; got '{override}'")
    *parents, last = key.strip().split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: '{parent}' is a value, not a section")
    try:
        section[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        section[last] = value


def explain(error: ValidationError, section: type[Section] = Config) -> str:
    """What is wrong, in one line, with the nearest known key."""
    errors = error.errors()
    first = next((error_detail for error_detail in errors if error_detail["type"] == "extra_forbidden"), errors[0])
    path, sections = _walk(section, first["loc"])
    where = ".".join(path)
    if first["type"].startswith("union_tag"):
        options = _sections(_annotation(sections[0], path[-1]))
        tags = [str(tag) for option in options for tag in get_args(_annotation(option, TAG))]
        return f"{where}.{TAG}: must be one of {', '.join(tags)}"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    known = [name for inner in sections for name in inner.model_fields]
    close = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key '{where}'; {hint}"


def _walk(root: type[Section], location: Sequence[int | str]) -> tuple[list[str], list[type[Section]]]:
    """A place as pydantic tells it: (its keys, without the tags of unions; the section that the last key is in)."""
    path: list[str] = []
    inside, options = [root], [root]
    for part in map(str, location):
        tagged = [option for option in options if part in get_args(_annotation(option, TAG))]
        if len(options) > 1 and tagged:
            options = tagged
            continue
        path.append(part)
        inside = options
        if not part.isdigit():
            options = [section for option in options for section in _sections(_annotation(option, part))]
    return path, inside


def _annotation(section: type[Section], key: str) -> Any:
    return section.model_fields[key].annotation if key in section.model_fields else None


def _sections(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]
