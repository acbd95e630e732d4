"""The interactive `flywheel sql`: statements end with a semicolon, commands begin with a dot."""

from __future__ import annotations

import cmd
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.cli.console import Format
from flywheel.cli.output import show_table, write_result
from flywheel.datasets.lake.views import VIEWS
from flywheel.errors import FlywheelError
from flywheel.runtime.watchdog import resource_limits
from flywheel.text import printable

if TYPE_CHECKING:
    from flywheel.datasets.lake.lake import Lake
    from flywheel.datasets.lake.reading import QueryLimits

HELP = """\
.help [VIEW]   this list, or what a view's columns hold
.tables        the views
.at [N|NAME@vM]  read the lake as of a snapshot or dataset; without one, as it is now
.quit          leave (or Ctrl-D)"""
KEYWORDS = ("select", "from", "where", "group by all", "order by", "limit", "join", "using", "count(*)", "avg(")


class Shell(cmd.Cmd):
    """Reads statements over several lines; history and completion come from readline."""

    prompt = "flywheel> "

    def __init__(self, lake: Lake, at: int | None, limits: QueryLimits) -> None:
        super().__init__()
        self._lake, self._at, self._limits = lake, at, limits
        self._pending: list[str] = []
        self._words = sorted({*KEYWORDS, *VIEWS, *(column for view in VIEWS.values() for column in view.columns)})

    def onecmd(self, line: str) -> bool:
        """Every line is SQL or a dot command; none of cmd's own."""
        if line == "EOF":
            print()
            return True
        if line.startswith(".") and not self._pending:
            return self._command(line)
        self._pending.append(line)
        self.prompt = "     ...> "
        if line.rstrip().endswith(";"):
            statement = "\n".join(self._pending).rstrip().rstrip(";")
            self._pending, self.prompt = [], "flywheel> "
            try:
                with (
                    resource_limits(self._limits.seconds, self._limits.memory),
                    self._lake.stream(statement, at=self._at, limits=self._limits) as result,
                ):
                    write_result(result, Format.TABLE, None)
            except FlywheelError as error:
                print(printable(str(error)))
        return False

    def completenames(self, text: str, *ignored: object) -> list[str]:
        return [word for word in self._words if word.startswith(text)]

    def completedefault(self, *ignored: object) -> list[str]:
        return self.completenames(str(ignored[0]))

    def _command(self, line: str) -> bool:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name in (".quit", ".exit"):
            return True
        if name == ".tables":
            show_table(["view", "a row is"], [[view, VIEWS[view].row] for view in VIEWS])
        elif name == ".at":
            self._go_to(argument)
        elif name == ".help" and argument in VIEWS:
            show_table(["column", "holds"], list(VIEWS[argument].columns.items()))
        else:
            print(HELP)
        return False

    def _go_to(self, argument: str) -> None:
        from flywheel.datasets.versions.versions import snapshot_of

        try:
            at = snapshot_of(self._lake, argument) if argument else None
            self._lake.connect(at).close()
        except FlywheelError as error:
            print(printable(str(error)))
        else:
            self._at = at


def run_shell(lake: Lake, at: int | None, limits: QueryLimits, history: Path) -> None:
    """Read statements until Ctrl-D or `.quit`; the history is kept between sessions."""
    try:
        import readline
    except ImportError:  # Windows has none; the shell works without
        Shell(lake, at, limits).cmdloop("Statements end with ;   .help lists commands")
        return
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        Shell(lake, at, limits).cmdloop("Statements end with ;   .help lists commands")
    finally:
        with suppress(OSError):
            readline.write_history_file(history)
