"""Settings of a student's models."""

from __future__ import annotations

from pydantic import Field, model_validator

from flywheel.config.section import Count, Section


class StudentConfig(Section):
    """Size of one student model; planner, executor and flat student have the same."""

    hidden: Count = Field(default=160, description="Width.")
    layers: Count = Field(default=2, description="Depth.")
    heads: Count = Field(default=4, description="Attention heads; must divide the width.")
    token_shift: bool = Field(
        default=True,
        description="From scratch: each token's input holds a share of the token before it, so that names are copied "
        "more easily; transformers loads such a model after flywheel.register_models(). false: plain Qwen3.",
    )
    base: str = Field(
        default="", description="A local checkpoint folder or .gguf file to start from; its size replaces the above."
    )
    chat_template: str = Field(
        default="",
        description="A file with the base's chat template (Jinja), where it has none or one that shows no tools.",
    )
    lora_rank: int = Field(default=0, ge=0, description="Train an adapter of this rank on the base; 0: all of it.")
    vocabulary: int = Field(
        default=1200, ge=300, description="Most tokens of the tokenizer trained on the collected text."
    )
    window_steps: Count = Field(
        default=16, description="Decisions before the executor's or flat agent's context starts anew."
    )
    window_chars: int = Field(
        default=16_000,
        ge=1000,
        description="Characters of an agent's conversation, after which its oldest turns are left out, in training as "
        "in service.",
    )
    planner_window: Count = Field(default=10, description="Subgoals before the planner's context starts anew.")
    segment_steps: Count = Field(default=16, description="Steps after which an unfinished subgoal times out.")
    max_repeats: int = Field(
        default=0,
        ge=0,
        description="Times an action is offered from one and the same state; 0: always. For environments where an "
        "equal state and action lead to the same again.",
    )
    stuck_after: int = Field(
        default=0, ge=0, description="Steps without a change of state after which a subgoal is stuck; 0: never."
    )

    @model_validator(mode="after")
    def _divides(self) -> StudentConfig:
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} does not divide hidden={self.hidden}")
        if self.lora_rank and not self.base:
            raise ValueError("lora_rank needs a base to adapt")
        if self.chat_template and not self.base:
            raise ValueError("chat_template is that of a base; a student from scratch has markers of its own")
        return self


class Epochs(Section):
    """Passes over the data by role: a planner has one decision where an executor has three, and harder ones."""

    planner: Count
    executor: Count
    flat: Count
