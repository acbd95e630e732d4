"""Settings of tasks that come from a list."""

from __future__ import annotations

from pydantic import Field, model_validator

from flywheel.config.section import Section, Share


class TasksConfig(Section):
    """Tasks from a file, instead of those that the environment makes."""

    source: str = Field(
        default="",
        description="A file of tasks (.jsonl, .csv, .parquet), or a folder of them as Hugging Face datasets are saved; "
        "empty: the environment makes them.",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description='Where a file calls them otherwise: { instruction = "question" }.'
    )
    dev: Share = Field(default=0.15, description="Share of the groups without a split that becomes dev.")
    test: Share = Field(default=0.15, description="Share of them that becomes test; the rest trains.")
    again: bool = Field(
        default=False, description="Play training tasks again, as further attempts, where the list is exhausted?"
    )

    @model_validator(mode="after")
    def _some_train(self) -> TasksConfig:
        if self.dev + self.test >= 1:
            raise ValueError("dev and test leave nothing to train on; lower one of them")
        return self
