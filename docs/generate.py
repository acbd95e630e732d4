"""Writes the reference pages anew from the code: `make docs`. A test holds that they are what it would write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flywheel.cli.main import app
from flywheel.config.root import Config
from flywheel.datasets.lake.views import reference as views_reference

DOCS = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Page → its text."""
    views = DOCS / "sql.md"
    return {
        views: views.read_text().partition("## `")[0] + views_reference(),
        DOCS / "reference" / "config.md": config_reference(),
        DOCS / "reference" / "cli.md": cli_reference(),
    }


def config_reference() -> str:
    """Every setting with its type, its default and what it is for."""
    parts = ["# Settings\n\nOne TOML file, or `--set section.key=value`. Unknown keys are refused.\n"]
    parts.append(_table(Config, [name for name in Config.model_fields if not _section_of(Config.model_fields[name])]))
    for path, section in _sections(Config, ""):
        plain = [name for name, field in section.model_fields.items() if not _section_of(field)]
        said = (section.__doc__ or "").strip()
        parts.append(f"## `[{path}]`\n\n{said}\n\n{_table(section, plain)}")
    return "\n".join(parts)


def _sections(section: type[BaseModel], before: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        if inner := _section_of(field):
            yield before + name, inner
            yield from _sections(inner, f"{before}{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(section: type[BaseModel], names: list[str]) -> str:
    rows = []
    for name in names:
        field = section.model_fields[name]
        default = "needed" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
        rows.append(f"| `{name}` | {_cell(_kind(field))} | {_cell(default)} | {_cell(field.description or '')} |")
    return "| key | type | default | what it is for |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"


def _kind(field: FieldInfo) -> str:
    kind = field.annotation
    name = kind.__name__ if isinstance(kind, type) and not getattr(kind, "__args__", ()) else str(kind)
    for prefix in ("typing.", "pathlib.", "flywheel.config."):
        name = name.replace(prefix, "")
    return f"`{name}`"


def _shown(value: Any) -> str:
    """A default as TOML would have it, verifiers and other tables by their names."""
    if isinstance(value, BaseModel):
        return str(getattr(value, "name", value.model_dump(mode="json", exclude_defaults=True)))
    if isinstance(value, tuple | list):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return json.dumps(value, default=str, ensure_ascii=False)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cli_reference() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    parts = [
        "# Commands\n\n`flywheel COMMAND --help` says the same. Exit codes: [Security](../security.md#exit-codes).\n"
    ]
    for name, command in _commands(root, "flywheel"):
        said = (command.help or "").strip()
        example = f"\n\n```sh\n{command.epilog.removeprefix('Example: ')}\n```" if command.epilog else ""
        parts.append(f"## `{name}`\n\n{said}{example}\n\n{_parameters(command)}")
    return "\n".join(parts)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if commands := getattr(command, "commands", None):
        for name, inner in sorted(commands.items()):
            yield from _commands(inner, f"{path} {name}")
    else:
        yield path, command


def _parameters(command: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        is_option = parameter.param_type_name == "option"
        names = ", ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
        default = parameter.default
        untold = default is None or default is False or default in ("", ()) or callable(default)
        usual = "" if untold else f"`{default}`"
        rows.append(f"| `{names}` | {_cell(getattr(parameter, 'help', '') or '')} | {_cell(usual)} |")
    return "| | what it says | default |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n" if rows else ""


if __name__ == "__main__":
    for page, text in pages().items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
