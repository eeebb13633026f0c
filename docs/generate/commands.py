"""A page for each command of `autopeft`, made from the command that the terminal runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import typer.main

from autopeft.cli.app import app
from generate.markdown import cell, prose, table

__all__ = ["commands", "pages"]


def commands() -> Mapping[str, Any]:
    """The commands by name, in the order of `autopeft --help`."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _paragraphs(text: str) -> list[str]:
    """Help as Markdown: what follows `\\b` are examples, a command in each line."""
    found = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if part.lstrip().startswith("\b"):
            lines = [line.strip() for line in part.replace("\b", "").splitlines() if line.strip()]
            found.append("```bash\n" + "\n".join(lines) + "\n```")
        else:
            found.append(prose(" ".join(part.split())))
    return found


def _context(command: Any) -> Any:
    settings = dict(app.info.context_settings or {})
    return command.make_context(command.name, [], resilient_parsing=True, **settings)


def _rows(command: Any) -> dict[str, list[list[str]]]:
    """Rows of each panel: how an option is written, and what it means with its default and range."""
    context = _context(command)
    panels: dict[str, list[list[str]]] = {}
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        argument = parameter.param_type_name == "argument"
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
        record = parameter.get_help_record(context)
        written, meaning = record if record else (parameter.make_metavar(context), parameter.help or "")
        panels.setdefault(panel, []).append(
            [f"`{' '.join(written.split())}`".replace("|", "\\|"), cell(meaning)]
        )
    return panels


def command_page(name: str) -> str:
    """The page of one command."""
    command = commands()[name]
    context = _context(command)
    usage = " ".join(["autopeft", name, *command.collect_usage_pieces(context)])
    parts = [f"# autopeft {name}", *_paragraphs(command.help or ""), "## Usage", f"```text\n{usage}\n```"]
    for panel, rows in _rows(command).items():
        parts += [f"## {panel}", table(["written", "meaning"], rows)]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """The table of all commands."""
    rows = [
        [f"[`autopeft {name}`]({name}.md)", cell((command.help or "").strip().split("\n\n")[0])]
        for name, command in commands().items()
    ]
    return (
        "\n\n".join(
            [
                "# Commands",
                "Every command explains itself with `--help`. These pages show the same text.",
                table(["command", "what it does"], rows),
                "Exit codes are 0 (done), 1 (failed), 2 (bad usage), 130 (interrupted), 141 (nobody reads "
                "what it says, as after `| head`) and 143 (ended by SIGTERM). `AUTOPEFT_DEBUG=1` shows "
                "tracebacks.",
            ]
        )
        + "\n"
    )


def pages() -> dict[str, str]:
    """All pages under `reference/commands/` by path, the list for the navigation included."""
    navigation = ["* [All commands](index.md)", *(f"* [{n}]({n}.md)" for n in commands())]
    return {
        **{f"reference/commands/{name}.md": command_page(name) for name in commands()},
        "reference/commands/index.md": overview(),
        "reference/commands/SUMMARY.md": "\n".join(navigation) + "\n",
    }
