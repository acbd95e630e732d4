"""One tree of errors: what a user can fix is reported in one line that says what to do."""

from flywheel.text import printable_line

EXCERPT = 200
"""Characters of another library's error that are kept."""


class FlywheelError(Exception):
    """Root of every error that Flywheel raises on purpose. The CLI prints it in one line and exits with 2."""


class ConfigError(FlywheelError):
    """The configuration names something unknown or combines what cannot work."""


class PrerequisiteError(FlywheelError):
    """Something outside Flywheel is missing or taken: Java, a port, an extra."""


class LakeError(FlywheelError):
    """The lake cannot be read or written as asked: broken file, newer schema, unknown id."""


class LakeBusyError(LakeError):
    """Another turn runs on the lake."""


class LakeAwayError(LakeError):
    """The catalog's server does not answer; the same may work a little later."""


class BudgetError(FlywheelError):
    """A budget is spent. Work stopped cleanly and is resumed by the same command."""


class QueryError(FlywheelError):
    """A SQL statement that is wrong, or that tries to do more than read."""


class PolicyError(FlywheelError):
    """A policy that does not load or that nobody registered."""


class TrainingError(FlywheelError):
    """Training cannot go on: the loss is not finite, or nothing is left to learn from."""


class ContaminationError(FlywheelError):
    """Held-out tasks would reach training."""


class InfrastructureError(FlywheelError):
    """The environment or its server failed, not the agent. Such episodes never count as failures of a policy."""


class RefusedError(InfrastructureError):
    """A server refuses one request, as one that is too long; others may fare better."""


class UnreachableError(InfrastructureError):
    """A model server does not answer, or fails; the request is not at fault."""


class RecordError(FlywheelError):
    """A record of another tool that cannot be taken; the message is the reason that stands in the quarantine.

    It may quote the record, so it is made one printable line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(printable_line(reason))


class TaskError(FlywheelError):
    """A task that its world does not have: a seed out of range, another split, foreign parameters. Bad data, nobody's
    failure."""


def named_reason(error: BaseException) -> str:
    """The error's name and what it says, as a reason to be kept."""
    return f"{type(error).__name__}: {reason_of(error)}"[:EXCERPT]


def reason_of(error: BaseException) -> str:
    """What another library's error says, in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
