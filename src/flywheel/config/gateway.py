"""Settings of the gateway, which stands between an agent and its model."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from flywheel.config.section import Count, Section, Share


class AgentConfig(Section):
    """An agent that Flywheel runs itself, through its gateway."""

    run: str = Field(
        default="", description="async def run(task, client) -> outcome, as my_agent:run; client is OpenAI's."
    )
    model: str = Field(default="", description="The model that it is told to ask for.")
    parallel: Count = Field(default=8, description="Runs at once.")
    processes: Count = Field(default=1, description="Processes that they are spread over.")
    timeout: float = Field(default=600.0, gt=0, description="Seconds of one run.")
    retries: int = Field(default=1, ge=0, description="Further attempts where the model's server failed.")
    max_tokens: int = Field(default=0, ge=0, description="Tokens, read and written, of one run; 0: no limit.")
    max_cost: float = Field(default=0.0, ge=0, description="Cost of one run at the gateway's prices; 0: no limit.")


class GatewayConfig(Section):
    """Whose calls are recorded, for how long a session stays open, and how much waits on this machine."""

    app: str = Field(
        default="agent", pattern=r"^[a-z0-9][a-z0-9-]*$", description="The agent: its sessions are of gateway/<app>."
    )
    upstream: str = Field(default="http://127.0.0.1:8000/v1", description="The model's server, with /v1.")
    students: str = Field(
        default="http://127.0.0.1:8321/v1", description="Where flywheel serve-policy answers for students, with /v1."
    )
    key: str = Field(default="FLYWHEEL_UPSTREAM_KEY", description="Environment variable that holds its API key.")
    port: int = Field(default=8400, ge=0, le=65535, description="Where agents find the gateway; 0 takes a free one.")
    timeout: float = Field(default=600.0, gt=0, description="Seconds without a byte from the server.")
    idle: float = Field(default=900.0, gt=0, description="Seconds without a call after which a session is over.")
    spool_mib: Count = Field(
        default=4096, description="So much waits for the lake; what comes beyond is answered and not recorded."
    )
    body_mib: Count = Field(default=64, description="The largest request.")
    dev_share: Share = Field(default=0.1, description="Share of the sessions that the gate may read, and no student.")
    test_share: Share = Field(default=0.1, description="Share of the sessions that reports read.")
    private: tuple[str, ...] = Field(
        default=(), description="Regular expressions of what else is replaced by placeholders, as customer numbers."
    )
    price_prompt: float | None = Field(default=None, ge=0, description="Price of a million tokens read; None: unknown.")
    price_completion: float | None = Field(default=None, ge=0, description="Price of a million tokens written.")

    @property
    def environment(self) -> str:
        """What its sessions are called in the lake."""
        return f"gateway/{self.app}"

    def cost_of(self, prompt: int | None, completion: int | None) -> float | None:
        """What so many tokens cost; None where a count or a price is not known."""
        if prompt is None or completion is None or self.price_prompt is None or self.price_completion is None:
            return None
        return (prompt * self.price_prompt + completion * self.price_completion) / 1e6

    @field_validator("upstream", "students")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if not re.match(r"https?://", url):
            raise ValueError("must begin with http:// or https://")
        if "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("must not hold a password; use the key's variable")
        return url.rstrip("/")

    @field_validator("private")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _some_train(self) -> GatewayConfig:
        if self.dev_share + self.test_share >= 1:
            raise ValueError("dev_share and test_share leave nothing to train on; lower them")
        return self
