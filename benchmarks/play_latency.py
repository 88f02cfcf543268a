"""How fast `sanawm play` answers: a minute at the keys in a real browser, and a picture of the page.

    python benchmarks/play_latency.py             # two minutes; needs Debian's Chromium (apt-get install chromium)
    python benchmarks/play_latency.py --pictures  # the pictures alone, on however busy a machine

The nano world, one torch thread, headless Chromium on the same machine. Keys are pressed at random from a seed: one or
two of W, A, D, I, K, S, J, L for 0.3 to 2.5 s, changed in the middle of chunks, sometimes nothing at all. All
times are the page's own: from the key's event to the drawing of the first frame that follows it, and how late a frame
was drawn while a key was held. A chunk that is imagined again when keys change is not bit for bit what was shown of it
by then: `seams` says how near it comes. docs/play.png is the picture, docs/media/play.webp a
walk, for which page and browser share a clock that stands still while a chunk is imagined.
"""

import io
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from harness import DOCS, console, header, numbers_file, parser, write
from PIL import Image
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright

from sanawm_env.cli import Play, keep_memory
from sanawm_env.metrics.image import psnr
from sanawm_env.viewer.page import Page
from sanawm_env.viewer.session import Session

SEED, SECONDS = 2030, 60
SHOTS = 8  # a second of the clip
CLIP = (("", 1), ("d", 2.5), ("w", 1), ("", 1), ("Backspace", 0.5), ("Backspace", 0.5), ("a", 3), ("", 1.5))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def driven(tab: Tab, page: Page, seconds: float) -> dict:
    """What the page measured while keys were pressed for so long."""
    rng, left = np.random.default_rng(SEED), seconds * 1000.0
    before = cpu_seconds()
    while left > 0:
        keys = rng.choice(list("wwwadikslj"), rng.integers(1, 3), replace=False)
        held, pause = rng.uniform(300, 2500), rng.choice([0, 0, rng.uniform(100, 3000)])
        for key in keys:
            tab.keyboard.down(key)
            tab.wait_for_timeout(held / len(keys))
        for key in keys:
            tab.keyboard.up(key)
        tab.wait_for_timeout(pause)
        left -= held + pause
        if page.session.current.chunk > 12:  # back to the start, now and then, as people do
            page.player.do(lambda: page.session.restore(0))
    script = "({latencies: sanawm.figures.latencies, stalls: sanawm.figures.stalls, gaps: sanawm.figures.gaps})"
    figures = tab.evaluate(script)
    used = {name: round((now - before[name]) / seconds, 2) for name, now in cpu_seconds().items()}
    latencies = np.array(figures["latencies"])
    return {
        "presses": len(latencies),
        "latency_ms": {
            "p50": float(np.median(latencies)),
            "p95": float(np.quantile(latencies, 0.95)),
            "max": float(latencies.max()),
        },
        "longest_stall_ms": float(max(figures["stalls"])),
        "frames_per_s": 1000 / float(np.mean(figures["gaps"])),
        "chunk_ms": 1000 * page.player.seconds,
        "imagining_ms": 1000 * float(np.median(page.player._imagining)),
        "cores": used,
    }


def seams(session: Session) -> dict:
    """PSNR, dB, of the last frame shown before a change of keys and the same frame of the chunk that replaced it."""
    rng, found = np.random.default_rng(SEED), []
    for scene in range(0, len(session.scenes), 2):
        start = session.begin(scene, seed=0)
        session.drive("w-24")
        old = session.drive("w-24")
        shown, at = session.frames(old.id), int(rng.choice([8, 16]))
        new = session.revise(old.id, f"w-{at},{rng.choice(['wd', 'wa', 'd', 's', 'l'])}-{24 - at}")
        found.append(psnr(shown[at - 1], session.frames(new.id)[at - 1]))
        session.delete(start.id)
    return {"mean": float(np.mean(found)), "least": float(np.min(found)), "changes": len(found)}


def cpu_seconds() -> dict[str, float]:
    """Of this process, and of the browser's."""
    own = psutil.Process()
    times = [process.cpu_times() for process in own.children(recursive=True) if "chrom" in process.name()]
    here = own.cpu_times()
    return {"player": here.user + here.system, "browser": sum(t.user + t.system for t in times)}


def picture(tab: Tab, page: Page, file: Path) -> None:
    """Three branches of the court (from which step of the first, and its keys), and a planner at work."""
    session, player = page.session, page.player
    start = next(i for i, path in enumerate(session.scenes) if path.stem == "court_10")

    def wait() -> None:
        while not player.resting:
            tab.wait_for_timeout(50)

    player.do(lambda: session.begin(start, seed=0))
    tab.wait_for_timeout(300)
    wait()
    root = session.current.id
    others = [node.id for node in session.tree.nodes.values() if node.parent is None and node.id != root]
    player.do(lambda: [session.delete(node) for node in others])
    walks = {"hedge": (0, "d wd d l"), "": (1, "s sd j"), "tree": (0, "a a wa a")}
    line = [root]
    for name, (step, keys) in walks.items():
        player.do(lambda at=line[step]: session.restore(at))
        for move in (f"{key}-24" for key in keys.split()):
            player.do(lambda move=move: session.drive(move))
        player.do(lambda name=name: session.rename(session.current.id, name))
        tab.wait_for_timeout(1000)
        wait()
        if name == "hedge":
            line = [node.id for node in session.tree.line(session.current.id)]
            player.do(lambda: session.pin(session.current.id))
    player.do(lambda: session.restore(line[2]))
    tab.click("[data-tab=agent]")
    tab.fill("#driver", "explore:horizon=2,candidates=10")
    tab.click("#drive")
    tab.wait_for_function("sanawm.futures() > 0", timeout=600_000)
    tab.wait_for_timeout(500)
    tab.screenshot(path=file)


class Clock:
    """Seconds, as many as a clip has shown."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def clip(tab: Tab, page: Page, clock: Clock, file: Path) -> None:
    """Keys held one after the other, at half size; time goes on once the frames for it are there."""
    ready = "sanawm.schedule().some((entry) => entry.due > performance.now())"
    shots = []
    for key, seconds in CLIP:
        if key:
            tab.keyboard.down(key)
        for _ in range(int(seconds * SHOTS)):
            clock.now += 1 / SHOTS
            tab.clock.run_for(1000 // SHOTS)
            for _ in range(1000):
                tab.wait_for_timeout(20)
                if page.player.resting or tab.evaluate(ready):
                    break
            shots.append(
                Image.open(io.BytesIO(tab.screenshot())).convert("RGB").resize((640, 400), Image.Resampling.LANCZOS)
            )
        if key:
            tab.keyboard.up(key)
    shots[0].save(file, append_images=shots[1:], save_all=True, duration=1000 // SHOTS, loop=0, quality=60)
    console.print(f"{file.name}: {len(shots)} frames, {file.stat().st_size / 1e3:.0f} kB")


@contextmanager
def opened(chromium: Any, page: Page, clock: bool = False) -> Generator[Tab]:
    """A tab at a page. clock: whether its own stands still until it is told to go on."""
    tab = chromium.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    if clock:
        tab.clock.install(time=0)
        tab.clock.pause_at(1000)
    tab.goto(page.url)
    tab.wait_for_selector("#link.on")
    yield tab
    tab.close()


def pictures(out: Path) -> None:
    """docs/play.png and docs/media/play.webp."""
    play, clock = Play(out=out), Clock()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = Page(play.begin("nano"), play.services(), clock=clock)
        try:
            with opened(chromium, page, clock=True) as tab:
                clip(tab, page, clock, DOCS / "media" / "play.webp")
        finally:
            page.close()
        page = Page(play.begin("nano"), play.services())
        try:
            with opened(chromium, page) as tab:
                picture(tab, page, DOCS / "play.png")
        finally:
            page.close()
        chromium.close()


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--pictures", action="store_true", help="nothing but the pictures of docs")
    options = given.parse_args()
    if options.pictures:
        keep_memory()
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            pictures(Path(folder))
        return
    seconds = 10 if options.quick else SECONDS
    keep_memory()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp())
    play = Play(out=out)
    page = Page(play.begin("nano"), play.services())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            with opened(browser, page) as tab:
                tab.wait_for_selector("#view[data-node]")
                tab.click("#view")
                numbers: dict[str, Any] = header() | {"browser": browser.version, "seconds": seconds, "seed": SEED}
                numbers |= driven(tab, page, seconds)
                page.player.do(lambda: numbers.update(seam_db=seams(page.session)))
                while "seam_db" not in numbers:
                    tab.wait_for_timeout(100)
                delay = numbers["latency_ms"]
                console.print(f"from a key to its first frame: p50 {delay['p50']:.0f} ms, p95 {delay['p95']:.0f} ms")
                write(numbers_file(options, "play_latency"), numbers)
            browser.close()
    finally:
        page.close()
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
