"""How fast `sanawm play` answers: a minute at the keys in a real browser, and a picture of the page.

    python benchmarks/play_latency.py         # two minutes; needs Debian's Chromium (apt-get install chromium)

The nano world, one torch thread, headless Chromium on the same machine. Keys are pressed at random from a seed: one or
two of W, A, D, I, K, S, J, L for 0.3 to 2.5 s, changed in the middle of chunks, sometimes nothing at all. All
times are the page's own: from the key's event to the drawing of the first frame that follows it, and how late a frame
was drawn while a key was held. A chunk that is imagined again when keys change is not bit for bit what was shown of it
by then: `seams` says how near it comes. docs/play.png is the picture.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from harness import console, header, numbers_file, parser, plot_file, write
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright

from sanawm_env.cli import Play, keep_memory
from sanawm_env.metrics.image import psnr
from sanawm_env.viewer.page import Page
from sanawm_env.viewer.session import Session

SEED, SECONDS = 2030, 60
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
    """Three branches of the gallery (from which step of the first, and its keys), and a planner at work."""
    session, player = page.session, page.player
    start = next(i for i, path in enumerate(session.scenes) if path.stem == "gallery_10")

    def wait() -> None:
        while not player.resting:
            tab.wait_for_timeout(50)

    player.do(lambda: session.begin(start, seed=0))
    tab.wait_for_timeout(300)
    wait()
    root = session.current.id
    others = [node.id for node in session.tree.nodes.values() if node.parent is None and node.id != root]
    player.do(lambda: [session.delete(node) for node in others])
    walks = {"the bench": (0, "w wd w d"), "": (1, "wa wa w wd w"), "look back": (2, "d wd wd")}
    line = [root]
    for name, (step, keys) in walks.items():
        player.do(lambda at=line[step]: session.restore(at))
        for move in (f"{key}-24" for key in keys.split()):
            player.do(lambda move=move: session.drive(move))
        player.do(lambda name=name: session.rename(session.current.id, name))
        tab.wait_for_timeout(1000)
        wait()
        if name == "the bench":
            line = [node.id for node in session.tree.line(session.current.id)]
            player.do(lambda: session.pin(session.current.id))
    player.do(lambda: session.restore(line[2]))
    tab.click("[data-tab=agent]")
    tab.fill("#driver", "explore:horizon=2,candidates=10")
    tab.click("#drive")
    tab.wait_for_function("sanawm.futures() > 0", timeout=60_000)
    tab.wait_for_timeout(500)
    tab.screenshot(path=file)


def main() -> None:
    options = parser(__doc__).parse_args()
    seconds = 10 if options.quick else SECONDS
    keep_memory()
    torch.set_num_threads(1)
    out = Path(tempfile.mkdtemp())
    play = Play(out=out)
    page = Page(play.begin("nano"), play.services())
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            tab = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
            tab.goto(page.url)
            tab.wait_for_selector("#view[data-node]")
            tab.click("#view")
            numbers: dict[str, Any] = header() | {"browser": browser.version, "seconds": seconds, "seed": SEED}
            numbers |= driven(tab, page, seconds)
            page.player.do(lambda: numbers.update(seam_db=seams(page.session)))
            while "seam_db" not in numbers:
                tab.wait_for_timeout(100)
            delay = numbers["latency_ms"]
            console.print(f"from a key to its first frame: p50 {delay['p50']:.0f} ms, p95 {delay['p95']:.0f} ms")
            file = numbers_file(options, "play_latency")
            write(file, numbers)
            picture(tab, page, plot_file(file.with_name("play.json")))
            browser.close()
    finally:
        page.close()
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
