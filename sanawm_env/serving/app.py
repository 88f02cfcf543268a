"""The service as a FastAPI application: `/ws` for clients, `/health`, and `/metrics` for Prometheus.

Any ASGI server runs it. `server.py` runs it under uvicorn and limits connections.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, HTTPException, Request, Response, WebSocket, WebSocketDisconnect

from sanawm_env.serving.limits import MB
from sanawm_env.serving.protocol import FULL, GARBAGE, TAKEN_OVER, TOO_LARGE
from sanawm_env.serving.service import SAID, Refused, Service, Session, SessionLost
from sanawm_env.system.addresses import host_name, is_loopback

log = logging.getLogger(__name__)
HELLO_SECONDS = 10.0  # for the first message to come
SEND_SECONDS = 30.0  # for a client to take a reply
SWEEP_SECONDS = 5.0
_rest = asyncio.sleep
REST = 10.0  # times as long as its request took to read, that a client's next one waits: reading holds all others up


def make_app(service: Service, token: str | None = None) -> FastAPI:
    """Make the application of a service. The service is closed when the application ends.

    Args:
        service: what the application serves.
        token: what clients must send as a bearer token. None: no token, and only requests to this machine's own names
            (localhost, loopback addresses) without an Origin header are answered, so that no web page can reach the
            server.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()
        service.close()

    app = FastAPI(title="sanawm serve", lifespan=lifespan, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        if not service.worker.alive:
            raise HTTPException(503, "The thread of the world has ended: restart the server.")
        return {"status": "ok", "world": service.env.world.config.name}

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        _admit(service, request.headers, token)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.websocket("/ws")
    async def live(socket: WebSocket) -> None:
        try:
            _admit(service, socket.headers, token)
        except HTTPException as refusal:
            await socket.send_denial_response(Response(refusal.detail, refusal.status_code))
            return
        await socket.accept()
        with suppress(WebSocketDisconnect, TimeoutError):
            await _meet(service, socket)

    return app


async def _meet(service: Service, socket: WebSocket) -> None:
    """Serve one client from its connection until it leaves."""
    try:
        message = await asyncio.wait_for(_receive(service, socket), HELLO_SECONDS)
        session, answer = await service.welcome(message)
    except Refused as error:
        service.metrics.refused.labels(error.limit).inc()
        await _send(service, socket, service.failure(error))
        await socket.close(FULL)
        return
    except (SessionLost, *SAID) as error:
        await _send(service, socket, service.failure(error))
        await socket.close(GARBAGE)
        return
    if session.closing is not None:  # a connection that its client has left, though the server was not told
        await session.closing(TAKEN_OVER)

    async def closing(code: int) -> None:
        session.closing = None
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.close(code)

    session.closing = closing
    try:
        await _send(service, socket, answer)
        while session.closing is closing:
            await _turn(service, session, socket)
    finally:
        if session.closing is closing:
            session.closing = None


async def _turn(service: Service, session: Session, socket: WebSocket) -> None:
    """Answer one request."""
    message = await _receive(service, socket)
    if message == b"bye":
        service.end(session)
        await socket.close()
        raise WebSocketDisconnect
    try:
        reply = await service.answer(session, message)
    except ValueError as error:
        await _send(service, socket, service.failure(error))
        await socket.close(GARBAGE)
        raise WebSocketDisconnect from error
    await _send(service, socket, reply)
    await _rest(REST * session.reading)


async def _receive(service: Service, socket: WebSocket) -> bytes:
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        if message.get("code") == 1009:
            service.metrics.refused.labels("message").inc()
        raise WebSocketDisconnect(message.get("code", 1005))
    data = message.get("bytes")
    if data is None:
        return b""  # text, which is no message
    if len(data) > service.limits.message_mb * MB:  # where the server beneath has a larger limit
        service.metrics.refused.labels("message").inc()
        await socket.close(TOO_LARGE)
        raise WebSocketDisconnect(TOO_LARGE)
    service.metrics.bytes.labels("in").inc(len(data))
    return data


async def _send(service: Service, socket: WebSocket, data: bytes) -> None:
    service.metrics.bytes.labels("out").inc(len(data))
    try:
        await asyncio.wait_for(socket.send_bytes(data), SEND_SECONDS)
    except RuntimeError as error:  # closed meanwhile
        raise WebSocketDisconnect from error


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await service.sweep()
        except Exception:  # the next one may do better; without any, idle sessions would stay for ever
            log.exception("Idle sessions could not be looked for.")


# --- who may come in ---


def _admit(service: Service, headers: Mapping[str, str], token: str | None) -> None:
    """Raise HTTPException for a request without the token; without a token, for one that a web page sent."""
    if token is not None:
        given = headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            service.metrics.refused.labels("token").inc()
            raise HTTPException(401, "This server needs its token: send it as a bearer token.")
        return
    if "origin" in headers or not is_loopback(host_name(f"//{headers.get('host', '')}")):
        service.metrics.refused.labels("origin").inc()
        raise HTTPException(
            403, "A server without a token answers only localhost, and no web page: start it with a token."
        )
