"""`sanawm play` in a real browser: Debian's Chromium, headless, by playwright."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanawm_env.cli import Play, main
from sanawm_env.cli.play import backstage, is_loopback, make_driver, record
from sanawm_env.recording.episode import Episode
from sanawm_env.recording.video import read_video
from sanawm_env.viewer.page import Page
from sanawm_env.viewer.session import Session
from sanawm_env.world.world import World
from tests.worlds import picture, with_starts, write_tiny_world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PIXELS = """(id) => {
    const canvas = document.getElementById(id), {width, height} = canvas;
    const rgba = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const {node, frame} = canvas.dataset;
    return {node: Number(node), frame: Number(frame), width, height, rgba: Array.from(rgba)};
}"""
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="THE VIEWER'S PAGE IS NOT TESTED: Chromium is not here (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return with_starts(write_tiny_world(tmp_path_factory.mktemp("worlds") / "tiny"))


@pytest.fixture
def served(folder, tmp_path):
    """A page of a session in the tiny world, with its files in tmp_path."""
    options = Play(world=folder, out=tmp_path / "play")
    session = Session(World.load(folder), name=folder)
    session.begin(0, seed=1)
    page = Page(session, backstage(options))
    yield page
    page.close()


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="THE VIEWER'S PAGE IS NOT TESTED: no playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium, served):
    """The page in a tab, connected, with a picture; a script that fails fails the test."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)  # playwright waits by eval
    opened.set_default_timeout(15_000)
    failures = []
    opened.on("pageerror", lambda error: failures.append(error))
    opened.goto(served.url)
    opened.wait_for_selector("#link.on")
    opened.wait_for_selector("#view[data-node]")
    yield opened
    opened.close()
    assert failures == []


def pixels(tab, canvas: str = "view") -> tuple[int, int, np.ndarray]:
    """Node, frame and picture (H, W, 3) of a canvas, of one moment."""
    seen = tab.evaluate(PIXELS, canvas)
    picture = np.array(seen["rgba"], np.uint8).reshape(seen["height"], seen["width"], 4)[..., :3]
    return seen["node"], seen["frame"], picture


def hold(tab, keys: str, milliseconds: int) -> None:
    for key in keys:
        tab.keyboard.down(key)
    tab.wait_for_timeout(milliseconds)
    for key in keys:
        tab.keyboard.up(key)


def rest(tab, page: Page) -> int:
    """Wait until the film has ended and its last frame is in the tab: the node that is shown."""
    while not page.player.resting:
        tab.wait_for_timeout(50)
    node = page.session.current
    shown = f"dataset.node === '{node.id}' && document.getElementById('view').dataset.frame === '{len(node.c2w) - 1}'"
    tab.wait_for_function(f"document.getElementById('view').{shown}")
    return node.id


def drive(tab, page: Page, keys: str, milliseconds: int = 300) -> int:
    """Hold keys for a moment and wait until the camera rests: the node it has come to."""
    before = page.session.current.id
    hold(tab, keys, milliseconds)
    tab.wait_for_function(f"document.getElementById('view').dataset.node !== '{before}'")
    return rest(tab, page)


def told(tab, words: str) -> None:
    tab.wait_for_selector(f"#toasts >> text={words}")


# --- the page ---


@needs_browser
def test_what_the_page_shows_while_driving_are_the_frames_of_the_session(tab, served):
    session, seen = served.session, set()
    _, _, start = pixels(tab)
    assert np.array_equal(start, session.frames(0)[0])
    tab.keyboard.down("w")
    for _ in range(30):
        tab.wait_for_timeout(70)
        node, frame, shown = pixels(tab)
        if node in session.tree.nodes and node:
            assert np.array_equal(shown, session.frames(node)[frame]), (node, frame)
            seen.add((node, frame))
    tab.keyboard.up("w")
    assert len({node for node, _ in seen}) >= 2
    assert len(seen) >= 15
    node = rest(tab, served)
    assert np.array_equal(pixels(tab)[2], session.frames(node)[-1])
    assert session.current.c2w[-1, 2, 3] > 0.5


@needs_browser
def test_two_held_keys_and_letting_go_are_seen(tab, served):
    tab.keyboard.down("w")
    tab.wait_for_timeout(400)
    tab.keyboard.down("ArrowUp")
    tab.wait_for_timeout(400)
    tab.keyboard.up("w")
    tab.wait_for_timeout(300)
    tab.keyboard.up("ArrowUp")
    rest(tab, served)
    moves = "".join(node.title + "," for node in served.session.tree.line(served.session.current.id)[1:])
    assert re.match(r"w-\d+,(w-\d+,)?wi-\d+,(wi-\d+,)?i-\d+", moves)
    tab.wait_for_function("document.getElementById('latency').textContent.includes('ms')")


@needs_browser
def test_a_click_goes_back_and_driving_on_branches(tab, served):
    session = served.session
    first, second = drive(tab, served, "w"), drive(tab, served, "d")
    tab.click(f'.node[data-node="{first}"]')
    tab.wait_for_function(f"document.getElementById('view').dataset.node === '{first}'")
    assert np.array_equal(pixels(tab)[2], session.frames(first)[-1])
    assert session.current.id == first
    branch = drive(tab, served, "a")
    assert [child.id for child in session.tree.children(first)] == [second, branch]
    boxes = [tab.locator(f'.node[data-node="{node}"]').bounding_box() for node in (second, branch)]
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["y"] != boxes[1]["y"]
    found = [tab.locator(f'.node[data-node="{node}"]') for node in (first, second, branch)]
    colors = [button.evaluate("button => button.style.borderColor") for button in found]
    assert colors[0] == colors[1] != colors[2]
    drawn = np.array(tab.evaluate(PIXELS, "map")["rgba"]).reshape(-1, 4)[:, :3]
    for color in (colors[0], colors[2]):  # both paths are in the map
        assert (np.abs(drawn - [int(c) for c in re.findall(r"\d+", color)]).max(axis=1) < 12).sum() > 20
    tab.keyboard.press("Backspace")
    tab.wait_for_function(f"document.getElementById('view').dataset.node === '{first}'")


@needs_browser
def test_naming_pinning_dreaming_again_and_deleting(tab, served):
    session = served.session
    node = drive(tab, served, "w")
    tab.fill("#name", "by the door")
    tab.press("#name", "Enter")
    tab.click("#pin")
    tab.wait_for_selector(f'.node[data-node="{node}"].pinned >> text=by the door')
    assert (session.tree[node].name, session.tree[node].pinned) == ("by the door", True)
    tab.click("#delete")
    told(tab, "take the pin out")
    tab.click("#reseed")
    tab.wait_for_function("sanawm.nodes.size === 3")
    dreamt = rest(tab, served)
    assert session.tree[dreamt].parent == 0
    assert np.array_equal(session.tree[dreamt].c2w, session.tree[node].c2w)
    tab.click("#delete")
    tab.wait_for_function("sanawm.nodes.size === 2")
    assert dreamt not in session.tree.nodes


@needs_browser
def test_two_branches_side_by_side(tab, served):
    session = served.session
    left = drive(tab, served, "a")
    tab.click('.node[data-node="0"]')
    right = drive(tab, served, "d")
    tab.click("#compare")
    tab.click(f'.node[data-node="{left}"]')
    tab.wait_for_selector("#comparison[open] #both[data-frame]")
    _, frame, shown = pixels(tab, "both")
    assert np.array_equal(shown, session.compare(right, left).frames[frame])
    tab.click("#comparison button")


@needs_browser
def test_a_recorded_branch_is_a_video_and_an_episode(tab, served):
    session = served.session
    drive(tab, served, "w")
    last = drive(tab, served, "d")
    tab.click("[data-tab=keep]")
    tab.click("#mp4")
    link = tab.get_attribute("#notes a", "href")
    with urllib.request.urlopen(served.url.rstrip("/") + link) as response:
        data = response.read()
    path = served.backstage.sessions.parent / Path(link).name
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
    episode = Episode.open(path.parent / f"episode_{last}")
    assert np.allclose(episode.trajectory().c2w, session.film(last).c2w)
    again = np.concatenate([step.frames for step in episode.replay()])
    assert np.array_equal(again, np.concatenate(film[1:]))  # it can be imagined anew, bit for bit


@needs_browser
def test_a_session_is_saved_and_opened(tab, served):
    session = served.session
    node = drive(tab, served, "w")
    frames = session.frames(node)
    tab.click("[data-tab=keep]")
    tab.fill("#sessionname", "walk")
    tab.click("#save")
    told(tab, "Saved as")
    drive(tab, served, "a")
    tab.click("#open")
    tab.wait_for_function("sanawm.nodes.size === 2")
    tab.wait_for_function(f"document.getElementById('view').dataset.node === '{node}'")
    assert np.array_equal(pixels(tab)[2], frames[-1])
    tab.fill("#sessionname", "../walk")
    tab.click("#open")
    told(tab, "a file name of at most 80 characters")
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
    assert session.moment(session.current.id).slot.scene.intrinsics_source == "fov"
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
    assert session.tree is before
    assert tab.is_disabled("#prompt")


@needs_browser
def test_a_world_that_is_not_here_is_said_and_one_that_is_can_be_gone_to(tab, served):
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.click("[data-tab=scene]")
    tab.select_option("#worlds", "streaming")
    told(tab, "sanawm fetch streaming")
    before = served.session
    tab.select_option("#worlds", "nano")
    tab.wait_for_selector("#world >> text=nano", timeout=60_000)
    tab.wait_for_function("document.getElementById('view').width === 96")
    assert served.session is not before
    assert not before.folder.exists()
    assert np.array_equal(pixels(tab)[2], served.session.frames(0)[0])


@needs_browser
def test_a_full_device_is_said(tab, served, monkeypatch):
    def full(*_):
        raise MemoryError("cpu is out of memory: delete branches, or start with a lower memory limit.")

    monkeypatch.setattr(served.session, "drive", full)
    hold(tab, "w", 300)
    told(tab, "cpu is out of memory")


@needs_browser
def test_a_lost_connection_comes_back_and_goes_on(tab, served):
    session = served.session
    drive(tab, served, "w")
    for browser in tuple(served._browsers):
        served._soon(browser.connection.transport.abort)
    tab.wait_for_selector("#link.off")
    tab.wait_for_selector("#link.on")
    tab.wait_for_function("sanawm.nodes.size === 2")
    node = drive(tab, served, "a")
    assert session.tree[node].chunk == 2


@needs_browser
def test_a_driver_drives_until_a_key_takes_over(tab, served):
    session = served.session
    tab.click("[data-tab=agent]")
    tab.fill("#driver", "explore:candidates=4,horizon=1")
    tab.click("#drive")
    tab.wait_for_selector("#driving >> text=explore")
    tab.wait_for_function("sanawm.futures() === 4")
    tab.wait_for_function("sanawm.nodes.size >= 3")
    tab.click("#view")
    node = drive(tab, served, "a")
    assert "a-" in session.tree[node].title
    assert served.player.driver is None
    tab.wait_for_selector("#driving", state="hidden")
    tab.fill("#driver", "by magic")
    tab.click("#drive")
    told(tab, "There is no driver")


@needs_browser
def test_buttons_sliders_and_dragging_drive_too(tab, served):
    session = served.session
    box = tab.locator('#pad [data-key="d"]').bounding_box()
    tab.mouse.move(box["x"] + 9, box["y"] + 9)
    tab.mouse.down()
    tab.wait_for_timeout(250)
    tab.mouse.up()
    before = rest(tab, served)
    assert session.current.title.startswith("d-")
    tab.check("#stay")
    tab.locator('#sliders [data-axis="1"]').fill("-1")
    tab.wait_for_function(f"document.getElementById('view').dataset.node !== '{before}'")
    tab.uncheck("#stay")
    node = rest(tab, served)
    assert session.tree[node].title.startswith("twist-")
    assert session.tree[node].c2w[-1, 1, 3] < 0  # up
    box = tab.locator("#view").bounding_box()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 460, box["y"] + 200, steps=4)
    tab.wait_for_timeout(300)
    tab.mouse.up()
    rest(tab, served)
    looked = session.current
    assert looked.title.startswith("twist-")
    assert looked.c2w[-1, 0, 2] > session.tree[node].c2w[-1, 0, 2]  # to the right


@needs_browser
def test_several_viewers_see_and_steer_one_session(tab, served, chromium):
    other = chromium.new_page()
    other.goto(served.url)
    other.wait_for_selector("#viewers >> text=2 viewers")
    tab.keyboard.down("w")
    tab.wait_for_timeout(300)
    other.keyboard.down("d")
    other.wait_for_timeout(300)
    other.close()  # and whatever it held is let go
    tab.keyboard.up("w")
    node = rest(tab, served)
    assert re.search(r"wd-\d+", served.session.tree[node].title)
    assert served.session.tree[node].title.split(",")[-1].startswith("none")
    tab.wait_for_selector("#viewers", state="hidden")


@needs_browser
@pytest.mark.parametrize("width", [1280, 480])
def test_the_page_fits_its_window(tab, served, width):
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    view = tab.locator("#view").bounding_box()
    assert view["width"] >= 0.55 * width
    if width == 1280:  # all of it without scrolling
        assert tab.evaluate("document.documentElement.scrollHeight") <= 800


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


@pytest.mark.parametrize(
    "message",
    [
        "{", "[]", "{}", '{"type": "fly"}', '{"type": "keys", "held": 3, "number": 1}',
        '{"type": "do", "what": "rm", "node": 0}', '{"type": "do", "what": "restore", "node": "x"}',
        '{"type": "keys", "held": "w", "number": Infinity}', '{"type": "push", "twist": [1], "number": 1}',
        '{"type": "do", "what": "world", "name": "/etc"}',
        b"\0\0\0\xffabc", b"", "[" * 100_000,
    ],
)  # fmt: skip
def test_a_message_that_is_none_is_said_and_changes_nothing(served, message):
    from websockets.sync.client import connect

    before = served.session.tree
    with connect(f"ws://127.0.0.1:{served.port}/live") as live:
        live.send(message)
        while True:
            answer = live.recv(10)
            if isinstance(answer, str) and json.loads(answer)["type"] == "note":
                break
        assert json.loads(answer)["kind"] == "error"
    assert served.session.tree is before


def test_a_port_that_is_taken_is_said(served, folder):
    session = Session(World.load(folder))
    with pytest.raises(OSError, match="cannot be listened on"):
        Page(session, served.backstage, port=served.port)
    session.close()


def refused(capsys, *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["play", *map(str, args)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_options_that_cannot_be_are_refused(folder, tmp_path, capsys):
    where = ("--world", folder, "--out", tmp_path, "--no-browser", "--port", 0)
    assert "must be above zero" in refused(capsys, *where, "--memory-limit-gb", 0)
    assert "from 0 (a free one) to 65535" in refused(capsys, *where, "--port", 99999)
    assert "There is no driver 'by magic'" in refused(capsys, *where, "--driver", "by magic")
    assert "no session in" in refused(capsys, *where, "--session", tmp_path / "none")
    assert "no image at" in refused(capsys, *where, "--image", tmp_path / "none.png")
    assert "sanawm fetch streaming" in refused(capsys, "--world", "streaming", "--out", tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("orbit:radius=0", "above zero"),
        ("explore:horizon=x", "must be a number"),
        ("explore:std=1", "takes horizon and candidates"),
        ("image:99", "no node 99"),
        ("image", "There is no driver"),
        ("point:1", "There is no driver"),
        ("policy:nowhere", "no training in"),
    ],
)
def test_drivers_that_cannot_be_are_refused(served, text, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        make_driver(text, served.session)


def test_what_no_episode_can_say_is_not_recorded_as_one(served, tmp_path):
    session = served.session
    with pytest.raises(ValueError, match="at least one chunk"):
        record(session.film(0), "episode", tmp_path)
    session.reseed(session.drive("w-24").id)
    with pytest.raises(ValueError, match="dreamt again on its way"):
        record(session.film(session.current.id), "episode", tmp_path)
    with pytest.raises(ValueError, match='"mp4" or "episode"'):
        record(session.film(0), "gif", tmp_path)
    assert list(tmp_path.glob("episode*")) == []
    paths = [record(session.film(session.current.id), "mp4", tmp_path) for _ in range(2)]
    assert [path.name for path in paths] == ["branch_2.mp4", "branch_2_2.mp4"]


def test_scripted_cameras_follow_their_path_from_anywhere(served):
    session = served.session
    session.drive("wd-24")
    here, driver = session.current.c2w[-1], make_driver("orbit:radius=2,degrees=30", session)
    nodes = [session.drive(driver(session.moment(session.current.id)).move) for _ in range(3)]
    walked = np.linalg.inv(here) @ np.concatenate([node.c2w for node in nodes])
    assert np.allclose(walked, driver.camera.poses(73)[1:], atol=1e-9)


def test_planners_go_where_they_are_sent(served):
    session = served.session
    driver = make_driver("point:0,2.5,horizon=1,candidates=8", session)
    for _ in range(8):
        decision = driver(session.moment(session.current.id))
        if decision.move is None:
            break
        assert len(decision.futures) == 8
        assert decision.futures[0].c2w.shape == (24, 4, 4)
        session.drive(decision.move)
    assert decision.move is None
    assert np.linalg.norm(session.current.c2w[-1, :3, 3] - [0, 0, 2.5]) < 0.35
    image = make_driver(f"image:{session.current.id}", session)
    assert image(session.moment(session.current.id)).move is None


def test_a_trained_policy_drives_by_its_weights_alone(served, folder, tmp_path):
    pytest.importorskip("stable_baselines3")
    from sanawm_env.agents.train_ppo import TrainPPO, train_ppo

    settings = TrainPPO(
        world=folder, num_envs=2, n_steps=2, batch_size=4, n_epochs=1, steps=4, threads=1, out=tmp_path / "ppo"
    )
    model = train_ppo(settings)
    driver = make_driver(f"policy:{tmp_path / 'ppo'}", served.session)
    moment = served.session.moment(0)
    move = driver(moment).move
    action = int(model.predict(driver.env.observation, deterministic=True)[0])
    assert move == f"{driver.env.steering.table[action] or 'none'}-24"
    assert served.session.drive(move).chunk == 1
    (tmp_path / "ppo" / "policy.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is not the policy"):
        make_driver(f"policy:{tmp_path / 'ppo'}", served.session)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_until_it_is_stopped_and_warns_of_other_hosts(folder, tmp_path, host):
    command = [sys.executable, "-m", "sanawm_env", "play", "--world", folder, "--out", tmp_path, "--no-browser",
               "--port", 0, "--host", host, "--driver", "dolly"]  # fmt: skip
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background may ignore it
    )  # fmt: skip
    try:
        said = ""
        while (url := re.search(r"http://127\.0\.0\.1:\d+/", said)) is None:
            line = process.stdout.readline()
            assert line, said
            said += line
        assert ("Whoever reaches 0.0.0.0 can drive this session" in said) == (host == "0.0.0.0")
        assert fetched(url.group())[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_which_hosts_are_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.7", "example.org")))
