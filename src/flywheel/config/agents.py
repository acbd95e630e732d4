"""Settings of policies: scripted teachers and their mistakes, chat models, served students, mixtures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from flywheel.config.section import Count, Section, Share


class MistakesConfig(Section):
    """Chances, at each step of the noisy expert, of each kind of mistake."""

    wrong_action: Share = Field(default=0.1, description="Some other valid action, taken back if it can be.")
    skipped_subgoal: Share = Field(default=0.0, description="The next action that counts is left out.")
    early_stop: Share = Field(default=0.0, description="The task is declared done, or given up.")
    loop: Share = Field(default=0.0, description="Something is done and taken back, several times over.")

    @model_validator(mode="after")
    def _one_whole(self) -> MistakesConfig:
        if self.wrong_action + self.skipped_subgoal + self.early_stop + self.loop > 1:
            raise ValueError("the chances of all kinds of mistake add up to more than 1; lower some")
        return self


class MixingConfig(Section):
    """Who acts in a `tutored` episode: the champion, or the teacher that watches and labels."""

    rule: Literal["stretch", "coin", "escalation"] = Field(
        default="stretch",
        description="stretch: the champion begins, the teacher finishes; coin: by chance at each step; escalation: the "
        "teacher helps where the champion's subgoals fail.",
    )
    teacher: str = Field(default="expert", description="A policy by name, as in collect.teachers.")
    beta: Share = Field(default=0.5, description="coin: the chance that the champion acts.")
    failures: Count = Field(default=2, description="escalation: subgoals that fail in a row before the teacher comes.")
    steps: Count = Field(default=8, description="escalation: steps for which the teacher stays.")


class ChatConfig(Section):
    """A model behind an OpenAI-compatible server, as a policy."""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", description="Of the server, with /v1.")
    model: str = Field(default="", description="Name under which the server knows the model.")
    key: str = Field(default="FLYWHEEL_CHAT_KEY", description="Environment variable that holds the API key.")
    temperature: Annotated[float, Field(ge=0)] | Literal["default"] = Field(
        default=0.0, description="Of an answer; default: the server's own, which newer models insist on."
    )
    max_tokens: Count = Field(default=256, description="Tokens of one answer.")
    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = Field(
        default="auto",
        description="The option that carries max_tokens; auto: max_tokens, until the server refuses it by name.",
    )
    tools: bool = Field(default=False, description="Ask for a tool call instead of plain text.")
    top_logprobs: int = Field(default=0, ge=0, le=20, description="Likeliest tokens to store with each; 0: none.")
    window: int = Field(default=16, ge=0, description="Turns that it is shown in full; 0: all of them.")
    corrections: int = Field(default=2, ge=0, description="Times it is asked again after an unreadable answer.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one answer.")
    retries: int = Field(default=30, ge=0, description="Times a failed request is sent again, with back-off.")
    per_minute: float = Field(default=0.0, ge=0, description="Requests that are sent in a minute; 0: any number.")
    price_prompt: float | None = Field(default=None, ge=0, description="Price of a million tokens read; None: unknown.")
    price_cached: float | None = Field(default=None, ge=0, description="Of those from the server's cache; None: same.")
    price_completion: float | None = Field(
        default=None, ge=0, description="Price of a million tokens written; None: unknown, so the cost is, too."
    )

    @field_validator("base_url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("must not hold a password, errors are stored with the address; use the key's variable")
        return url


class ServedConfig(ChatConfig):
    """A student behind `flywheel serve-policy`, as a policy."""

    base_url: str = Field(default="http://127.0.0.1:8321/v1", description="Of the server, with /v1.")
    model: str = Field(default="champion", description="champion, or a policy id.")
    key: str = Field(default="FLYWHEEL_SERVE_KEY", description="Environment variable that holds the API key.")
    price_prompt: float | None = Field(default=0.0, ge=0, description="Price of a million tokens read; None: unknown.")
    price_completion: float | None = Field(default=0.0, ge=0, description="Price of a million tokens written.")


class AuditorConfig(ChatConfig):
    """The model that looks at what agents call done, in `flywheel evaluate --auditor`."""

    key: str = Field(default="FLYWHEEL_AUDITOR_KEY", description="Environment variable that holds the API key.")


class RemoteConfig(Section):
    """Where a GPU server (vLLM) holds the models of the champion; see docs/agents.md."""

    planner: str = Field(default="http://127.0.0.1:8001/v1", description="Base URL of the planner's server.")
    executor: str = Field(default="http://127.0.0.1:8002/v1", description="Base URL of the executor's server.")
    flat: str = Field(default="http://127.0.0.1:8001/v1", description="Base URL of a flat student's server.")
    key: str = Field(default="FLYWHEEL_REMOTE_KEY", description="Environment variable that holds the API key.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds for one answer.")
    retries: int = Field(default=8, ge=0, description="Times a failed request is sent again, with back-off.")
