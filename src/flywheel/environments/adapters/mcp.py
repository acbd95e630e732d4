"""An MCP server's tools as an environment (https://modelcontextprotocol.io), over stdio or streamable HTTP.

Each episode has a folder of its own, and over stdio a server of its own in it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from flywheel.environments.tool_environment import ToolWorld, asked, data_of, settings_of, tool_world
from flywheel.environments.tools import Toolbox, with_answer
from flywheel.errors import ConfigError, InfrastructureError, PrerequisiteError, named_reason
from flywheel.named_objects import named_object
from flywheel.trajectory import Task

if TYPE_CHECKING:
    from mcp import Client

PARAMETERS = ("command", "url", "setup", "score", "success", "timeout")
FOLDER = "{folder}"
"""Stands for the episode's folder in the command, in what the agent is told, and in what it hands over."""
TIMEOUT = 30.0
"""Seconds for one call, if not told."""


class McpSession:
    """One episode with a server. Implements `Session`."""

    over = False
    opening = ""

    def __init__(self, settings: dict[str, Any], portal: BlockingPortal, task: Task) -> None:
        self._portal, self._data = portal, data_of(task)
        self._score: Callable[..., Any] = named_object(settings["score"])
        self._timeout = float(settings.get("timeout", TIMEOUT))
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        try:
            if settings.get("setup"):
                named_object(settings["setup"])(self._data, self._folder)
            connection = portal.wrap_async_context_manager(_client(settings, self._folder, self._timeout))
            self._client: Client = self._stack.enter_context(connection)
            self.toolbox = Toolbox(with_answer(list(self._tools())))
        except ConfigError:
            self._stack.close()
            raise
        except Exception as error:
            self._stack.close()
            raise InfrastructureError(f"the MCP server cannot be used: {_reason(error)}") from error

    def _tools(self) -> Iterator[dict[str, Any]]:
        cursor = None
        while True:
            page = self._portal.call(_tools_from, self._client, cursor)
            for tool in page.tools:
                function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
                yield {"type": "function", "function": function}
            cursor = page.next_cursor
            if cursor is None:
                return

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        from mcp.shared.exceptions import MCPError

        try:
            given = json.loads(json.dumps(arguments).replace(FOLDER, str(self._folder)))
            result = self._portal.call(_call, self._client, name, given, self._timeout)
        except MCPError as refused:
            raise RuntimeError(self._shown(str(refused))) from refused
        except Exception as error:
            raise InfrastructureError(f"the MCP server does not answer: {_reason(error)}") from error
        text = "\n".join(getattr(part, "text", f"[{part.type}]") for part in result.content)
        if result.is_error:
            raise RuntimeError(self._shown(text))
        return self._shown(text)

    def _shown(self, text: str) -> str:
        """The text without the folder's path, which is another one in each episode."""
        return text.replace(str(self._folder), FOLDER)

    def score(self, answer: str | None) -> float:
        return asked(self._score, self._data, self._folder, answer)

    def close(self) -> None:
        try:
            self._stack.close()
        except Exception as error:
            raise InfrastructureError(f"the MCP server does not end: {_reason(error)}") from error


def _client(settings: dict[str, Any], folder: Path, timeout: float) -> Client:
    from mcp import Client, StdioServerParameters

    if settings.get("url"):
        return Client(settings["url"], read_timeout_seconds=timeout)
    program, *arguments = [part.replace(FOLDER, str(folder)) for part in settings["command"]]
    program = sys.executable if program == "python" else program
    return Client(StdioServerParameters(command=program, args=arguments, cwd=folder), read_timeout_seconds=timeout)


async def _tools_from(client: Client, cursor: str | None) -> Any:
    return await client.list_tools(cursor=cursor)


async def _call(client: Client, name: str, arguments: dict[str, Any], timeout: float) -> Any:
    return await client.call_tool(name, arguments, read_timeout_seconds=timeout)


def _reason(error: BaseException) -> str:
    """Why, in one line; task groups wrap what went wrong."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return named_reason(error) if isinstance(error, Exception) else type(error).__name__


@contextmanager
def open_world(parameters: str) -> Iterator[ToolWorld]:
    """`command`: the server, `{folder}` for the episode's folder and `python` for this one; or `url` of a running one.
    `setup(data, folder)` prepares the folder, `score(data, folder, answer)` says how well the task was done, both as
    module:function; `success`: the score from which it counts."""
    settings = settings_of(parameters, "mcp", PARAMETERS, ("score",))
    if bool(settings.get("command")) == bool(settings.get("url")):
        raise ConfigError("mcp needs one of environment.parameters.command and url")
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise PrerequisiteError("the mcp environment needs mcp: pip install 'trajectory-flywheel[mcp]'") from error
    success = float(settings.get("success", 1.0))
    with (
        start_blocking_portal("asyncio") as portal,
        tool_world(lambda: lambda task: McpSession(settings, portal, task), success) as world,
    ):
        yield world
