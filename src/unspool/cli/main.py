"""The command line: the list of verbs, and what becomes of errors.

Every verb is a file of its own, which imports what is heavy inside its function.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

import unspool
from unspool.cli import (
    allocate,
    bench,
    bound,
    count,
    demo,
    eval,
    explore,
    formats,
    generate,
    inspect,
    launch,
    quantize,
    search,
    terminal,
    train,
)
from unspool.errors import UnspoolError

DONE, BUG, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

VERBS: Mapping[str, Callable[..., None]] = {
    "quantize": quantize.quantize,
    "inspect": inspect.inspect,
    "eval": eval.evaluate,
    "generate": generate.generate,
    "demo": demo.demo,
    "train": train.train,
    "explore": explore.explore,
    "allocate": allocate.allocate,
    "search": search.search,
    "count": count.count,
    "bound": bound.bound,
}

EPILOG = (
    "Exit codes: 0 done; 2 bad input, explained in one line on stderr; 1 a bug, with a traceback; "
    "130 interrupted. With --json, stdout holds exactly one JSON document: the result, or "
    '{"error": {kind, what, where, found, allowed}}. Progress goes to stderr, and only to a '
    "terminal. Wherever a model is asked for, the word demo names the bundled one."
)

#: the class of a wrong command line, wherever this release of typer keeps it
USAGE_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

app = typer.Typer(
    name="unspool",
    help="Few-bit LLM weights that unspool straight into tensor-core floats.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(formats.app, name="formats")
app.add_typer(bench.app, name="bench")
for _name, _verb in VERBS.items():
    app.command(_name)(_verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"unspool {unspool.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Few-bit LLM weights that unspool straight into tensor-core floats."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits; this is the console script `unspool`."""
    sys.exit(status(sys.argv[1:] if arguments is None else arguments))


def status(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code. Every error ends here."""
    _quieten_frameworks(arguments)
    if not launch.speaks():
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            return _status(arguments)
    return _status(arguments)


def _status(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return app(list(arguments), prog_name="unspool", standalone_mode=False) or DONE
        except UnspoolError as error:
            return _refuse(str(error), _described(error), as_json)
        except USAGE_ERROR as error:
            message: str = getattr(error, "format_message", lambda: str(error))()
            return _refuse(message, {"kind": "UsageError", "what": message}, as_json)
        except OSError as error:
            return _refuse(*_system_error(error), as_json)
        except (KeyboardInterrupt, typer.Abort):
            terminal.say("interrupted")
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001 - the outermost frame: a bug is shown in full
            traceback.print_exc()
            if as_json:
                bug = {"kind": type(error).__name__, "what": str(error)}
                terminal.print_json({"error": bug})
            return BUG


def _refuse(message: str, described: Mapping[str, Any], as_json: bool) -> int:
    terminal.say("error: " + " ".join(message.split()))
    if as_json:
        terminal.print_json({"error": described})
    return BAD_INPUT


def _system_error(error: OSError) -> tuple[str, dict[str, Any]]:
    """What the system refused, as a line and as data: a full disk, a folder that is not ours."""
    what, where = error.strerror or str(error), str(error.filename or "")
    line = f"{where}: {what}" if where else what
    return line, {"kind": type(error).__name__, "what": what, "where": where}


def _described(error: UnspoolError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "where": error.where,
        "found": _plain(error.found),
        "allowed": _plain(error.allowed),
    }


def _plain(thing: object) -> object:
    """Names alone where there is a table of them."""
    return list(thing) if isinstance(thing, Mapping) else thing


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, without the line of Python that raised it."""
    terminal.say(f"warning: {message}")


def _quieten_frameworks(arguments: Sequence[str]) -> None:
    """No advice from the libraries below, and their bars only where ours are shown too.

    They read these variables when they are imported, which is later.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if {"-q", "--quiet"} & set(arguments) or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
