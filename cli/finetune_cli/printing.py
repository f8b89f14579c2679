"""What the command says. A reader that has gone away (`finetune run | head`) is no reason to stop a training.

Lines of a screen have styles, printed in colour where there is a terminal for it (rich respects NO_COLOR).
"""

import os
import sys
from pathlib import Path

from finetune_api.outcomes import ExitCode
from finetune_cli.screens import Line
from finetune_cli.store import write_atomically

_STYLES = {"good": "bold green", "bad": "bold red", "dim": "dim", "plain": ""}


def is_terminal() -> bool:
    """Whether somebody looks at standard output through something that can draw."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(text: str) -> bool:
    """Print a line at once. When nobody can read it any more, later lines go nowhere; returns False that once."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # https://docs.python.org/3/library/signal.html#note-on-sigpipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return False
    return True


def say_lines(lines: tuple[Line, ...]) -> None:
    """Print a screen."""
    if not is_terminal():
        say("\n".join(text for text, _ in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for text, style in lines:
        console.print(Text(text, style=_STYLES[style]), soft_wrap=True)


def write_page(page: str, path: Path, option: str) -> int:
    """Write a page to a file and say so; ``option`` named the file. Returns the command's exit code."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        print(f"{option}: {path} cannot be written ({error.strerror}); name another file", file=sys.stderr)
        return ExitCode.DENIED
    say(f"Written to {path}")
    return ExitCode.DONE
