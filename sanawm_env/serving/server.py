"""The application on a port, under uvicorn, in a thread of its own.

Besides uvicorn's limits: connections are counted, a connection that does not become a client's within ten seconds is
closed, and so is one that sends pings but never reads the replies.
"""

import asyncio
import logging
import socket
import threading
from contextlib import AbstractContextManager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from sanawm_env.serving.app import make_app
from sanawm_env.serving.limits import MB
from sanawm_env.serving.service import Service

HTTP_SECONDS = 10.0  # that a connection may be anything but a client's
SPARE_CONNECTIONS = 32  # beside one for each session: health checks, metrics, who comes back
UNREAD_BYTES = 2**20  # of pongs
END_SECONDS = 5  # for clients to take what is on its way, when their line or the server ends


class Server(AbstractContextManager):
    """Serve on a port until `close`, which also closes the service. A context manager.

    Args:
        service: what is served.
        host: address to listen on.
        port: of that address; 0 takes a free one.
        token: that clients must show; see `make_app`.
        ping_seconds: between pings, and until an unanswered one closes a connection.

    Raises:
        OSError: where the port is taken.
    """

    def __init__(
        self,
        service: Service,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        ping_seconds: float = 20.0,
    ):
        self.service, self.host = service, host
        try:
            self._socket = _listen(host, port)
        except OSError as error:
            service.close()
            raise OSError(f"Cannot listen on {host}:{port}: {error.strerror or error}. Give another port.") from error
        self.port = self._socket.getsockname()[1]
        most = service.limits.sessions + SPARE_CONNECTIONS
        config = uvicorn.Config(
            make_app(service, token),
            http=_http(service, most),
            ws=_WebSocket,
            ws_max_size=int(service.limits.message_mb * MB),
            ws_ping_interval=ping_seconds,
            ws_ping_timeout=ping_seconds,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=END_SECONDS,
            h11_max_incomplete_event_size=2**14,
        )
        for name in ("uvicorn.error", "uvicorn.access"):  # what strangers send is nothing to read about
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        self._server.ready.wait()

    @property
    def url(self) -> str:
        """The URL for clients on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.port}"

    def close(self) -> None:
        """Finish what is under way, then stop. Sessions are lost, unless they are kept on disk."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve([self._socket]))
        finally:
            self._server.ready.set()


class _Uvicorn(uvicorn.Server):
    """A uvicorn server that sets `ready` when it listens."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _http(service: Service, most: int) -> type[H11Protocol]:
    """HTTP with at most `most` connections, each of which is closed soon unless it becomes a WebSocket."""

    class Http(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._ending = self.loop.call_later(HTTP_SECONDS, transport.abort)
            if len(self.connections) > most:
                service.metrics.refused.labels("connections").inc()
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._ending.cancel()
            super().connection_lost(exc)

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._ending.cancel()
            super().handle_websocket_upgrade(event)

    return Http


class _WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that closes the connection of a client that does not read. uvicorn waits until all is sent, which may
    be never."""

    def handle_ping(self) -> None:
        super().handle_ping()
        if self.transport.get_write_buffer_size() > UNREAD_BYTES:
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(END_SECONDS, self.transport.abort)
