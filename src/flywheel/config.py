"""Configuration: one TOML file a flywheel, typed, frozen, unknown keys refused with the nearest known one."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flywheel.errors import ConfigError
from flywheel.trajectory import digest

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
LEAK = 0.8
"""Likeness from which a training episode gives a held-out task away."""
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


class Section(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvironmentConfig(Section):
    """Which simulator, how hard, how many episodes at once."""

    name: str = Field(default="cookingworld", description="A name from environments.catalog.")
    parameters: dict[str, int] = Field(default_factory=dict, description="The simulator's own parameters.")
    max_steps: Count = Field(default=60, description="Steps after which an episode is truncated.")
    parallel: Count = Field(default=64, description="Episodes that run at once in one process.")


class CollectConfig(Section):
    """How many episodes an iteration collects, and who plays them."""

    episodes: Count = Field(default=1000, description="New training tasks of the first iteration.")
    later_episodes: Count = Field(default=600, description="New training tasks of every later iteration.")
    expert_share: Share = Field(default=0.5, description="Share of the teacher's episodes played without noise.")
    overlap: Share = Field(
        default=0.0, description="Share of its tasks that the noisy expert takes from the expert's: preference pairs."
    )
    noise: Share = Field(default=0.1, description="Chance of an injected action at each step of the noisy expert.")
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
        return self


class Bar(Section):
    """What a verifier must reach on labelled episodes before it may gate data."""

    precision: Share = Field(default=0.0, description="Share of what it passes that is a true success.")
    recall: Share = Field(default=0.0, description="Share of the true successes that it passes.")
    kappa: float = Field(default=0.0, ge=-1, le=1, description="Cohen's kappa with ground truth.")


class VerifierConfig(Section):
    """One verifier of the pipeline; its name alone will do."""

    name: str = Field(description="A name from filters.catalog.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="As the verifier's class takes them.")
    gate: bool = Field(default=True, description="Must it pass? Otherwise its verdicts are kept and decide nothing.")
    bar: Bar | None = Field(default=None, description="Below it, the verifier may not gate data.")

    @field_validator("arguments")
    @classmethod
    def _no_password(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if _PASSWORD.search(str(arguments)):
            raise ValueError("must not hold a password, verdicts keep the arguments; use FLYWHEEL_JUDGE_KEY")
        return arguments


class CurateConfig(Section):
    """What has to hold before a trajectory may teach."""

    verifiers: tuple[VerifierConfig, ...] = Field(
        default=(
            VerifierConfig(name="privileged"),
            VerifierConfig(name="integrity"),
            VerifierConfig(name="replay"),
        ),
        min_length=1,
        description="Names, or tables of name, arguments, gate and bar.",
    )
    workers: Count = Field(default=2, description="Processes that verify at once, each with a simulator.")
    near_duplicate: Share = Field(
        default=0.95, description="Estimated Jaccard similarity from which an episode says nothing new."
    )
    leak: Share = Field(
        default=LEAK,
        description="Share of a held-out task's own n-grams, or likeness to its playing, that gives it away.",
    )
    calibration_tasks: int = Field(default=24, ge=2, description="Labelled tasks of a calibration.")
    calibration_start: int = Field(
        default=9000, ge=0, description="The first of them in the dev fold; no gate draws tasks from there."
    )

    @field_validator("verifiers", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        return [{"name": one} if isinstance(one, str) else one for one in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _consistent(self) -> CurateConfig:
        if not any(one.gate for one in self.verifiers):
            raise ValueError("no verifier gates; set gate = true for one of them")
        if len({one.name for one in self.verifiers}) < len(self.verifiers):
            raise ValueError("a verifier is named twice; an ensemble's members can be one verifier several times")
        return self


class BalanceConfig(Section):
    """How often an episode teaches. Exponents: 0 leaves an aspect out, 1 levels it completely."""

    horizon: Share = Field(default=0.0, description="Against the abundance of an episode's length, by octaves.")
    family: Share = Field(default=0.0, description="Against the abundance of its environment and parameters.")
    difficulty: Share = Field(default=0.0, description="Towards what the champion fails at.")
    novelty: Share = Field(default=0.0, description="Against episodes that many others are like.")
    likeness: Share = Field(default=0.8, description="Estimated Jaccard similarity of episodes that are alike.")
    max_weight: float = Field(default=3.0, ge=1, description="Weights are cut at so many times their mean.")


class StudentConfig(Section):
    """Size of one student model; planner, executor and flat student have the same."""

    hidden: Count = Field(default=160, description="Width.")
    layers: Count = Field(default=2, description="Depth.")
    heads: Count = Field(default=4, description="Attention heads; must divide the width.")
    base: str = Field(
        default="", description="A local checkpoint folder or .gguf file to start from; its size replaces the above."
    )
    lora_rank: int = Field(default=0, ge=0, description="Train an adapter of this rank on the base; 0: all of it.")
    vocabulary: int = Field(
        default=1200, ge=300, description="Most tokens of the tokenizer trained on the collected text."
    )
    window_steps: Count = Field(
        default=16, description="Decisions before the executor's or flat agent's context starts anew."
    )
    planner_window: Count = Field(default=10, description="Subgoals before the planner's context starts anew.")
    segment_steps: Count = Field(default=16, description="Steps after which an unfinished subgoal times out.")
    max_repeats: Count = Field(default=2, description="Times an action is offered from one and the same state.")

    @model_validator(mode="after")
    def _divides(self) -> StudentConfig:
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} does not divide hidden={self.hidden}")
        if self.lora_rank and not self.base:
            raise ValueError("lora_rank needs a base to adapt")
        return self


class Epochs(Section):
    """Passes by role: a planner has one decision where an executor has three, and harder ones."""

    planner: Count
    executor: Count
    flat: Count


class CreditConfig(Section):
    """How decisions are credited: GAE for a flat student, HAE for both levels of a hierarchical one."""

    gamma: Share = Field(default=0.97, description="Discount; below 1, a detour costs.")
    alpha: float = Field(default=1.0, gt=0, description="How far credit travels under the length-adaptive λ.")
    shaping: bool = Field(default=False, description="Add the gain in progress to the rewards.")


class PracticeConfig(Section):
    """Rounds of reinforcement: the student plays, its critics say what each decision was worth, it is updated."""

    rounds: Count = Field(default=4, description="Rounds; each makes a student of its own, whose parent played it.")
    episodes: Count = Field(default=200, description="Training tasks of a round, played at temperature 1.")
    start: int = Field(default=6000, ge=0, description="The first of them; collection draws from 0.")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="How far a probability may fall, as a ratio.")
    clip_high: float = Field(default=0.28, gt=0, description="How far it may rise (clip-higher).")
    success: float = Field(default=0.1, ge=0, description="Weight of the likelihood of verified episodes beside it.")


class RefineConfig(Section):
    """A second phase: the cloned student goes on under another objective (see docs/distillation.md)."""

    objective: Literal["cloning", "regression", "imitation", "preference", "proximal"] = Field(
        description="regression: by advantage; imitation: of a larger teacher; preference: successes over failures; "
        "proximal: of its own practice."
    )
    epochs: Epochs = Field(default=Epochs(planner=2, executor=1, flat=1), description="Passes of this phase.")
    learning_rate: float = Field(default=5e-4, gt=0)
    beta: float = Field(default=1.0, gt=0, description="Temperature of regression, or of preference.")
    max_weight: float = Field(default=20.0, gt=0, description="The most that regression makes of a decision.")
    credit: CreditConfig = CreditConfig()
    teacher: StudentConfig = Field(
        default=StudentConfig(hidden=256, layers=3), description="Imitation's teacher; distilled first, same data."
    )
    teacher_epochs: Epochs | None = Field(default=None, description="Passes of the teacher; None: those of train.")
    teacher_seed: int = Field(default=0, description="One teacher serves students of all seeds.")
    top_k: Count = Field(default=8, description="The teacher's log-probabilities that are kept of each token.")
    reverse: bool = Field(default=False, description="KL(student ‖ teacher) instead of KL(teacher ‖ student).")
    practice: PracticeConfig = PracticeConfig()


class TrainConfig(Section):
    """Supervised distillation. Every iteration trains on all verified trajectories so far."""

    epochs: Epochs = Field(
        default=Epochs(planner=5, executor=2, flat=3), description="Passes over the data in the first iteration."
    )
    later_epochs: Epochs = Field(
        default=Epochs(planner=4, executor=1, flat=2),
        description="Passes in later iterations, which start from the student before.",
    )
    renamed: Share = Field(
        default=0.8, description="Share of episodes, drawn anew each epoch, whose things change names consistently."
    )
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup: Share = Field(default=0.05, description="Share of the updates with a rising learning rate.")
    schedule: Literal["linear", "cosine", "wsd"] = Field(default="linear", description="How the learning rate falls.")
    batch_tokens: int = Field(
        default=1024, ge=64, description="Tokens at once, padding included; a longer window is alone."
    )
    accumulate: Count = Field(default=1, description="So many times batch_tokens make an update.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA, else fp32.")
    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training tasks that only tell when to stop; 0: train all epochs.",
    )
    patience: Count = Field(default=1, description="Epochs without gain on held-out tasks after which training stops.")
    segments: str = Field(
        default="milestones/1", description="Whose segments teach a hierarchy; see `flywheel segment`."
    )
    refine: RefineConfig | None = Field(default=None, description="What follows cloning, if anything.")
    checkpoint_seconds: float = Field(default=20.0, gt=0, description="How often a killed run can resume from.")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sharing: Literal["replicated", "sharded"] = Field(
        default="replicated", description="Under torchrun: DDP, or FSDP2, which spreads the model over the processes."
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=("tensorboard",), description="Where training curves go; TensorBoard files lie in data_dir/tracking."
    )


class EvaluateConfig(Section):
    """Held-out tasks. The gate reads dev, reports read test; neither ever trains."""

    dev_tasks: Count = Field(default=100, description="Tasks of the gate; every iteration draws new ones.")
    test_tasks: Count = Field(default=100, description="The fixed tasks of P(verified).")
    test_start: int = Field(
        default=0, ge=0, description="The first of them in the test fold; move it when tasks have been looked at."
    )


class GateConfig(Section):
    """When a challenger replaces the champion."""

    alpha: float = Field(default=0.05, gt=0, lt=1, description="Level of the exact McNemar test.")
    looks: Count = Field(default=1, description="Interim looks at growing data; the level is shared among them.")
    power: float = Field(default=0.8, gt=0, lt=1, description="Power at which the minimum detectable effect is told.")


class ServeConfig(Section):
    """The scheduled deployment of `flywheel serve`."""

    cron: str = Field(default="0 2 * * *", description="When a new turn starts.")
    port: int = Field(default=4200, ge=1, le=65535, description="Loopback port of the server that `serve` starts.")


class LakeConfig(Section):
    """Where trajectories lie, and for how long."""

    url: str = Field(
        default="", description="Catalog and files of a shared lake; empty: in data_dir. See docs/lake.md."
    )
    retire: tuple[str, ...] = Field(
        default=(), description="Conditions over trajectories: what they select leaves the newest snapshot."
    )

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if _PASSWORD.search(url):
            raise ValueError(
                "must not hold a password, settings are stored with every run; use PGPASSWORD or ~/.pgpass"
            )
        return url


class Config(Section):
    """One flywheel."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    data_dir: Path
    seed: int = 0
    iterations: Count = 2
    environment: EnvironmentConfig = EnvironmentConfig()
    collect: CollectConfig = CollectConfig()
    curate: CurateConfig = CurateConfig()
    balance: BalanceConfig = BalanceConfig()
    student: StudentConfig = StudentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    serve: ServeConfig = ServeConfig()
    lake: LakeConfig = LakeConfig()

    @model_validator(mode="after")
    def _calibration_apart(self) -> Config:
        drawn = self.iterations * self.evaluate.dev_tasks
        if drawn > self.curate.calibration_start:
            raise ValueError(
                f"the gates of {self.iterations} iterations draw {drawn} dev tasks, and calibration begins at task "
                f"{self.curate.calibration_start}; raise curate.calibration_start"
            )
        return self

    def identity(self) -> str:
        """Digest of all that decides results; where they lie, when they run and how they are measured does not."""
        apart: Any = {"name", "data_dir", "iterations", "serve", "lake"}
        measured: Any = {"workers", "calibration_tasks", "calibration_start"}
        settings = self.model_dump(mode="json", exclude=apart)
        for setting in ("sharing", "trackers"):
            del settings["train"][setting]
        curate = self.curate.model_dump(mode="json", exclude=measured)
        curate["verifiers"] = [one.model_dump(mode="json", exclude={"bar"}) for one in self.curate.verifiers]
        return digest(settings | {"curate": curate})


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply `key.path=value` overrides. Raises `ConfigError` in one line."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no config at {path}; shipped ones are in configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None


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
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    known = _keys(section, first["loc"][:-1])
    close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key '{where}'; {hint}"


def _keys(root: type[Section], path: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at `path`, through lists and options."""
    section: Any = root
    for part in path:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        inner = (one for one in get_args(section) if isinstance(one, type) and issubclass(one, Section))
        section = next(inner, section)
    fields: Mapping[str, object] = section.model_fields
    return list(fields)
