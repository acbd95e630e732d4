"""Settings of curation: verifiers and their bars, duplicates, and how the corpus is balanced."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from flywheel.config.defaults import LEAK
from flywheel.config.section import PASSWORD, Count, Section, Share


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
        if PASSWORD.search(str(arguments)):
            raise ValueError("must not hold a password, verdicts keep the arguments; use FLYWHEEL_JUDGE_KEY")
        return arguments


class CurateConfig(Section):
    """What has to hold before a trajectory may teach."""

    verifiers: tuple[VerifierConfig, ...] = Field(
        default=(
            VerifierConfig(name="outcome"),
            VerifierConfig(name="integrity"),
            VerifierConfig(name="replay"),
        ),
        min_length=1,
        description="Names, or tables of name, arguments, gate and bar. The default asks for no solutions; where the "
        "environment knows them, privileged in place of outcome is the stricter one.",
    )
    vouch: tuple[str, ...] = Field(
        default=(),
        description="Verifiers of the pipeline whose word is enough for imported runs that nothing replays: judge, or "
        "outcome for what the record says of itself. Each route names who vouched.",
    )
    workers: Count = Field(default=2, description="Processes that verify at once, each with a simulator.")
    near_duplicate: Share = Field(
        default=0.95, description="Estimated Jaccard similarity from which an episode says nothing new."
    )
    leak: Share = Field(
        default=LEAK,
        description="Share of a held-out task's own n-grams, or likeness to its playing, that gives it away; 1: none.",
    )
    calibration_tasks: int = Field(default=24, ge=2, description="Labelled tasks of a calibration.")
    calibration_start: int = Field(
        default=9000, ge=0, description="The first of them in the dev fold; no gate draws tasks from there."
    )

    @field_validator("verifiers", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        return (
            [{"name": verifier} if isinstance(verifier, str) else verifier for verifier in given]
            if isinstance(given, list)
            else given
        )

    @model_validator(mode="after")
    def _consistent(self) -> CurateConfig:
        if not any(verifier.gate for verifier in self.verifiers):
            raise ValueError("no verifier gates; set gate = true for one of them")
        if len({verifier.name for verifier in self.verifiers}) < len(self.verifiers):
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
