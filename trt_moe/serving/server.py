"""`trt-moe serve`: the web application behind a socket, until it is told to stop."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.applications import Starlette

from trt_moe.errors import InputError

_BACKLOG = 2048
_LAST_ANSWERS_S = 10
# Longer than a reverse proxy keeps idle connections (nginx: 60): who closes first spoils what the other sends then.
_IDLE_S = 75


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at this address, which nobody can connect to yet.

    Raises:
        InputError: there can be none.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family)
    except (OSError, UnicodeError) as error:
        raise _not_here(host, getattr(error, "strerror", None) or str(error)) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _not_here(host, str(error.strerror)) from None
            raise _taken(port, error) from None
        yield listener


def _not_here(host: str, reason: str) -> InputError:
    return InputError(f"--host is {host!r}: {reason}; expected a name or an address of this machine")


def _taken(port: int, error: OSError) -> InputError:
    return InputError(f"port {port} cannot be served: {error.strerror}; pass another --port, 0 for any that is free")


def address_of(listener: socket.socket) -> str:
    """Its URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def serve(app: Starlette, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Answer what comes until SIGINT or SIGTERM; what is under way then is answered, within 10 seconds.

    Args:
        app: answers.
        listener: of `bound`.
        ready: called once connections are taken.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
        timeout_keep_alive=_IDLE_S,
    )
    # What is loaded by now stays: looking through all of it would stop every answer for a tenth of a second.
    gc.collect()
    gc.freeze()
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another one has come to listen there meanwhile
        raise _taken(listener.getsockname()[1], error) from None
    ready()
    # uvicorn raises the signal that ended it once more when it is done.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def exit_when_terminated() -> None:
    """Have SIGTERM end this process as the end of its work, so that what is open is closed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
