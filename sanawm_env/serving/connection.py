"""A client's connection to a server: requests, replies, and reconnecting.

A request whose connection was lost is sent again over a new one, under the same number, and the server does not repeat
it. So the caller only waits, for at most `patience` seconds.
"""

import atexit
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from sanawm_env.serving.protocol import TAKEN_OVER, TOKEN_VARIABLE, Welcome
from sanawm_env.serving.wire import VERSION, pack, unpack
from sanawm_env.system.addresses import host_name, is_loopback
from sanawm_env.system.files import brief, check_number, reason
from sanawm_env.system.settings import read

MAX_REPLY_BYTES = 2**30
MAX_TOKEN, MAX_PATIENCE = 4096, 1e6
OPEN_SECONDS = 10.0
PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # between tries to come back; the last one again and again


class ServerRefused(RuntimeError):
    """A limit of the server does not allow the request."""


class SessionLost(ConnectionError):
    """The server no longer has this client's session: reset, or load a saved snapshot."""


class EpisodeLost(SessionLost):
    """The server no longer has an episode of this session."""


class Handle:
    """The number of an episode on the server. When the last reference to it is gone, the next request tells the server.

    Args:
        connection: to its server.
        number: of the episode.
    """

    def __init__(self, connection: "Connection", number: int):
        self.connection, self.session = connection, connection.session
        self._number = [number]
        weakref.finalize(self, _let_go, connection.dropped, self.session, self._number).atexit = False

    @property
    def number(self) -> int:
        """Number of the episode on the server."""
        return self._number[0]

    def swap(self, other: "Handle") -> None:
        """Exchange numbers with another handle."""
        self._number[0], other._number[0] = other._number[0], self._number[0]


def _let_go(dropped: "deque[tuple[str, int]]", session: str, number: list[int]) -> None:
    dropped.append((session, number[0]))


class Connection:
    """A session on a server. Any thread may use it; requests are sent one after the other.

    Args:
        url: of the server, such as ws://127.0.0.1:8765.
        token: of the server; None for the value of SANAWM_TOKEN.
        patience: seconds to wait for a server that cannot be reached.
        **settings: fields of `protocol.Hello`.

    Raises:
        ConnectionError: where there is no server.
        PermissionError: without the server's token.
        ValueError: for a url that is not the address of a server, or a token or patience that cannot be.
        RuntimeError: for a server of another version.
    """

    def __init__(self, url: str, token: str | None = None, patience: float = 60.0, **settings: Any):
        self.url, self.token = _address(url), _token(os.environ.get(TOKEN_VARIABLE) if token is None else token)
        self.patience, self.settings = check_number("patience", patience, 0, MAX_PATIENCE), settings
        self.session = ""
        self.dropped: deque[tuple[str, int]] = deque()  # let go, and the server not told yet
        self.times: Mapping[str, float] = {}
        """Of the last step: `waited` seconds for its batch, `took` seconds of the batch, `batch` episodes in it."""
        self._socket: ClientConnection | None = None
        self._number, self._process, self._closed = 0, os.getpid(), False
        self._lock = threading.RLock()
        self._lines: list[ClientConnection] = []
        weakref.finalize(self, _hang_up, self._lines).atexit = False
        with self._lock:
            self.welcome = self._open()
        _open_ones.add(self)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Args:
            op: name of the operation.
            **fields: of the request.

        Returns:
            The reply.

        Raises:
            ValueError, TypeError, FileNotFoundError: what the server says is wrong with the request.
            ServerRefused: where a limit of the server does not allow it.
            SessionLost: where the server has lost the session, or (EpisodeLost) the episode.
            ConnectionError: where the server could not be reached for `patience` seconds.
            RuntimeError: where the server failed, or its reply cannot be read.
        """
        with self._lock:
            self._check()
            self._number += 1
            gone = []
            while self.dropped:
                session, number = self.dropped.popleft()
                if session == self.session:
                    gone.append(number)
            try:
                message = pack({"n": self._number, "op": op, "drop": gone, **fields})
                if len(message) > self.most_bytes:
                    raise ValueError(
                        f"A message may have at most {self.most_bytes / 1e6:g} MB on this server (--message-mb), and "
                        f"this has {len(message) / 1e6:.1f}."
                    )
                reply = self._persist(lambda: self._exchange(message))
            except BaseException:
                self.dropped.extend((self.session, number) for number in gone)  # the server may not have heard of it
                raise
        _raise_said(reply)
        self.times = _numbers(reply.get("times", {}))
        return reply

    @property
    def most_bytes(self) -> float:
        """Largest message in bytes that the server accepts."""
        return self.welcome.limits.get("message_mb", 16.0) * 1e6

    def close(self, seconds: float = OPEN_SECONDS) -> None:
        """End the session.

        Args:
            seconds: to wait until the server confirms; 0 does not wait.
        """
        with self._lock:
            self._closed = True
            if self._socket is not None and os.getpid() == self._process:
                with suppress(OSError, ConnectionClosed):  # TimeoutError is an OSError
                    self._socket.send(b"bye")
                    while seconds:  # until the server hangs up; replies that nobody waits for may come first
                        self._socket.recv(seconds)
                self._cut()

    def _check(self) -> None:
        if self._closed:
            raise ConnectionError("This connection was closed: make another environment.")
        if os.getpid() != self._process:
            raise ConnectionError("A connection cannot be used in a forked process: make another environment there.")

    def _persist(self, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `attempt`, which is tried again over a new connection while the old one is lost."""
        until, tries = time.monotonic() + self.patience, 0
        while True:
            try:
                if self._socket is None:
                    self._open()
                return attempt()
            except (ConnectionClosed, InvalidHandshake, TimeoutError, OSError) as error:
                if isinstance(error, SessionLost | PermissionError):
                    raise
                self._cut()
                if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code == TAKEN_OVER:
                    self.session = ""
                    raise SessionLost("Another client has taken over this session: reset begins a new one.") from error
                pause = PAUSES[min(tries, len(PAUSES) - 1)]
                tries += 1
                if time.monotonic() + pause > until:
                    raise ConnectionError(
                        f"The server at {self.url} could not be reached for {self.patience:g} seconds "
                        f"({reason(error)}): try again, and it goes on where it was if the server is still there."
                    ) from error
                time.sleep(pause)

    def _cut(self) -> None:
        line, self._socket = self._socket, None
        if line is not None:
            with suppress(OSError, ConnectionClosed):
                line.close()

    def _open(self) -> Welcome:
        """Connect, and continue the session or begin one."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        again = bool(self.session)
        try:
            opened = connect(
                self.url, additional_headers=headers, max_size=MAX_REPLY_BYTES, compression=None,
                open_timeout=OPEN_SECONDS, close_timeout=1.0, proxy=None if is_loopback(host_name(self.url)) else True,
            )  # fmt: skip
            self._socket = opened.__enter__()  # closed in `_cut`, not at the end of a block
        except InvalidURI as error:
            raise ValueError(
                f"url must be the address of a server, such as ws://127.0.0.1:8765, got {brief(self.url)}."
            ) from error
        except InvalidStatus as error:
            if error.response.status_code in (401, 403):
                says = reason((error.response.body or b"").decode(errors="replace"))
                hint = f"give token=, or set {TOKEN_VARIABLE}" if says else "check the path of its address"
                said = f"The server at {self.url} refused the connection"
                raise PermissionError(f"{said}{f' ({says})' if says else ''}: {hint}.") from error
            raise
        except (OSError, TimeoutError, InvalidHandshake) as error:
            if again:
                raise
            raise ConnectionError(
                f"There is no server at {self.url} ({reason(error)}): check the address, or start sanawm serve."
            ) from error
        self._lines[:] = [self._socket]
        hello = {"op": "hello", "version": VERSION, "session": self.session, **self.settings}
        self._socket.send(pack(hello))
        said = _read(self._socket.recv(OPEN_SECONDS))
        try:
            _raise_said(said)
        except SessionLost:
            self.session = ""  # whoever begins anew gets another
            raise
        finally:
            if "error" in said:
                self._cut()
        try:
            welcome = read(Welcome, said)
        except ValueError as error:
            raise RuntimeError(
                f"The server at {self.url} does not speak this version of the protocol ({reason(error)}): install the "
                "same version of sanawm-env on both sides."
            ) from error
        self.session = welcome.session
        return welcome

    def _exchange(self, message: bytes) -> dict[str, Any]:
        assert self._socket is not None
        self._socket.send(message)
        while True:
            reply = _read(self._socket.recv())
            given = reply.pop("n", None)
            if given == self._number or given is None:  # others are of requests that nobody waits for any more
                return reply


def _address(url: str) -> str:
    """The address of a server's WebSocket. Raises ValueError for anything else."""
    with suppress(ValueError):  # of parts that cannot be, such as the port
        parts = urlsplit(url) if isinstance(url, str) else None
        if parts is not None and parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0:
            return url.rstrip("/") + ("" if parts.path.strip("/") else "/ws")
    raise ValueError(f"url must be the address of a server, such as ws://127.0.0.1:8765, got {brief(url)}.")


def _token(token: Any) -> str:
    """A token without the blanks around it, "" for none; ValueError for what no server asks for."""
    token = "" if token is None else token
    if not isinstance(token, str) or not token.strip().isprintable() or len(token) > MAX_TOKEN:
        raise ValueError(f"A token must be one line of at most {MAX_TOKEN:,} letters.")
    return token.strip()


def _hang_up(lines: list[ClientConnection]) -> None:
    """Shut down sockets whose `Connection` is gone, without a message: locks may be held now."""
    for line in lines:
        with suppress(OSError):
            line.socket.shutdown(socket.SHUT_RDWR)


_open_ones: "weakref.WeakSet[Connection]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for connection in list(_open_ones):
        connection.close(seconds=0)


def _read(message: str | bytes) -> dict[str, Any]:
    """The content of a message. Raises RuntimeError where it cannot be read."""
    try:
        return unpack(message if isinstance(message, bytes) else b"", images=True)
    except ValueError as error:
        raise RuntimeError(f"The server's reply cannot be read: {reason(error)}.") from error


def _raise_said(reply: Mapping[str, Any]) -> None:
    """Raise the error that a reply holds, if it holds one."""
    if (told := reply.get("error")) is None:
        return
    kind, says = (told.get("type"), told.get("says")) if isinstance(told, dict) else (None, None)
    known: dict[str, type[Exception]] = {"Refused": ServerRefused}
    known |= {each.__name__: each for each in (SessionLost, EpisodeLost)}
    known |= {each.__name__: each for each in (ValueError, TypeError, FileNotFoundError)}
    raise known.get(str(kind), RuntimeError)(says if isinstance(says, str) else "The server failed.")


def _numbers(told: Any) -> dict[str, float]:
    return {str(k): v for k, v in told.items() if isinstance(v, int | float)} if isinstance(told, dict) else {}
