"""`finetune dashboard`: serves the page until it is told to end."""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from finetune_api.outcomes import ExitCode
from finetune_cli.dashboard.board import Board
from finetune_cli.dashboard.cluster_source import Post
from finetune_cli.dashboard.server import PACE, Pace, Site, new_application
from finetune_cli.printing import say

_CLOSE_SECONDS = 1.0
"""Pages that are open do not leave by themselves."""
_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True)
class Door:
    """Where the page is served."""

    address: str
    """Of an interface; empty for all of them."""
    port: int
    """0 for any that is free."""


def serve(start: Callable[[Post], None], site: Site, door: Door, pace: Pace = PACE) -> int:
    """Serve what ``start`` hands over, until Ctrl-C or SIGTERM; returns the command's exit code."""
    return asyncio.run(_serve(start, site, door, pace))


def new_secret() -> str:
    """What nobody guesses."""
    return secrets.token_urlsafe(16)


async def _serve(start: Callable[[Post], None], site: Site, door: Door, pace: Pace) -> int:
    loop, told, board = asyncio.get_running_loop(), asyncio.Event(), Board()
    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, told.set)
    runner = web.AppRunner(new_application(board, site, pace), access_log=None, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, door.address or None, door.port).start()
    except OSError as error:
        await runner.cleanup()
        where = f"{door.address or 'all addresses'}, port {door.port}"
        why = os.strerror(error.errno).lower() if error.errno else error
        print(f"finetune: cannot listen on {where}: {why}", file=sys.stderr)
        return ExitCode.PLATFORM

    def post(work: Callable[[Board], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(work, board)

    start(post)
    say(f"{site.title}\n  {address_of(runner.addresses[0], site)}\nCtrl-C ends it.")
    await told.wait()
    await runner.cleanup()
    return ExitCode.DONE


def address_of(bound: tuple[str, int], site: Site) -> str:
    """What a browser on this machine is given."""
    host, port = bound[:2]
    if host in _EVERYWHERE:
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{quote(site.prefix)}/"
