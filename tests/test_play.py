"""`sanawm play` in a real browser: Debian's Chromium, headless, by playwright.

Session and tab share a clock that the tests drive: it stands still until a test lets time pass, and a test lets it pass
once player and tab have done all that was due by then. However slow a machine is, nothing comes late.
"""

import base64
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sanawm_env.cli import main
from sanawm_env.cli.play import Play, make_driver, record
from sanawm_env.recording.episode import RecordedEpisode
from sanawm_env.recording.video import read_video
from sanawm_env.system.addresses import is_loopback
from sanawm_env.viewer.page import Page
from sanawm_env.viewer.playback import Player
from sanawm_env.viewer.session import MAX_UPLOAD_BYTES, Session
from sanawm_env.world.world import World
from tests.worlds import picture, with_starts, write_tiny_world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.example.org 127.0.0.1",
    # Each tab here has a window, and the suggestions below its address are a page in a process of its own, which takes
    # more than the tab.
    "--in-process-gpu",
    "--disable-features=WebUIOmniboxPopup,WebUIOmniboxFullPopup,WebUIOmniboxAimPopup,SpareRendererForSitePerProcess,"
    # this switch replaces playwright's own; those of its list that change what pages see, or ask the network
    "HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,PaintHolding,MediaRouter,ThirdPartyStoragePartitioning,"
    "OptimizationHints,NetworkTimeServiceQuerying,AimEnabled,PreconnectToSearch,LensOverlay",
]
PIXELS = """(id) => {
    const canvas = document.getElementById(id), {node, frame} = canvas.dataset;
    const picture = sanawm.screens[id]?.frame ?? canvas;  // of a map, what is drawn
    return {node: Number(node ?? -1), frame: Number(frame ?? -1), png: picture.toDataURL().split(',')[1]};
}"""
NEWEST = """([node, frame]) => {
    const {node: n, frame: f} = document.getElementById('view').dataset, entry = sanawm.schedule().at(-1);
    return (entry?.node ?? Number(n)) === node && (entry?.index ?? Number(f)) === frame;
}"""
PATIENCE = 100  # seconds until what a test waits for is believed never to come


def needs_browser(test):
    """Slow: a tab alone costs half a second of the browser's own processes."""
    reason = "THE VIEWER'S PAGE IS NOT TESTED: Chromium is not here (apt-get install chromium)"
    return pytest.mark.slow(pytest.mark.skipif(CHROMIUM is None, reason=reason)(test))


class Clock:
    """Seconds, as many as a test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched(Player):
    """A player that counts how often it has found nothing to do."""

    looks = 0

    def tick(self) -> float:
        wait = super().tick()
        self.looks += wait > 0
        return wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture
def served(folder, tmp_path, monkeypatch):
    """A page of a session in the tiny world, with its files in tmp_path."""
    monkeypatch.setattr("sanawm_env.viewer.page.Player", Watched)
    options = Play(world=folder, out=tmp_path / "play")
    session = Session(World.load(folder), name=folder)
    session.begin(0, seed=1)
    page = Page(session, options.services(), names=["Hub.example.org"], clock=Clock())
    yield page
    page.close()


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="THE VIEWER'S PAGE IS NOT TESTED: no playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(chromium, url: str, clock: bool = True, **options):
    """A tab at an address, connected, its clock standing still; a script that fails fails the test."""
    options = {"viewport": {"width": 1280, "height": 800}, "bypass_csp": True, **options}  # playwright waits by eval
    opened = chromium.new_page(**options)
    opened.set_default_timeout(1000 * PATIENCE)
    failures = []
    opened.on("pageerror", lambda error: failures.append(error))
    if clock:
        opened.clock.install(time=0)
        opened.clock.pause_at(1000)
    opened.goto(url)
    opened.wait_for_selector("#link.on")
    yield opened
    opened.close()
    assert failures == []


@pytest.fixture
def tab(chromium, served):
    with opened(chromium, served.url) as made:
        yield made


def until(tab, happens, what: str) -> None:
    """Wait for what comes by itself."""
    for _ in range(100 * PATIENCE):
        if happens():
            return
        tab.wait_for_timeout(10)
    raise AssertionError(f"It never happened that {what}.")


class Film:
    """A tab and the clock that it shares with the player. STEP: seconds, less than a frame takes."""

    STEP = 0.048

    def __init__(self, tab, page: Page):
        self.tab, self.page = tab, page
        tab.wait_for_function("sanawm.schedule().length > 0")
        page.clock.now += 0.05
        tab.clock.run_for(50)

    @property
    def player(self) -> Player:
        return self.page.player

    @property
    def session(self) -> Session:
        return self.page.session

    @property
    def shown(self) -> tuple[int, int]:
        """Node and frame that are on the screen."""
        seen = self.tab.evaluate("(({node, frame}) => [node, frame])(document.getElementById('view').dataset)")
        return int(seen[0]), int(seen[1])

    @property
    def moves(self) -> str:
        """How the camera came to where it is."""
        return ",".join(node.title for node in self.session.tree.line(self.session.current.id)[1:])

    def settle(self) -> None:
        """Wait until the player has done what is due, and the tab has all its frames."""
        for _ in range(2):  # one look may have been under way
            player, looks = self.player, self.player.looks
            player._wake.set()
            until(self.tab, lambda: player.looks > looks, "the player has looked")  # noqa: B023
        newest = self.player.shown
        self.tab.wait_for_function(NEWEST, arg=[newest.node, newest.first + len(newest.frames) - 1])

    def step(self, seconds: float = STEP) -> None:
        self.tab.clock.run_for(round(1000 * seconds))
        self.page.clock.now += seconds
        self.settle()

    def after(self, seconds: float) -> None:
        for _ in range(math.ceil(seconds / 0.25)):
            self.step(0.25)

    def holding(self, keys: str) -> None:
        """Wait until the player knows that these keys are down, and no others."""
        held = self.player._held
        until(self.tab, lambda: frozenset().union(*list(held.values())) == set(keys), f"the keys {keys!r} are held")
        self.settle()

    def press(self, keys: str, seconds: float = 0.5) -> None:
        for key in keys:
            self.tab.keyboard.down(key)
        self.holding(keys)
        self.after(seconds)
        for key in keys:
            self.tab.keyboard.up(key)
        self.holding("")

    def rest(self) -> int:
        """Let time pass until the film has ended and its last frame is on the screen: the node."""
        self.settle()
        while not self.player.resting:
            self.step(0.25)
        node = self.session.current
        while self.shown != (node.id, len(node.c2w) - 1):
            self.step()
        return node.id

    def drive(self, keys: str) -> int:
        """Hold keys for half a second and wait until the camera rests: the node it has come to."""
        self.press(keys)
        return self.rest()

    def at(self, node: int) -> None:
        """Wait until a node is on the screen, at its end."""
        self.tab.wait_for_function(NEWEST, arg=[node, len(self.session.tree[node].c2w) - 1])
        self.tab.clock.run_for(50)
        assert self.shown[0] == node


@pytest.fixture
def film(tab, served) -> Film:
    return Film(tab, served)


def pixels(tab, canvas: str = "view") -> tuple[int, int, np.ndarray]:
    """Node, frame and picture (H, W, 3) of a canvas, before it is enlarged to the screen's pixels."""
    seen = tab.evaluate(PIXELS, canvas)
    return seen["node"], seen["frame"], np.array(Image.open(io.BytesIO(base64.b64decode(seen["png"]))).convert("RGB"))


def told(tab, words: str) -> None:
    tab.wait_for_selector(f"#toasts >> text={words}")


# --- the page ---


@needs_browser
def test_what_the_page_shows_while_driving_are_the_frames_of_the_session(film):
    tab, session, seen = film.tab, film.session, [film.shown]
    assert np.array_equal(pixels(tab)[2], session.frames(0)[0])
    tab.keyboard.down("w")
    film.holding("w")
    for _ in range(68):  # two chunks, and some of the third
        film.step()
        node, frame, shown = pixels(tab)
        assert np.array_equal(shown, session.frames(node)[frame]), (node, frame)
        seen.append((node, frame))
    tab.keyboard.up("w")
    film.holding("")
    order = [seen[0]] + [new for old, new in pairwise(seen) if new != old]
    assert order[: 1 + 48 + 2] == [(0, 0), *((node, i) for node in (1, 2) for i in range(24)), (3, 0), (3, 1)]
    node = film.rest()
    assert np.array_equal(pixels(tab)[2], session.frames(node)[-1])
    assert session.current.c2w[-1, 2, 3] > 0.5


@needs_browser
def test_two_held_keys_and_letting_go_are_seen(film):
    tab = film.tab
    for change, key, held in (("down", "w", "w"), ("down", "ArrowUp", "wi"), ("up", "w", "i"), ("up", "ArrowUp", "")):
        getattr(tab.keyboard, change)(key)
        film.holding(held)
        film.after(0.5)
    film.rest()
    assert re.match(r"w-\d+,(w-\d+,)?wi-\d+,(wi-\d+,)?i-\d+", film.moves)
    assert "ms" in tab.text_content("#latency")


@needs_browser
def test_a_click_goes_back_and_driving_on_branches(film):
    tab, session = film.tab, film.session
    first, second = session.drive("w-24").id, session.drive("d-24").id
    film.player.do(film.player.rest)
    film.at(second)
    tab.click(f'.node[data-node="{first}"]')
    film.at(first)
    assert np.array_equal(pixels(tab)[2], session.frames(first)[-1])
    assert session.current.id == first
    branch = film.drive("a")
    children = session.tree.children(first)
    assert [node in session.tree.line(end) for node, end in zip(children, (second, branch), strict=True)] == [True] * 2
    boxes = [tab.locator(f'.node[data-node="{node.id}"]').bounding_box() for node in children]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["y"] != boxes[1]["y"]
    found = [tab.locator(f'.node[data-node="{node}"]') for node in (first, second, branch)]
    colors = [button.evaluate("button => button.style.borderColor") for button in found]
    assert colors[0] == colors[1] != colors[2]
    drawn = pixels(tab, "map")[2].reshape(-1, 3).astype(int)
    for color in (colors[0], colors[2]):  # both paths are in the map
        assert (np.abs(drawn - [int(c) for c in re.findall(r"\d+", color)]).max(axis=1) < 12).sum() > 20
    tab.keyboard.press("Backspace")
    film.at(session.tree[branch].parent)


@needs_browser
def test_naming_pinning_dreaming_again_and_deleting(film):
    tab, session = film.tab, film.session
    node = session.drive("w-24").id
    film.player.do(film.player.rest)
    film.at(node)
    tab.fill("#name", "by the door")
    tab.press("#name", "Enter")
    tab.click("#pin")
    tab.wait_for_selector(f'.node[data-node="{node}"].pinned >> text=by the door')
    assert (session.tree[node].name, session.tree[node].pinned) == ("by the door", True)
    tab.click("#delete")
    told(tab, "unpin it before")
    tab.click("#reseed")
    tab.wait_for_function("sanawm.nodes.size === 3")
    predicted = film.rest()
    assert session.tree[predicted].parent == 0
    assert np.array_equal(session.tree[predicted].c2w, session.tree[node].c2w)
    tab.click("#delete")
    tab.wait_for_function("sanawm.nodes.size === 2")
    assert predicted not in session.tree.nodes


@needs_browser
def test_two_branches_side_by_side(film):
    tab, session = film.tab, film.session
    left, right = (session.drive(move, at=0).id for move in ("a-24", "d-24"))
    film.player.do(film.player.rest)
    film.at(right)
    tab.click("#compare")
    tab.click(f'.node[data-node="{left}"]')
    tab.wait_for_selector("#comparison[open]")
    tab.clock.run_for(400)
    _, frame, shown = pixels(tab, "both")
    assert frame > 0
    assert np.array_equal(shown, session.compare(right, left).frames[frame])
    tab.click("#comparison button")


@needs_browser
def test_a_recorded_branch_is_a_video_and_an_episode(film, served):
    tab, session = film.tab, film.session
    session.drive("w-24")
    last = session.drive("d-24").id
    film.player.do(film.player.rest)
    film.at(last)
    tab.click("[data-tab=keep]")
    tab.click("#mp4")
    link = tab.get_attribute("#notes a", "href")
    with urllib.request.urlopen(served.url.rstrip("/") + link) as response:
        data = response.read()
    path = served.services.sessions.parent / Path(link).name
    assert path.read_bytes() == data
    video = read_video(path)
    factor = video.shape[2] // 32
    film = [session.frames(0), *(session.frames(node.id) for node in session.tree.line(last)[1:])]
    assert video.shape == (49, 24 * factor, 32 * factor, 3)
    error = np.abs(video[:, ::factor, ::factor].astype(int) - np.concatenate(film)).mean()
    assert error < 25  # chroma is halved, and these pictures are noise
    tab.click("#episode")
    told(tab, "Recorded")
    tab.wait_for_selector(f"#notes >> text=episode_{last}")
    episode = RecordedEpisode.open(path.parent / f"episode_{last}")
    drawn = np.concatenate([node.c2w for node in session.film(last).nodes])
    assert np.allclose(episode.trajectory().c2w, drawn)
    again = np.concatenate([step.frames for step in episode.replay()])
    assert np.array_equal(again, np.concatenate(film[1:]))  # it can be imagined anew, bit for bit


@needs_browser
def test_a_session_is_saved_and_opened(film):
    tab, session = film.tab, film.session
    node = session.drive("w-24").id
    frames = session.frames(node)
    tab.click("[data-tab=keep]")
    tab.fill("#sessionname", "walk: $1 [2] 🚪")
    tab.click("#save")
    told(tab, "Saved as")
    session.drive("a-24")
    tab.click("#open")
    film.at(node)
    assert len(session.tree.nodes) == 2
    assert np.array_equal(pixels(tab)[2], frames[-1])
    for name in ("../walk", "..", "a/b", ".hidden", ""):
        tab.fill("#sessionname", name)
        tab.click("#open")
        told(tab, "a file name of at most 80 characters")
        tab.clock.run_for(10_000)  # and it goes away
        assert tab.locator("#toasts div").count() == 0
    tab.fill("#sessionname", "nothing")
    tab.click("#open")
    told(tab, "There is no session in")


@needs_browser
def test_scenes_are_chosen_and_dropped_in_and_bad_images_are_said(tab, served, tmp_path):
    session = served.session
    tab.click("[data-tab=scene]")
    tab.fill("#fov", "80")
    tab.click('[data-scene="1"]')
    tab.wait_for_selector('.node >> text="1"')
    assert session.snapshot(session.current.id).slot.scene.intrinsics_source == "fov"
    Image.fromarray(picture(7)).save(tmp_path / "garden.png")
    tab.set_input_files("#image", tmp_path / "garden.png")
    tab.wait_for_selector(".node >> text=garden")
    before = session.tree
    (tmp_path / "broken.png").write_bytes((tmp_path / "garden.png").read_bytes()[:300])
    tab.set_input_files("#image", tmp_path / "broken.png")
    told(tab, "cannot be read as an image")
    (tmp_path / "script.png").write_text("#!/bin/sh")
    tab.set_input_files("#image", tmp_path / "script.png")
    told(tab, "not a PNG, JPEG or WebP image")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    tab.clock.run_for(10_000)
    tab.set_input_files("#image", tmp_path / "photo.heic")
    told(tab, "not a PNG, JPEG or WebP image")
    assert session.tree is before
    assert tab.is_disabled("#prompt")


@needs_browser
def test_a_world_that_is_not_here_is_said_and_one_that_is_can_be_gone_to(film, served):
    tab, before = film.tab, film.session
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.click("[data-tab=scene]")
    tab.select_option("#worlds", "streaming")
    told(tab, "sanawm fetch streaming")
    tab.select_option("#worlds", "nano")
    tab.wait_for_selector("#world >> text=nano")
    tab.wait_for_function("sanawm.schedule().length > 0")
    tab.clock.run_for(50)
    assert served.session is not before
    assert not before.folder.exists()
    assert np.array_equal(pixels(tab)[2], served.session.frames(0)[0])


@needs_browser
def test_a_full_device_is_said(film, monkeypatch):
    def full(*_):
        raise MemoryError("cpu is out of memory: delete branches, or start with a lower memory limit.")

    monkeypatch.setattr(film.session, "drive", full)
    film.tab.keyboard.down("w")
    told(film.tab, "cpu is out of memory")


@needs_browser
def test_a_driver_drives_until_a_key_takes_over(film):
    tab, player = film.tab, film.player
    tab.click("[data-tab=agent]")
    tab.fill("#driver", "explore:candidates=4,horizon=1")
    tab.click("#drive")
    tab.wait_for_selector("#driving >> text=explore")
    assert tab.is_hidden("#hint")  # which stands in the same place
    tab.wait_for_function("sanawm.futures() === 4")
    while len(film.session.tree.nodes) < 3:  # it thinks in a thread of its own
        film.step(0.25)
    tab.click("#view")
    film.drive("a")
    assert re.match(r"(twist-\d+,)+a-\d+", film.moves)
    assert player.driver is None
    tab.wait_for_selector("#driving", state="hidden")
    tab.fill("#driver", "by magic")
    tab.click("#drive")
    told(tab, "There is no driver")


@needs_browser
def test_buttons_sliders_and_dragging_drive_too(film):
    tab = film.tab
    box = tab.locator('#pad [data-key="d"]').bounding_box()
    tab.mouse.move(box["x"] + 9, box["y"] + 9)
    tab.mouse.down()
    film.holding("d")
    tab.mouse.up()
    film.holding("")
    film.rest()
    assert film.moves.startswith("d-")
    tab.focus('#pad [data-key="i"]')  # and by the keyboard alone
    tab.keyboard.down("Space")
    film.holding("i")
    tab.keyboard.up("Space")
    film.holding("")
    before = film.rest()
    tab.check("#stay")
    tab.locator('#sliders [data-axis="1"]').fill("-1")
    until(tab, lambda: film.session.current.title == "twist-24", "a slider drives")
    tab.uncheck("#stay")
    until(tab, lambda: not any(map(any, film.player._pushed.values())), "sliders are back")
    film.rest()
    node = film.session.current
    assert node.c2w[-1, 1, 3] < film.session.tree[before].c2w[-1, 1, 3]  # up
    box = tab.locator("#view").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    tab.mouse.down()
    tab.clock.run_for(100)
    tab.mouse.move(box["x"] + 460, box["y"] + 200)
    until(tab, lambda: film.session.current.id != node.id, "dragging drives")
    tab.mouse.up()
    film.rest()
    looked = film.session.current
    assert looked.title.startswith("twist-")
    assert looked.c2w[-1, 0, 2] > node.c2w[-1, 0, 2]  # to the right


@needs_browser
def test_several_viewers_see_and_steer_one_session(film, served, chromium):
    tab = film.tab
    with opened(chromium, served.url) as other:
        tab.wait_for_selector("#viewers >> text=2 viewers")
        tab.keyboard.down("w")
        film.holding("w")
        other.keyboard.down("d")
        film.holding("wd")
        assert "wd-" in film.moves
    film.holding("w")  # what the other one held is let go
    tab.keyboard.up("w")
    film.holding("")
    node = film.rest()
    assert film.moves.split(",")[-1].startswith("none")
    assert np.array_equal(pixels(tab)[2], film.session.frames(node)[-1])
    tab.wait_for_selector("#viewers", state="hidden")


@needs_browser
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844), (844, 390), (640, 400)])
def test_the_page_fits_its_window(tab, width, height):
    tab.set_viewport_size({"width": width, "height": height})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    view = tab.locator("#view").bounding_box()
    assert view["width"] >= 0.55 * width
    assert view["height"] <= height
    if width == 1280:  # all of it without scrolling
        assert tab.evaluate("document.documentElement.scrollHeight") <= height


@needs_browser
def test_frames_are_enlarged_smoothly_to_the_screens_pixels_in_their_true_aspect(film):
    _, _, frame = pixels(film.tab)
    height, width = frame.shape[:2]
    png, *box = film.tab.locator("#view").evaluate("(it) => [it.toDataURL(), it.clientWidth, it.clientHeight]")
    shown = Image.open(io.BytesIO(base64.b64decode(png.split(",")[1]))).convert("RGB")
    fit = min(box[0] / width, box[1] / height)
    assert np.allclose(shown.size, (width * fit, height * fit), atol=1)
    smooth, blocks = (
        np.asarray(Image.fromarray(frame).resize(shown.size, how), float)
        for how in (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    )
    away = [np.abs(np.asarray(shown, float) - other).mean() for other in (smooth, blocks)]
    assert away[0] < 0.5 * away[1]


@needs_browser
def test_a_hint_says_how_to_drive_until_somebody_has(film):
    tab = film.tab
    assert "walk" in tab.inner_text("#hint")
    film.drive("w")
    tab.wait_for_selector("#hint", state="hidden")
    tab.reload()
    tab.wait_for_selector("#link.on")
    assert tab.is_hidden("#hint")


def test_nano_is_entered_in_the_court():
    session = Play().begin("nano")
    assert session.current.scene == "court_10"
    session.close()


# --- keys ---

LAYOUTS = {  # key and code of what goes down -> what is driven
    "US": [("w", "KeyW", "w"), ("W", "KeyW", "w"), ("d", "KeyD", "d"), ("e", "KeyE", "")],
    "Russian": [
        ("ц", "KeyW", "w"),
        ("Ц", "KeyW", "w"),
        ("ф", "KeyA", "a"),
        ("ы", "KeyS", "s"),
        ("х", "BracketLeft", ""),
    ],
    "Greek": [("ς", "KeyW", "w"), ("α", "KeyA", "a"), (";", "KeyQ", "")],
    "Hebrew": [("'", "KeyW", "w"), ("ש", "KeyA", "a"), ("ד", "KeyS", "s"), (",", "Quote", "")],
    "Korean": [("ㅈ", "KeyW", "w"), ("ㅉ", "KeyW", "w"), ("ㅁ", "KeyA", "a")],
    "Arabic": [("ص", "KeyW", "w"), ("ش", "KeyA", "a"), ("لا", "KeyB", "")],
    "kana": [("て", "KeyW", "w"), ("ｗ", "KeyW", "w")],
    "AZERTY": [("z", "KeyW", ""), ("w", "KeyZ", "w"), ("q", "KeyA", ""), ("a", "KeyQ", "a")],
    "Dvorak": [("w", "Comma", "w"), ("o", "KeyS", ""), ("s", "Semicolon", "s"), ("l", "KeyP", "l")],
    "Turkish": [("ı", "KeyI", "i"), ("I", "KeyI", "i"), ("i", "Quote", "i"), ("İ", "Quote", "i")],
    "BÉPO": [("é", "KeyW", ""), ("w", "BracketRight", "w")],
    "dead keys and input methods": [("Dead", "KeyW", "w"), ("Process", "KeyA", "a"), ("Unidentified", "KeyD", "d")],
    "other keys": [("Enter", "Enter", ""), ("F1", "F1", ""), ("Tab", "KeyW", ""), ("2", "Digit2", ""), ("", "", "")],
    "arrows": [("ArrowUp", "ArrowUp", "i"), ("ArrowLeft", "Numpad4", "j")],
}
DOWN = "[...document.querySelectorAll('#pad .down')].map((button) => button.dataset.key).join('')"


@needs_browser
def test_letters_count_on_latin_layouts_and_places_on_others(tab):
    typed = """([key, code]) => {
        const send = (kind) => window.dispatchEvent(new KeyboardEvent(kind, {key, code, bubbles: true}));
        send('keydown');
        const down = DOWN;
        send('keyup');
        return [down, DOWN];
    }""".replace("DOWN", DOWN)
    for layout, keys in LAYOUTS.items():
        for key, code, driven in keys:
            assert tab.evaluate(typed, [key, code]) == [driven, ""], (layout, key, code)


ENDS = {
    "the keyboard goes elsewhere": "window.dispatchEvent(new Event('blur'))",
    "a menu opens": "document.getElementById('view').dispatchEvent(new Event('contextmenu', {bubbles: true}))",
    "the page is left": "window.dispatchEvent(new Event('pagehide'))",
    "the tab is hidden": "HIDE(true)",
    "Meta goes down": "KEY('keydown', 'Meta', 'MetaLeft', {metaKey: true})",
    "Meta was down": "KEY('keyup', 'Meta', 'MetaLeft')",
    "a file is dragged in": "window.dispatchEvent(new DragEvent('dragenter', {cancelable: true}))",
}
SCRIPT = """
const KEY = (kind, key, code, more = {}, target = document.body) => {
    const event = new KeyboardEvent(kind, {key, code, bubbles: true, cancelable: true, ...more});
    target.dispatchEvent(event);
    return event.defaultPrevented;
};
const HIDE = (hidden) => {
    Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
    document.dispatchEvent(new Event('visibilitychange'));
};
"""


@needs_browser
def test_no_key_stays_down_that_was_let_go_unseen(tab):
    for reason, happens in ENDS.items():
        down = tab.evaluate(
            f"() => {{ {SCRIPT} KEY('keydown', 'w', 'KeyW'); const down = {DOWN}; {happens}; "
            f"HIDE(false); return [down, {DOWN}]; }}"
        )
        assert down == ["w", ""], reason
    box = tab.locator('#pad [data-key="s"]').bounding_box()
    for kind in ("pointercancel", "lostpointercapture"):
        tab.mouse.move(box["x"] + 9, box["y"] + 9)
        tab.mouse.down()
        assert tab.evaluate(DOWN) == "s"
        tab.evaluate(
            f"document.querySelector('[data-key=s]').dispatchEvent(new PointerEvent('{kind}', {{pointerId: 1}}))"
        )
        assert tab.evaluate(DOWN) == "", kind
        tab.mouse.up()


@needs_browser
def test_shortcuts_and_typing_do_not_drive(tab):
    for more in ("ctrlKey", "metaKey", "altKey", "modifierAltGraph", "isComposing"):
        kept = tab.evaluate(
            f"() => {{ {SCRIPT} const kept = KEY('keydown', 'w', 'KeyW', {{{more}: true}}); return [kept, {DOWN}]; }}"
        )
        assert kept == [False, ""], more
    for panel, field in (("scene", "#fov"), ("agent", "#driver"), ("keep", "#sessionname"), ("scene", "#worlds")):
        tab.click(f"[data-tab={panel}]")
        tab.focus(field)
        tab.keyboard.down("w")
        assert tab.evaluate(DOWN) == "", field
        tab.keyboard.up("w")
    tab.click("[data-tab=move]")
    tab.focus("#sliders [data-axis='0']")
    tab.keyboard.press("ArrowRight")  # moves the slider
    assert tab.evaluate(DOWN) == ""
    tab.keyboard.down("w")  # there is nothing to type
    assert tab.evaluate(DOWN) == "w"
    tab.keyboard.up("w")


# --- tabs that do not look, connections that break, proxies ---


@needs_browser
def test_a_hidden_tab_gets_no_frames_and_shows_the_present_when_it_is_back(film, served):
    tab = film.tab
    (browser,) = served._browsers
    tab.evaluate(f"() => {{ {SCRIPT} HIDE(true); }}")
    until(tab, lambda: not browser.looks, "the server knows that nobody looks")
    for move in ("w-24", "d-24"):
        film.player.do(lambda move=move: film.session.drive(move))
    tab.wait_for_function("sanawm.nodes.size === 3")  # but it knows of what happens
    assert film.shown == (0, 0)
    assert tab.evaluate("sanawm.schedule().length") == 0
    tab.evaluate(f"() => {{ {SCRIPT} HIDE(false); }}")
    assert film.rest() == 2
    assert np.array_equal(pixels(tab)[2], film.session.frames(2)[-1])


@needs_browser
def test_frames_that_nobody_draws_are_not_kept(film):
    tab = film.tab
    tab.evaluate(
        "() => { window.freed = 0; const close = ImageBitmap.prototype.close; "
        "ImageBitmap.prototype.close = function () { window.freed += 1; close.call(this); };"
        "window.real = requestAnimationFrame; window.requestAnimationFrame = (draw) => { window.later = draw; }; }"
    )
    film.step()  # and no picture after this one
    for chunk in range(1, 5):
        film.player.do(lambda: film.session.drive("w-24"))
        film.page.clock.now += 1.6
        film.settle()
        tab.clock.run_for(1600)
        kept = tab.evaluate("sanawm.schedule().length")
        assert kept <= 48
        assert tab.evaluate("window.freed") >= 24 * chunk - kept - 24
    tab.evaluate("() => { window.requestAnimationFrame = window.real; window.real(window.later); }")
    film.rest()
    assert tab.evaluate("sanawm.schedule().length") == 0


@needs_browser
def test_a_lost_connection_comes_back_and_goes_on(film, served):
    tab = film.tab
    film.drive("w")
    nodes = len(film.session.tree.nodes)
    for browser in tuple(served._browsers):
        served._soon(browser.connection.transport.abort)
    tab.wait_for_selector("#link.off")
    tab.click("#reseed")
    told(tab, "No connection to the server")
    tab.clock.run_for(1100)
    tab.wait_for_selector("#link.on")
    tab.wait_for_function(f"sanawm.nodes.size === {nodes}")
    tab.click("#view")
    film.drive("a")
    assert "a-" in film.moves


class Proxy:
    """Passes requests to a page on as proxies do. prefix: path under which it is reached. strip: whether it takes that
    out. host: what it writes into `Host`; None to keep it. frozen: passes nothing on any more, and says nothing."""

    def __init__(self, port: int, prefix: str = "", strip: bool = True, host: str | None = None):
        self.target, self.prefix, self.strip, self.host, self.frozen = port, prefix, strip, host, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sockets = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        self.sockets += client, server
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := client.recv(65536)):
                return
            head += data
        method, path, rest = head.split(b" ", 2)
        if not path.startswith(self.prefix.encode()):  # that is somebody else's
            return client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        if self.strip:
            path = path.removeprefix(self.prefix.encode()) or b"/"
        head = b" ".join((method, path, rest))
        if self.host is not None:
            head = re.sub(rb"(?i)\r\nHost: [^\r]*", b"\r\nHost: " + self.host.encode(), head)
        server.sendall(head)
        threading.Thread(target=self.pipe, args=(client, server), daemon=True).start()
        self.pipe(server, client)

    def pipe(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.frozen:
                    target.sendall(data)
            if not self.frozen:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for each in (self.listener, *self.sockets):
            each.close()


@pytest.fixture
def proxy(request, served):
    made = []

    def make(**options) -> Proxy:
        made.append(Proxy(served.port, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


PREFIX = "/user/me/proxy/8123"


@needs_browser
@pytest.mark.parametrize(
    ("path", "options"),
    [
        (f"{PREFIX}/", {"prefix": PREFIX, "strip": True}),  # JupyterHub, code-server
        (PREFIX, {"prefix": PREFIX, "strip": True, "host": "127.0.0.1:8123"}),  # no slash, `Host` rewritten
        (f"{PREFIX}/index.html", {"prefix": PREFIX, "strip": False}),  # nginx that leaves the path in
    ],
)
def test_the_page_works_under_the_path_of_a_proxy(served, chromium, proxy, path, options):
    port = proxy(**options).port
    session = served.session
    session.drive("w-24")
    with opened(chromium, f"http://hub.example.org:{port}{path}", clock=False, bypass_csp=False) as tab:
        tab.click("[data-tab=scene]")
        tab.wait_for_selector("#scenes img")
        tab.evaluate("() => Promise.all([...document.querySelectorAll('#scenes img')].map((image) => image.decode()))")
        tab.click("[data-tab=keep]")
        tab.click("#mp4")
        with tab.expect_download() as download:
            tab.click("#notes a")
        recorded = served.services.sessions.parent / download.value.suggested_filename
        assert Path(download.value.path()).read_bytes() == recorded.read_bytes()
        styles = tab.evaluate("getComputedStyle(document.body).display")
        assert styles == "flex"


@needs_browser
def test_a_name_that_was_not_allowed_is_said_on_a_page_that_cannot_connect(served, chromium, proxy):
    port = proxy(host="127.0.0.1:8123").port
    tab = chromium.new_page(bypass_csp=True)
    tab.clock.install(time=0)
    tab.goto(f"http://other.example.org:{port}/")
    for _ in range(3):
        tab.wait_for_function("sanawm.quiet() === null")
        tab.clock.run_for(1100)
    told(tab, "--allow-host other.example.org")
    tab.close()


@needs_browser
def test_a_connection_that_says_nothing_any_more_is_made_anew(served, chromium, proxy):
    link = proxy()
    with opened(chromium, f"http://127.0.0.1:{link.port}/") as tab:
        for _ in range(8):
            tab.clock.run_for(5000)
            tab.wait_for_function("sanawm.quiet() === 0")
        assert tab.locator("#link.on").count() == 1
        link.frozen = True
        until(tab, lambda: tab.clock.run_for(1000) or tab.locator("#link.off").count(), "it is noticed")
        link.frozen = False
        until(tab, lambda: tab.clock.run_for(1000) or tab.locator("#link.on").count(), "it is back")


STRINGS = [
    '<img src=x onerror="window.hacked=1">',
    "a & b",
    "$x^2$ [red]",
    "\"quotes\" 'and' `ticks`",
    "שלום עולם",
    "🚪🏽" * 20,
    "w" * 80,
]


@needs_browser
def test_names_are_shown_as_they_are(film):
    tab = film.tab
    for text in STRINGS:
        tab.fill("#name", text)
        tab.press("#name", "Enter")
        until(tab, lambda: film.session.tree[0].name == text, f"{text} is kept")  # noqa: B023
        tab.wait_for_function("(text) => document.querySelector('.node span').textContent === text", arg=text)
        assert tab.evaluate("document.getElementById('where').textContent").startswith(text)
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


@needs_browser
def test_a_browser_without_websockets_is_told_so(served, chromium):
    tab = chromium.new_page()
    tab.add_init_script("delete window.WebSocket; delete window.localStorage")
    failures = []
    tab.on("pageerror", lambda error: failures.append(error))
    tab.goto(served.url)
    tab.wait_for_selector("#link >> text=no WebSocket")
    tab.close()
    assert failures == []


# --- without a browser ---


def fetched(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_server_gives_its_files_and_nothing_else(served):
    assert b"sanawm <b>play</b>" in fetched(served.url)[1]
    for name in ("play.js", "map.js", "time.js", "style.css", "scenes/0"):
        assert fetched(served.url + name)[0] == 200
    thumbnail = Image.open(io.BytesIO(fetched(served.url + "scenes/2")[1]))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (96, 64))
    for name in ("scenes/3", "scenes/%C2%B2", "scenes/../page.py", "files/secret", "page.py", "%2e%2e/page.py"):
        assert fetched(served.url + name)[0] == 404


def test_other_sites_cannot_reach_a_session(served):
    ours = f"127.0.0.1:{served.port}"
    assert fetched(served.url, Host="evil.example")[0] == 403
    assert fetched(served.url, Origin="http://evil.example")[0] == 403
    assert fetched(served.url + "live", Origin="http://evil.example")[0] == 403
    assert fetched(served.url, Host=ours, Origin=f"http://{ours}")[0] == 200
    assert fetched(served.url, Host=f"localhost:{served.port}")[0] == 200
    for name in ("hub.example.org.evil.example", "evil-hub.example.org", "", "127.0.0.1.evil.example", "null"):
        assert fetched(served.url, Host=name)[0] == 403
        assert fetched(served.url + "live", Host=ours, Origin=f"http://{name}")[0] == 403
    forged = {"X-Forwarded-Host": "hub.example.org", "X-Forwarded-For": "127.0.0.1", "Forwarded": "host=127.0.0.1"}
    assert fetched(served.url, Host="evil.example", **forged)[0] == 403
    assert fetched(served.url, Host=ours, Origin="null")[0] == 403


def test_hosts_that_were_allowed_reach_it_whatever_a_proxy_makes_of_their_requests(served):
    hub = "https://hub.example.org"
    for host in ("hub.example.org", "HUB.example.org:443", "hub.example.org.", f"127.0.0.1:{served.port}"):
        for origin in (hub, "https://HUB.example.org:8443"):
            assert fetched(served.url, Host=host, Origin=origin)[0] == 200
            assert fetched(served.url + "live", Host=host, Origin=origin)[0] == 426  # a web socket is asked for
    for path in ("user/me/proxy/8123/", "proxy/8123/index.html", "a/b/play.js?v=1", "a/scenes/0"):
        assert fetched(served.url + path)[0] == 200


def answered(page: Page, request: bytes, cut_off: bool = False) -> bytes:
    """What is answered to bytes, after which perhaps no more can come."""
    with socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE) as link:
        link.sendall(request)
        if cut_off:
            link.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while data := link.recv(65536):
                answer += data
        return answer


GARBAGE = {
    "a host that is none": (b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", 403),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 403),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 403),
    "an origin that is none": (b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n", 403),
    "bytes in a host": (b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", 403),
    "another method": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405),
    "a body": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "another version": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "a header that is none": (b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
    "a long path": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414),
    "a long header": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 1000 + b"\r\n", 431),
    "a path that is none": (b"GET //[%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    "a web socket without a key": (
        b"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("request_", GARBAGE)
def test_what_is_no_request_is_refused_and_nothing_is_said_in_the_terminal(served, capfd, request_):
    data, status = GARBAGE[request_]
    assert answered(served, data).split(b" ")[1] == str(status).encode()
    answered(served, data[: len(data) // 2], cut_off=True)
    assert fetched(served.url)[0] == 200
    assert capfd.readouterr() == ("", "")


UPGRADE = (
    b"GET /live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def attached(page: Page):
    """A connection that takes whatever comes."""
    return connect(f"ws://127.0.0.1:{page.port}/live", max_size=None, max_queue=None, open_timeout=PATIENCE)


def heard(live, kind: str) -> dict:
    """The next message of a kind."""
    while True:
        said = live.recv(PATIENCE)
        if isinstance(said, str) and json.loads(said)["type"] == kind:
            return json.loads(said)


def test_who_sends_garbage_or_breaks_off_keeps_nobody_waiting(served, capfd):
    half_open = socket.create_connection(("127.0.0.1", served.port))
    half_open.sendall(UPGRADE[:40])
    with attached(served) as mad, attached(served) as large, attached(served) as live:
        mad.socket.sendall(b"\xff" * 1000)
        for _ in range(100):
            with suppress(ConnectionClosed):
                large.send(b"x" * (MAX_UPLOAD_BYTES + 2**17))
        with pytest.raises(ConnectionClosed):
            while True:
                large.recv(PATIENCE)
        live.send(json.dumps({"type": "here"}))
        heard(live, "here")
    half_open.close()
    assert capfd.readouterr() == ("", "")


def test_who_does_not_read_costs_little_memory_and_is_let_go(served, monkeypatch):
    monkeypatch.setattr("sanawm_env.viewer.page.WAITING_BYTES", 2**23)
    deaf = socket.create_connection(("127.0.0.1", served.port))
    deaf.sendall(UPGRADE)
    with attached(served) as live:
        while heard(live, "tree")["viewers"] < 2:
            pass
        (browser,) = [b for b in tuple(served._browsers) if b.connection.remote_address == deaf.getsockname()]
        most = 0
        while browser in served._browsers:
            served.player.do(lambda: served.session.drive("w-24"))
            served._soon(served._note, "x" * 2**20, "note")
            live.send(json.dumps({"type": "here"}))
            heard(live, "here")
            most = max(most, sum(message.shown is not None for message in tuple(browser.messages)))
        assert most <= 4  # frames make room for those that are due when they are, or later
        assert not browser.messages
        while heard(live, "tree")["viewers"] == 2:
            pass
    deaf.close()


def test_only_so_much_can_be_asked_for_at_once(served):
    with attached(served) as live:
        blocked, go_on = threading.Event(), threading.Event()
        served.player.do(lambda: (blocked.set(), go_on.wait(PATIENCE)))
        blocked.wait(PATIENCE)
        for _ in range(40):
            live.send(json.dumps({"type": "do", "what": "restore", "node": 0}))
        assert "Too many commands at once" in heard(live, "note")["text"]
        assert served.player._commands.qsize() <= 8
        go_on.set()


def test_messages_are_said_briefly(served):
    with attached(served) as live:
        for said in (
            {"type": "x" * 10**6},
            {"type": "push", "twist": ["x" * 10**6], "number": 1},
            {"type": "do", "what": "x" * 10**6},
            {"type": "do", "what": "world", "name": "x" * 2000},
            {"type": "keys", "held": "x" * 2000, "number": 1},
        ):
            live.send(json.dumps(said))
            assert len(heard(live, "note")["text"]) <= 500


def test_the_present_is_told_to_follow_another_prompt(served, monkeypatch):
    with attached(served) as live:
        live.send(json.dumps({"type": "do", "what": "prompt", "prompt": "rain"}))
        assert "no text encoder" in heard(live, "note")["text"]  # in this world
        followed, told = threading.Event(), []
        monkeypatch.setattr(served.session, "set_prompt", lambda prompt: (told.append(prompt), followed.set()))
        live.send(json.dumps({"type": "do", "what": "prompt", "prompt": "rain"}))
        assert followed.wait(PATIENCE) and told == ["rain"]


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        "{}",
        '{"type": "fly"}',
        '{"type": "keys", "held": 3, "number": 1}',
        '{"type": "do", "what": "rm", "node": 0}',
        '{"type": "do", "what": "restore", "node": "x"}',
        '{"type": "keys", "held": "w", "number": Infinity}',
        '{"type": "push", "twist": [1], "number": 1}',
        '{"type": "do", "what": "world", "name": "/etc"}',
        b"\0\0\0\xffabc",
        b"",
        "[" * 100_000,
    ],
)
def test_a_message_that_is_none_is_said_and_changes_nothing(served, message):
    before = served.session.tree
    with attached(served) as live:
        live.send(message)
        while True:
            answer = live.recv(10)
            if isinstance(answer, str) and json.loads(answer)["type"] == "note":
                break
        assert json.loads(answer)["kind"] == "error"
    assert served.session.tree is before


def test_a_port_that_is_taken_is_said(served, folder):
    session = Session(World.load(folder))
    with pytest.raises(OSError, match="Cannot listen on"):
        Page(session, served.services, port=served.port)
    session.close()


def refused(capsys, *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["play", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_options_that_cannot_be_are_refused(folder, tmp_path, capsys):
    where = ("--world", folder, "--out", tmp_path, "--no-browser", "--port", 0)
    for limit in (0, "nan", "1e300"):
        assert "--memory-limit-gb must be a finite number from 1e-06 to" in refused(
            capsys, *where, "--memory-limit-gb", limit
        )
    assert "--port must be a whole number from 0 to 65,535" in refused(capsys, *where, "--port", 99999)
    for name in ("https://hub.example.org/", "hub.example.org:8443", "a b", "*", ""):
        assert "takes a host name such as hub.example.org" in refused(capsys, *where, "--allow-host", name)
    assert "There is no driver 'by magic'" in refused(capsys, *where, "--driver", "by magic")
    assert "no session in" in refused(capsys, *where, "--session", tmp_path / "none")
    assert "no image at" in refused(capsys, *where, "--image", tmp_path / "none.png")
    assert "sanawm fetch streaming" in refused(capsys, "--world", "streaming", "--out", tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("orbit:radius=0", "above 0"),
        ("explore:horizon=x", "must be a number"),
        ("explore:std=1", "takes horizon and candidates"),
        ("explore:horizon=1,horizon=2", "each once"),
        ("explore:candidates=1000000000", "from 1 to 1,024"),
        ("explore:horizon=0", "from 1 to 32"),
        (f"explore:horizon={'9' * 5000}", "must be a number"),
        ("point:nan,1", "finite number"),
        ("point:1,1e300", "finite number"),
        ("orbit:radius=nan", "finite number"),
        ("orbit:radius=2,radius=3", "once"),
        ("policy:", "There is no driver"),
        ("x" * 2000, "There is no driver"),
        ("image:99", "no node 99"),
        ("image", "There is no driver"),
        ("point:1", "There is no driver"),
        ("policy:nowhere", "no training in"),
    ],
)
def test_drivers_that_cannot_be_are_refused(served, text, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        make_driver(text, served.session)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_no_episode_can_say_is_not_recorded_as_one(served, tmp_path):
    session = served.session
    with pytest.raises(ValueError, match="at least one chunk"):
        record(session.film(0), "episode", tmp_path)
    session.reseed(session.drive("w-24").id)
    with pytest.raises(ValueError, match="predicted with several seeds"):
        record(session.film(session.current.id), "episode", tmp_path)
    with pytest.raises(ValueError, match="one of mp4, episode"):
        record(session.film(0), "gif", tmp_path)
    assert list(tmp_path.glob("episode*")) == []
    paths = [record(session.film(session.current.id), "mp4", tmp_path) for _ in range(2)]
    assert [path.name for path in paths] == ["branch_2.mp4", "branch_2_2.mp4"]


def test_scripted_cameras_follow_their_path_from_anywhere(served):
    session = served.session
    session.drive("wd-24")
    here, driver = session.current.c2w[-1], make_driver("orbit:radius=2,degrees=30", session)
    nodes = [session.drive(driver(session.snapshot(session.current.id)).move) for _ in range(3)]
    walked = np.linalg.inv(here) @ np.concatenate([node.c2w for node in nodes])
    assert np.allclose(walked, driver.camera.poses(73)[1:], atol=1e-9)


def test_planners_go_where_they_are_sent(served):
    session = served.session
    driver = make_driver("point:0,2.5,horizon=1,candidates=8", session)
    for _ in range(8):
        decision = driver(session.snapshot(session.current.id))
        if decision.move is None:
            break
        assert len(decision.futures) == 8
        assert decision.futures[0].c2w.shape == (24, 4, 4)
        session.drive(decision.move)
    assert decision.move is None
    assert np.linalg.norm(session.current.c2w[-1, :3, 3] - [0, 0, 2.5]) < 0.35
    image = make_driver(f"image:{session.current.id}", session)
    assert image(session.snapshot(session.current.id)).move is None


@pytest.mark.slow
def test_a_trained_policy_drives_by_its_weights_alone(served, folder, tmp_path):
    pytest.importorskip("stable_baselines3")
    from sanawm_env.agents.train_ppo import TrainPPO, train_ppo

    settings = TrainPPO(
        world=folder, num_envs=2, n_steps=2, batch_size=4, n_epochs=1, steps=4, threads=1, out=tmp_path / "ppo"
    )
    model = train_ppo(settings)
    driver = make_driver(f"policy:{tmp_path / 'ppo'}", served.session)
    moment = served.session.snapshot(0)
    move = driver(moment).move
    action = int(model.predict(driver.env.observation, deterministic=True)[0])
    assert move == f"{driver.env.controller.table[action] or 'none'}-24"
    assert served.session.drive(move).chunk == 1
    (tmp_path / "ppo" / "policy.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is not the policy"):
        make_driver(f"policy:{tmp_path / 'ppo'}", served.session)


@pytest.mark.slow
@pytest.mark.parametrize(("host", "stop", "status"), [("127.0.0.1", "SIGINT", 130), ("0.0.0.0", "SIGTERM", 143)])
def test_the_command_serves_until_it_is_stopped_and_warns_of_other_hosts(folder, tmp_path, host, stop, status):
    command = [sys.executable, "-m", "sanawm_env", "play", "--world", folder, "--out", tmp_path / "out"]
    command += ["--no-browser", "--port", 0, "--host", host, "--driver", "explore"]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path / "tmp")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background may ignore it
    )
    try:
        said = ""
        while (url := re.search(r"http://127\.0\.0\.1:\d+/", said)) is None:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert ("Whoever reaches 0.0.0.0 can drive this session" in said) == (host == "0.0.0.0")
        assert fetched(url.group())[0] == 200
        with connect(url.group().replace("http", "ws") + "live") as live:  # while it is busy
            heard(live, "futures")
            process.send_signal(getattr(signal, stop))
            assert process.wait(PATIENCE) == status
    finally:
        process.kill()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_which_hosts_are_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.7", "example.org")))
