"""The page: a small web server that shows a player to any number of browsers.

The page is ours (`web/`) and not viser's, because of what viser 1.1.1 did in Debian's Chromium. Its hotkeys report
presses only, and the system repeats only the newest key, so W ended when D was pressed too, and a tap could not be told
from half a second of holding. 16 frames a second through its WebGL scene took 1.7 cores without a GPU
(`benchmarks/play_latency.py` measures ours). And it needs an older rich than ours.

All addresses are relative, so a proxy may serve the page under any path, which it may leave in its requests or remove.

Browser to server, JSON: keys and push (what is held), do (a command), look (whether the page is visible), here (asks
for a sign of life); a dropped image is one binary message. Server to browser, JSON: hello, tree (what has changed in
it), futures, note, here; frames are binary: the length of a JSON head in four bytes, the head, frames. Frames that are
not sent before their time is over are left out, so a slow browser costs little.
"""

import asyncio
import base64
import hashlib
import io
import ipaddress
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidMessage
from websockets.http11 import Request, Response

from sanawm_env.system.addresses import host_name
from sanawm_env.system.files import brief, check_choice, check_count, parse_json
from sanawm_env.viewer.moves import text
from sanawm_env.viewer.playback import Driver, Imagined, Player, Shown, sentence
from sanawm_env.viewer.session import MAX_NAME, MAX_UPLOAD_BYTES, Film, Session
from sanawm_env.viewer.tree import Node
from sanawm_env.world.images import load_image

WEB = Path(__file__).parent / "web"
SILENT = logging.Logger("page", logging.CRITICAL + 1)  # what port scanners send is nothing to read about
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
REFUSED = (
    b"This page answers to its own address: an IP address, localhost, or what --host says. "
    b"Behind a proxy, start it with --allow-host and the name that the browser shows."
)
LOSSLESS_PIXELS = 256 * 256  # frames up to this size travel as PNG, larger ones as JPEG
GROUP = 6  # frames of one message: the first are on their way while the others are being encoded
WAITING, WAITING_BYTES = 512, 2**26  # messages for a browser that reads none, before it is let go to come again
ASKED = 8  # things that a browser may ask for before the first of them is done
COMPARED_CHUNKS = 6
MAX_TEXT = 2000
PATH_STEP = 6  # frames from one point of a drawn path to the next


@dataclass(frozen=True)
class Services:
    """What rooms above can do for a page.

    Attributes:
        record: writes a film as "mp4" or "episode", and returns the file or folder.
        driver: makes a driver for a session from text such as "orbit:radius=2"; raises ValueError for other text.
        drivers: such texts, to choose from.
        sessions: folder of saved sessions.
        session: begins a session in another world; raises ValueError where it cannot be loaded.
        worlds: names of worlds, to choose from.
    """

    record: Callable[[Film, str], Path]
    driver: Callable[[str, Session], Driver]
    drivers: Sequence[str]
    sessions: Path
    session: Callable[[str], Session]
    worlds: Sequence[str]


class _Message(NamedTuple):
    """A message that waits for a browser.

    Attributes:
        data: of the message.
        shown: when its first frame is due and when its last one is over; None for messages without frames.
    """

    data: str | bytes
    shown: tuple[float, float] | None = None


@dataclass(eq=False)
class _Browser:
    """A connected browser.

    Attributes:
        connection: to it.
        nodes: that it knows.
        looks: whether its page is visible.
        asked: commands that are not done yet.
        messages: that wait to be sent.
        any: set when there are messages.
    """

    connection: ServerConnection
    nodes: Mapping[int, Node] = field(default_factory=dict)
    looks: bool = True
    asked: int = 0
    messages: deque[_Message] = field(default_factory=deque)
    any: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, message: _Message, now: float) -> bool:
        """Queue a message; False for a browser that has stopped reading. Frames replace waiting frames that are
        over, or due at the same time or later."""
        if message.shown is not None:
            begins = message.shown[0]
            kept = (m for m in self.messages if m.shown is None or (m.shown[0] < begins and m.shown[1] > now))
            self.messages = deque(kept)
        self.messages.append(message)
        self.any.set()
        return len(self.messages) <= WAITING and sum(len(m.data) for m in self.messages) <= WAITING_BYTES

    async def get(self) -> str | bytes:
        while not self.messages:
            self.any.clear()
            await self.any.wait()
        return self.messages.popleft().data


class _Connection(ServerConnection):
    """A connection that answers with 400 where the request is not HTTP; the library would hang up."""

    def send_data(self) -> None:
        if self.request is None and isinstance(self.protocol.handshake_exc, InvalidMessage):
            self.transport.write(_response(HTTPStatus.BAD_REQUEST, b"This is not an HTTP request.").serialize())
        super().send_data()


class Page:
    """Plays a session and serves its page until `close`. `player` plays; it is another one after a browser has chosen
    another world.

    Args:
        session: to play.
        services: what the page can do besides.
        host: address to listen on.
        port: of that address; 0 takes a free one.
        names: host names of the page besides its own address, such as that of a proxy. Requests to other names are
            refused.
        clock: of the player, seconds.

    Raises:
        OSError: where the port is taken.
    """

    def __init__(
        self,
        session: Session,
        services: Services,
        host: str = "127.0.0.1",
        port: int = 0,
        names: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.services, self.host, self.port, self.clock = services, host, port, clock
        self.names = frozenset(name.lower() for name in names)
        self._browsers: set[_Browser] = set()
        self._recorded: dict[str, Path] = {}
        self._files = {path.name: path for path in WEB.iterdir() if path.suffix in KINDS}
        self._files[""] = WEB / "index.html"
        # one thread each: frames leave in order, and a video that is being written keeps nobody waiting
        self._frames, self._writer = ThreadPoolExecutor(1, "frames"), ThreadPoolExecutor(1, "writer")
        self._watch(Player(session, clock))
        self._loop, self._done = asyncio.new_event_loop(), asyncio.Event()
        ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="page", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise OSError(
                f"Cannot listen on {host}:{port}: {self._failure.strerror}. Give another port."
            ) from self._failure
        self.player.start()

    @property
    def url(self) -> str:
        """The address of the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def close(self) -> None:
        """Disconnect the browsers, and end the server and the player. The session is deleted."""
        self._soon(self._done.set)
        self._thread.join()
        self.player.close()
        self._frames.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=True)
        self.session.close()

    def _watch(self, player: Player) -> None:
        self.player, self.session = player, player.session
        self._memory = self.session.memory
        player.on_show = lambda shown: self._frames.submit(self._send_frames, player, shown)
        player.on_tree = self._tree_changed
        player.on_futures = lambda node, futures: self._frames.submit(self._send_futures, node, futures)
        player.on_error = lambda viewer, words: self._soon(self._note, words, "error", viewer)

    # --- the server, in a thread of its own ---

    def _serve(self, ready: threading.Event) -> None:
        async def run() -> None:
            try:
                server = await serve(
                    self._meet, self.host, self.port, process_request=self._answer, max_size=MAX_UPLOAD_BYTES + 2**16,
                    max_queue=2, compression=None, create_connection=_Connection, logger=SILENT,
                )  # fmt: skip
            except OSError as error:
                self._failure = error
                return
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._done.wait()
            server.close()
            await server.wait_closed()

        self._loop.run_until_complete(run())
        ready.set()
        self._loop.close()

    def _soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Call something in the server's thread; nothing happens once that has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    async def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Files for a browser; None for the live connection. Only the end of a path counts, because a proxy may
        leave its own path in front."""
        if getattr(request, "method", "GET") != "GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"This page answers only GET.", Allow="GET")
        folder, name = ["", *map(unquote, request.path.partition("?")[0].split("/"))][-2:]
        script = name.endswith(tuple(KINDS)) and name in self._files  # those can at least say what is wrong
        if not _is_ours(request.headers, self.host, self.names, any_origin=script):
            return _response(HTTPStatus.FORBIDDEN, REFUSED)
        if name == "live":
            return None
        with suppress(OSError, ValueError):  # it was here, and is no longer
            if found := await asyncio.to_thread(self._read, folder, name):
                return _response(HTTPStatus.OK, *found)
        return _response(HTTPStatus.NOT_FOUND, b"There is no such page.")

    def _read(self, folder: str, name: str) -> tuple[bytes, str] | None:
        """A file of the page and its media type; None for other paths."""
        scenes = {str(i): scene for i, scene in enumerate(self.session.scenes)}
        if folder == "scenes" and name in scenes:
            return encoded(np.asarray(load_image(scenes[name]).resize((96, 64))), "JPEG"), "image/jpeg"
        if folder == "files" and name in self._recorded:
            return self._recorded[name].read_bytes(), "video/mp4"
        if name in self._files:
            file = self._files[name]
            return file.read_bytes(), f"{KINDS[file.suffix]}; charset=utf-8"
        return None

    async def _meet(self, connection: ServerConnection) -> None:
        """Serve one browser until it leaves."""
        browser = _Browser(connection)
        self._browsers.add(browser)
        sender = asyncio.create_task(self._send(browser))
        try:
            self._put(browser, json.dumps(self._hello()))
            self._send_tree()
            self._show_present(browser)
            async for message in connection:
                try:
                    self._hear(browser, message)
                except Exception as error:  # whatever they send, it is answered
                    self._note(sentence(error), "error", browser)
        except ConnectionClosed:
            pass  # it comes again by itself
        finally:
            self._browsers.discard(browser)
            sender.cancel()
            self.player.forget(browser)
            self._send_tree()

    async def _send(self, browser: _Browser) -> None:
        with suppress(ConnectionClosed):
            while True:
                await browser.connection.send(await browser.get())

    # --- what browsers say ---

    def _hear(self, browser: _Browser, message: str | bytes) -> None:
        """Handle a message. Raises ValueError, TypeError or KeyError for a malformed one."""
        if isinstance(message, bytes):
            length = int.from_bytes(message[:4], "big")
            head = _object(message[4 : 4 + length])
            image = message[4 + length :]
            self._do(browser, lambda: self._begin(image, head))
            return
        said = _object(message)
        if said["type"] == "keys":
            self.player.press(browser, frozenset(_text(said["held"])), _number(said["number"]))
        elif said["type"] == "push":
            self.player.push(browser, said["twist"], _number(said["number"]))
        elif said["type"] == "do":
            self._command(browser, said)
        elif said["type"] == "look":
            before, browser.looks = browser.looks, bool(said["on"])
            if browser.looks and not before:
                self._show_present(browser)
        elif said["type"] == "here":
            self._put(browser, json.dumps({"type": "here"}))
        else:
            raise ValueError(f"The type of a message must be keys, push, do, look or here, got {brief(said['type'])}.")

    def _command(self, browser: _Browser, said: Mapping[str, Any]) -> None:
        session, what = self.session, said["what"]

        def folder() -> Path:
            return self.services.sessions / _file_name(said["name"])

        between: dict[str, Callable[[], Any]] = {  # two chunks, where the session is nobody's
            "prompt": lambda: session.set_prompt(_text(said["prompt"])),
            "begin": lambda: self._begin(int(said["scene"]), said),
            "open": lambda: session.open(folder()),
            "restore": lambda: session.restore(int(said["node"])),
            "reseed": lambda: session.reseed(int(said["node"])),
            "rename": lambda: session.rename(int(said["node"]), said["name"]),
            "pin": lambda: session.pin(int(said["node"]), said["on"]),
            "delete": lambda: session.delete(int(said["node"])),
        }
        beside: dict[str, Callable[[], Any]] = {  # the session, as they take a while
            "world": lambda: self._change_world(_text(said["name"])),
            "drive": lambda: self._stage(_text(said["driver"])),
            "compare": lambda: self._compare(browser, int(said["left"]), int(said["right"])),
            "record": lambda: self._record(browser, int(said["node"]), _text(said["kind"])),
            "save": lambda: self._save(browser, folder()),
        }
        if what in between:
            self._do(browser, between[what])
        elif what in beside:
            self._aside(browser, beside[what])
        else:
            raise ValueError(f"There is no command {brief(what)} on this page.")

    def _do(self, browser: _Browser, command: Callable[[], Any]) -> None:
        """Run a command between two chunks."""
        self.player.do(self._counted(browser, command), browser)

    def _aside(self, browser: _Browser, work: Callable[[], Any]) -> None:
        """Run a slow command while the player plays on."""
        work = self._counted(browser, work)

        def carefully() -> None:
            try:
                work()
            except Exception as error:  # whatever it was, it is said on the page
                self._soon(self._note, sentence(error), "error", browser)

        self._writer.submit(carefully)

    def _counted(self, browser: _Browser, work: Callable[[], Any]) -> Callable[[], Any]:
        """The same command, counted. Raises ValueError where a browser waits for too many."""
        if browser.asked >= ASKED:
            raise ValueError("Too many commands at once: wait until some are done.")
        browser.asked += 1

        def done() -> None:
            browser.asked -= 1

        def counted() -> Any:
            try:
                return work()
            finally:
                self._soon(done)

        return counted

    def _stage(self, name: str) -> None:
        self.player.stage(self.services.driver(name, self.session) if name else None)
        self._soon(self._send_tree)

    def _change_world(self, name: str) -> None:
        """Begin a session in another world for all browsers. This session ends, and its world's memory is freed.
        Raises ValueError, and changes nothing, for an unknown world."""
        check_choice("world", name, self.services.worlds)
        old, new = self.player, Player(self.services.session(name), self.clock)
        old.close()
        self._watch(new)
        self._soon(self._greet_all)
        new.start()
        old.session.close()
        if old.session.world is not new.session.world:
            old.session.world.unload()

    def _greet_all(self) -> None:
        for browser in tuple(self._browsers):
            browser.nodes = {}
            self._put(browser, json.dumps(self._hello()))
        self._send_tree()

    def _begin(self, image: int | bytes, said: Mapping[str, Any]) -> Node:
        fov, prompt, name = said.get("fov"), _text(said.get("prompt") or ""), _text(said.get("name") or "")
        return self.session.begin(image, prompt, None if fov is None else float(fov), name=name or None)

    def _save(self, browser: _Browser, folder: Path) -> None:
        self._soon(self._note, f"Saved as {self.session.save(folder)}.", "note", browser)

    def _record(self, browser: _Browser, node: int, kind: str) -> None:
        path = self.services.record(self.session.film(node), kind)
        link = None
        if path.is_file():
            self._recorded[path.name], link = path, f"files/{quote(path.name)}"
        self._soon(self._note, f"Recorded {path}.", "note", browser, link)

    # --- what browsers are told ---

    def _hello(self) -> dict[str, Any]:
        config = self.session.world.config
        return {
            "type": "hello",
            "world": self.session.world.config.name,
            "worlds": list(self.services.worlds),
            "size": [config.height, config.width],
            "fps": config.fps,
            "chunk": config.chunk_frames,
            "fov": config.horizontal_fov,
            "prompts": "prompts" in self.session.world.engine.capabilities,
            "scenes": [path.stem for path in self.session.scenes],
            "drivers": list(self.services.drivers),
            "upload": MAX_UPLOAD_BYTES,
        }

    def _tree_changed(self) -> None:
        """Called in the player's thread, which may wait for the session."""
        self._memory = self.session.memory
        self._soon(self._send_tree)

    def _send_tree(self) -> None:
        """Send each browser what has changed in the tree."""
        nodes, memory = self.session.tree.nodes, self._memory
        state = {
            "type": "tree",
            "current": self.session.tree.current,
            "driver": None if self.player.driver is None else self.player.driver.name,
            "viewers": len(self._browsers),
            "memory": {"here": memory.device + memory.host, "disk": memory.disk, "limit": memory.limit,
                       "away": memory.on_disk, "count": len(nodes)},
        }  # fmt: skip
        for browser in tuple(self._browsers):
            known, browser.nodes = browser.nodes, nodes
            changed = [_described(node, known.get(i)) for i, node in nodes.items() if known.get(i) is not node]
            gone = [i for i in known if i not in nodes]
            self._put(browser, json.dumps({**state, "nodes": changed, "gone": gone}))

    def _show_present(self, browser: _Browser) -> None:
        if self.player.shown is not None:
            self._frames.submit(self._send_frames, self.player, self.player.shown, browser)

    def _send_frames(self, player: Player, shown: Shown, to: _Browser | None = None) -> None:
        """Send frames to all browsers whose page is visible, or to one. Runs in the frames' thread."""
        for first in range(0, len(shown.frames), GROUP):
            frames = shown.frames[first : first + GROUP]
            browsers = {to} if to is not None else {browser for browser in tuple(self._browsers) if browser.looks}
            times = tuple(shown.starts + (shown.first + i) / player.session.fps for i in (first, first + len(frames)))
            over = times[1] <= player.clock() and first + GROUP < len(shown.frames)
            if browsers and not over:  # nobody sees it any more
                head = {"type": "frames", "node": shown.node, "first": shown.first + first, "starts": shown.starts}
                data = [encoded(frame) for frame in frames]
                self._soon(self._put_frames, player, head, data, shown.answers, times, browsers)

    def _put_frames(
        self,
        player: Player,
        head: dict[str, Any],
        frames: list[bytes],
        answers: Mapping[Any, int],
        times: tuple[float, float],
        browsers: set[_Browser],
    ) -> None:
        if player is not self.player:  # frames of another world
            return
        for browser in browsers:
            own = {**head, "now": player.clock(), "answers": answers.get(browser, 0)}
            self._put(browser, packed(own, frames), times)

    def _send_futures(self, node: int, futures: Sequence[Imagined]) -> None:
        drawn = [
            {"path": _path(future.c2w), "pose": future.c2w[-1].tolist(), "end": _inline(future.end)}
            for future in futures
        ]
        words = json.dumps({"type": "futures", "node": node, "futures": drawn})
        self._soon(lambda: [self._put(browser, words) for browser in tuple(self._browsers)])

    def _compare(self, browser: _Browser, left: int, right: int) -> None:
        found = self.session.compare(left, right, COMPARED_CHUNKS)
        head = {
            "type": "compare",
            "left": found.left.title,
            "right": found.right.title,
            "common": None if found.common is None else found.common.id,
            "psnr": [round(float(x), 1) for x in found.psnr],
        }
        message = packed(head, [encoded(frame) for frame in found.frames])
        self._soon(self._put, browser, message)

    def _note(self, words: str, kind: str, viewer: Any = None, link: str | None = None) -> None:
        message = json.dumps({"type": "note", "kind": kind, "text": words, "link": link})
        for browser in tuple(self._browsers) if viewer is None else (viewer,):
            self._put(browser, message)

    def _put(self, browser: _Browser, data: str | bytes, shown: tuple[float, float] | None = None) -> None:
        """Queue a message. A browser that has stopped reading is disconnected, and told everything when it comes
        back."""
        if browser in self._browsers and not browser.put(_Message(data, shown), self.player.clock()):
            self._browsers.discard(browser)
            browser.messages.clear()
            browser.connection.transport.abort()


def encoded(frame: NDArray, kind: str | None = None) -> bytes:
    """A frame (H, W, 3) uint8 as PNG if it is small, else as JPEG.

    Args:
        frame: the frame.
        kind: "PNG" or "JPEG", whatever the size.
    """
    buffer = io.BytesIO()
    small = frame.shape[0] * frame.shape[1] <= 2 * LOSSLESS_PIXELS
    # each of the two reads the setting that is its own
    Image.fromarray(frame).save(buffer, kind or ("PNG" if small else "JPEG"), compress_level=1, quality=90)
    return buffer.getvalue()


def packed(head: Mapping[str, Any], frames: Iterable[bytes]) -> bytes:
    """A head and encoded frames as one binary message."""
    frames = list(frames)
    text = json.dumps({**head, "sizes": [len(frame) for frame in frames]}).encode()
    return b"".join((len(text).to_bytes(4, "big"), text, *frames))


def _described(node: Node, known: Node | None) -> dict[str, Any]:
    """A node as JSON for the page; thumbnail and path only if the page does not have them."""
    plain = {"id": node.id, "parent": node.parent, "branch": node.branch, "scene": node.scene, "chunk": node.chunk,
             "name": node.name, "pinned": node.pinned, "move": text(node.parts), "seed": str(node.seed)}  # fmt: skip
    if known is None or known.thumbnail is not node.thumbnail:
        plain |= {"thumbnail": _inline(node.thumbnail), "path": _path(node.c2w), "pose": node.c2w[-1].tolist()}
    return plain


def _path(c2w: NDArray) -> list[list[float]]:
    """Every sixth position of a path, and the last."""
    return c2w[PATH_STEP - 1 :: PATH_STEP, :3, 3].round(4).tolist() if len(c2w) >= PATH_STEP else c2w[:, :3, 3].tolist()


def _inline(frame: NDArray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encoded(frame, "JPEG")).decode()


def _object(text: str | bytes) -> dict[str, Any]:
    said = parse_json(text if isinstance(text, str) else text.decode())
    if not isinstance(said, dict):
        raise ValueError("A message must be a JSON object.")
    return said


def _number(value: Any) -> int:
    return check_count("The number of a message", value, 0, 2**53)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"Text must have at most {MAX_TEXT} characters.")
    return value


def _file_name(name: Any) -> str:
    """The name of a folder for a session. Raises ValueError for a name that would lead elsewhere, or that file
    systems refuse."""
    given = name if isinstance(name, str) else ""
    strange = re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", given)
    if not 0 < len(given) <= MAX_NAME or strange or Path(given).name != given or given.startswith("."):
        raise ValueError(
            f"A session's name must be a file name of at most {MAX_NAME} characters that does not begin with a dot."
        )
    return given


def _is_ours(headers: Headers, host: str, names: Collection[str], any_origin: bool = False) -> bool:
    """Whether a request comes from the page itself. No other site may drive a session, neither by a script on its
    pages (`Origin`) nor by a name of its own for our address (`Host`). Headers that proxies add are not trusted.
    Proxies may rewrite `Host`, so a page of an allowed name is accepted whatever `Host` says."""
    asked, origins = headers.get_all("Host"), headers.get_all("Origin")
    if len(asked) != 1 or len(origins) > 1:
        return False
    name = host_name(f"//{asked[0]}")
    if not (_is_address(name) or (name and name in {"localhost", host.lower(), *names})):
        return False
    if any_origin or not origins:
        return True
    return origins[0].lower().partition("://")[2] == asked[0].lower() or host_name(origins[0]) in names


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _response(status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **more: str) -> Response:
    scripts = re.findall(rb"<script>(.*?)</script>", body, re.DOTALL) if kind.startswith("text/html") else []
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(it).digest()).decode()}'" for it in scripts)
    headers = Headers({
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": f"default-src 'self'; script-src 'self'{hashes}; "
        "img-src 'self' data: blob:; connect-src 'self' ws: wss:; base-uri 'self'",
        **more,
    })  # fmt: skip
    return Response(status.value, status.phrase, headers, body)
