"""``python -m async_repool.testing``: the stand-in server as a program. It runs until SIGINT or SIGTERM.

This module handles arguments, signals and the exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from .standin import StandInServer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _user(text: str) -> tuple[str, str]:
    name, colon, password = text.partition(":")
    if not name or not colon:
        # The message does not repeat the text, because it may be a password.
        raise argparse.ArgumentTypeError("expected NAME:PASSWORD")
    return name, password


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m async_repool.testing",
        description="A stand-in for a RethinkDB server: a test double with data in memory and only some terms.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=28015, help="port; 0 picks a free port (default: %(default)s)")
    parser.add_argument(
        "--user",
        type=_user,
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="a user who may log in; may be repeated (admin has no password unless named here)",
    )
    return parser


async def serve(server: StandInServer) -> None:
    """Run a server until SIGINT or SIGTERM. Raises ``OSError`` if the port cannot be used."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, ended.set)
    try:
        async with server:
            address = f"{server.host}:{server.port}"
            print(f"stand-in server (a test double, not RethinkDB) listening on {address}", flush=True)
            await ended.wait()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program. Returns its exit status: 1 if the port cannot be used."""
    options = _parser().parse_args(arguments)
    server = StandInServer(host=options.host, port=options.port, users={"admin": "", **dict(options.user)})
    try:
        asyncio.run(serve(server))
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
