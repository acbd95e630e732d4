"""Settings of training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from flywheel.config.algorithms import FinetuneConfig
from flywheel.config.section import Count, Section, Share
from flywheel.config.student import Epochs


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
        default=0.0,
        description="Share of episodes, drawn anew each epoch, whose things change names consistently: where names say "
        "nothing of what to do with them.",
    )
    learning_rate: float = Field(default=2e-3, gt=0, description="At its peak.")
    weight_decay: float = Field(default=0.05, ge=0, description="Of AdamW.")
    warmup: Share = Field(default=0.05, description="Share of the updates with a rising learning rate.")
    schedule: Literal["linear", "cosine", "wsd"] = Field(default="linear", description="How the learning rate falls.")
    batch_tokens: int = Field(
        default=1024, ge=64, description="Tokens at once, padding included; a longer window is alone."
    )
    accumulate: Count = Field(default=1, description="So many times batch_tokens make an update.")
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on CUDA, else fp32.")
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training tasks that only tell when to stop; 0: train all epochs.",
    )
    patience: Count = Field(default=1, description="Epochs without gain on held-out tasks after which training stops.")
    segments: str = Field(
        default="milestones/2", description="Whose segments teach a hierarchy; see `flywheel segment`."
    )
    finetune: FinetuneConfig | None = Field(default=None, description="What follows cloning, if anything.")
    checkpoint_seconds: float = Field(default=20.0, gt=0, description="How often a killed run can resume from.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where models are trained and played; auto: the best that is here."
    )
    parallelism: Literal["replicated", "sharded"] = Field(
        default="replicated",
        description="Under torchrun: DDP; or FSDP2, which spreads the model over the processes.",
    )
    processes: Count = Field(default=1, description="Processes of torchrun that a turn trains each student with.")
    side_by_side: bool = Field(
        default=False,
        description="A turn trains flat and hierarchical student at once, each on its share of the cores.",
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        default=("tensorboard",), description="Where training curves go; TensorBoard files lie in data_dir/tracking."
    )

    @model_validator(mode="after")
    def _one_way_at_once(self) -> TrainConfig:
        if self.side_by_side and self.processes > 1:
            raise ValueError("side_by_side gives each student one process; set processes = 1, or side_by_side = false")
        return self
