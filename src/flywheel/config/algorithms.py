"""Settings of the algorithms that finetune a cloned student: one class each, discriminated by `algorithm`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flywheel.config.section import Count, Section, Share
from flywheel.config.student import Epochs, StudentConfig

KINDS = ("hierarchical", "flat")
"""Kinds of students."""


class CreditConfig(Section):
    """How decisions are credited, under critics that are fitted on the student itself."""

    method: Literal["gae", "returns", "gigpo", "progress", "hae"] | None = Field(
        default=None, description="None: gae for a flat student, hae for both levels of a hierarchical one."
    )
    gamma: Share = Field(default=0.97, description="Discount; below 1, a detour costs.")
    lam: Share | None = Field(default=None, description="λ of gae and hae; None: 1 − 1/(alpha × length).")
    alpha: float = Field(default=1.0, gt=0, description="How far credit travels under the length-adaptive λ.")
    shaping: bool = Field(default=False, description="Add the gain in progress to the rewards.")

    @model_validator(mode="after")
    def _lambda_has_a_use(self) -> CreditConfig:
        if self.lam is not None and self.method not in (None, "gae", "hae"):
            raise ValueError(f"credit.method {self.method} has no λ; leave out lam, or set method = 'gae'")
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of students whose levels the method credits."""
        return KINDS if self.method is None else ("hierarchical",) if self.method == "hae" else ("flat",)


class PhaseConfig(Section):
    """A phase of training after the first."""

    epochs: Epochs = Field(default=Epochs(planner=2, executor=1, flat=1), description="Passes of this phase.")
    learning_rate: float = Field(default=5e-4, gt=0)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of students that the algorithm can finetune."""
        return KINDS


class OnlineConfig(PhaseConfig):
    """The student plays training tasks, is updated, and plays again."""

    tasks: Count = Field(default=200, description="Training tasks of a round, played at temperature 1.")
    rounds: Count = Field(default=4, description="Rounds; each makes a student of its own, whose parent played it.")
    first_task: int = Field(default=6000, ge=0, description="The first of the tasks; collection draws from 0.")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="How far a probability may fall, as a ratio.")
    clip_high: float = Field(default=0.28, gt=0, description="How far it may rise (clip-higher).")

    def tasks_of(self, number: int) -> range:
        """Numbers of the training tasks of a round, which no other round plays."""
        first = self.first_task + number * self.tasks
        return range(first, first + self.tasks)


class BCConfig(PhaseConfig):
    """Behaviour cloning goes on: the control of the other algorithms."""

    algorithm: Literal["bc"]


class CreditedConfig(PhaseConfig):
    """A phase in which decisions are worth something each."""

    credit: CreditConfig = CreditConfig()

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.credit.kinds


class AWRConfig(CreditedConfig):
    """Advantage-weighted regression: better decisions of the corpus count more."""

    algorithm: Literal["awr"]
    beta: float = Field(default=1.0, gt=0, description="Temperature: the higher, the more alike decisions count.")
    max_weight: float = Field(default=20.0, gt=0, description="The most that one decision counts.")


class KDConfig(PhaseConfig):
    """Knowledge distillation from a larger student's log-probabilities."""

    algorithm: Literal["kd"]
    teacher: StudentConfig = Field(
        default=StudentConfig(hidden=256, layers=3), description="The teacher; cloned first, from the same data."
    )
    teacher_epochs: Epochs | None = Field(default=None, description="Passes of the teacher; None: those of train.")
    teacher_seed: int = Field(default=0, description="One teacher serves students of all seeds.")
    top_k: Count = Field(default=8, description="The teacher's log-probabilities that are kept of each token.")
    reverse: bool = Field(default=False, description="KL(student ‖ teacher) instead of KL(teacher ‖ student).")


class DPOConfig(PhaseConfig):
    """Direct preference optimisation: verified episodes over failed ones of the same task."""

    algorithm: Literal["dpo"]
    beta: float = Field(default=1.0, gt=0, description="How little the student may leave the policy it began as.")

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("flat",)


class PPOConfig(CreditedConfig, OnlineConfig):
    """Proximal policy optimisation of the student's own play, with a critic at each level."""

    algorithm: Literal["ppo"]
    success_weight: float = Field(default=0.1, ge=0, description="Weight of the likelihood of verified episodes.")


class GRPOConfig(OnlineConfig):
    """Group-relative policy optimisation: several attempts at each task are compared, without a critic."""

    algorithm: Literal["grpo"]
    tasks: Count = Field(default=50, description="Training tasks of a round, played at temperature 1.")
    attempts: int = Field(default=8, ge=2, description="Attempts at each task: the group.")
    reward: Literal["verified", "score"] = Field(default="verified", description="What attempts are compared by.")
    scale_by_std: bool = Field(
        default=True, description="Divide by the group's standard deviation; Dr. GRPO does not (arXiv 2503.20783)."
    )
    average: Literal["episode", "token"] = Field(
        default="episode",
        description="What counts alike: every episode, as in GRPO, or every token, as in DAPO and Dr. GRPO.",
    )
    kl_weight: float = Field(default=0.0, ge=0, description="Weight of KL to the student before the first round.")


FinetuneConfig = Annotated[
    BCConfig | AWRConfig | KDConfig | DPOConfig | PPOConfig | GRPOConfig, Field(discriminator="algorithm")
]
