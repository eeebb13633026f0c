"""The `autopeft` command: the table of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.main

from autopeft.cli import (
    bank,
    chat,
    count,
    debug,
    evaluate,
    export,
    methods,
    predict,
    recommend,
    report,
    runs,
    search,
    show,
    spaces,
    tasks,
    train,
)
from autopeft.cli.console import Told, notify
from autopeft.cli.declared import typed_command
from autopeft.errors import AutoPEFTError, StoppedError, UsageError, ended
from autopeft.interruption import exit_code, sentence

__all__ = ["app", "main"]

DONE, FAILED, BAD_USAGE, UNREAD = 0, 1, 2, 141
# Options that people ask for under a name of their own.
_WRITTEN_AS = {"--mergeable": "--serve merged", "--merged": "--serve merged"}
_CTRL_C = 130  # what typer makes of an interruption, of either kind

# Typer carries its own copy of click from some version on: its bases are found through the public names.
_BAD_COMMAND_LINE: Any = typer.BadParameter.__mro__[1]
_COMMAND_LINE_ERROR: Any = typer.BadParameter.__mro__[2]

# Where they are installed, they are imported with transformers, and tell which kernels they cannot load.
_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")

_COMMANDS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("search", search.search, "Find"),
    ("recommend", recommend.recommend, "Find"),
    ("train", train.train, "Reuse"),
    ("evaluate", evaluate.evaluate, "Reuse"),
    ("predict", predict.predict, "Reuse"),
    ("chat", chat.chat, "Reuse"),
    ("export", export.export, "Reuse"),
    ("bank", bank.bank, "Reuse"),
    ("show", show.show, "Look"),
    ("count", count.count, "Look"),
    ("runs", runs.runs, "Look"),
    ("debug", debug.debug, "Look"),
    ("report", report.report, "Look"),
    ("methods", methods.methods, "Look"),
    ("spaces", spaces.spaces, "Look"),
    ("tasks", tasks.tasks, "Look"),
)

app = typer.Typer(
    name="autopeft",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"autopeft {version('autopeft')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Search, compose and reuse hybrids of parameter-efficient fine-tuning methods under a parameter budget.

    Start here:

    \b
      autopeft search --budget 0.5% --task sst2     find the best hybrid under 0.5 % of the backbone
      autopeft recommend --budget 0.5%              what to begin with, without training
      autopeft methods                              what hybrids are made of
      autopeft show mam                             a fixed recipe, drawn and counted

    Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted, 141 nobody reads what it says (as after
    `| head`), 143 ended by SIGTERM. AUTOPEFT_DEBUG=1 shows tracebacks.
    """


for _name, _function, _panel in _COMMANDS:
    _class = typed_command(_function)
    app.command(_name, cls=_class, rich_help_panel=_panel, no_args_is_help=False)(_function)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted, 141 nobody
    reads what it says, 143 ended by SIGTERM.

    Errors are one sentence on stderr; `AUTOPEFT_DEBUG=1` shows the traceback as well.
    """
    for name in ("stdout", "stderr"):  # what is written to a stream that was closed before goes nowhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as we live
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is no error
            stream.reconfigure(errors="replace")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if argv is None else list(argv), prog_name="autopeft", standalone_mode=False
        )
    except _COMMAND_LINE_ERROR as error:
        message = error.format_message()
        other = _WRITTEN_AS.get(getattr(error, "option_name", None) or "")
        if other is not None:
            message = f"{message.rstrip('.')}. Write {other}."
        bad = isinstance(error, _BAD_COMMAND_LINE)
        if not message:
            return BAD_USAGE if bad else DONE
        return _fail(message, error, BAD_USAGE if bad else FAILED)
    except StoppedError as error:
        return _fail(str(error), error, exit_code())
    except AutoPEFTError as error:
        return _fail(str(error), error, BAD_USAGE if isinstance(error, UsageError) else FAILED)
    except (KeyboardInterrupt, typer.Abort) as error:
        return _interrupted(error)
    except (BrokenPipeError, SystemExit) as error:
        # Typer ends the process where a pipe is closed.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _silence_stdout()
        return UNREAD
    except Exception as error:
        hint = "" if _debug() else " Set AUTOPEFT_DEBUG=1 to see where."
        return _fail(f"{ended(f'{type(error).__name__}: {error}')}{hint}", error, FAILED)
    # Newer versions of typer turn Ctrl-C into an exit that says nothing.
    if code == _CTRL_C and not isinstance(code, Told):
        return _interrupted(None)
    return code if isinstance(code, int) else DONE


def _debug() -> bool:
    return os.environ.get("AUTOPEFT_DEBUG", "") not in ("", "0")


def _fail(message: str, error: BaseException | None, code: int) -> int:
    if _debug() and error is not None:
        traceback.print_exception(error, file=sys.stderr)
    notify(f"error: {message}")
    return code


def _interrupted(error: BaseException | None) -> int:
    return _fail(sentence(), error, exit_code())


def _silence_stdout() -> None:
    """Let the interpreter's last flush of a closed pipe go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
