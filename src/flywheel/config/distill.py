"""Settings of students and of how they are taught."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from flywheel.config.section import Count, Section, Share


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
    sharing: Literal["replicated", "sharded", "deepspeed"] = Field(
        default="replicated",
        description="Under torchrun: DDP; FSDP2, which spreads the model over the processes; or DeepSpeed's ZeRO stage "
        "2, which spreads the optimizer.",
    )
    processes: Count = Field(default=1, description="Processes of torchrun that a turn trains each student with.")
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=("tensorboard",), description="Where training curves go; TensorBoard files lie in data_dir/tracking."
    )
