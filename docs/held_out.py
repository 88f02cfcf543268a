"""The walks that nano is measured on for the record: `python docs/held_out.py` writes docs/benchmarks/held_out.json.

Walk i is what `sanawm_env.training.truth.draw_walk` makes of (role "evaluate", seed, i); no training or choice draws
from that role. The file holds where each begins and ends, so that `tests/test_evaluate.py` notices when places, walks
or random streams change: then the published numbers are of other walks.
"""

import json
from pathlib import Path

from sanawm_env.training.nano import NANO
from sanawm_env.training.truth import draw_walk

FILE = Path(__file__).parent / "benchmarks" / "held_out.json"
SEED, WALKS, CHUNKS = 2028, 64, 8


def walks(known: bool, count: int = WALKS) -> list[dict]:
    drawn = [draw_walk(NANO, SEED, i, 1 + CHUNKS * NANO.chunk_frames, known) for i in range(count)]
    return [
        {"place": walk.place.name, "start": walk.c2w[0].round(4).tolist(), "end": walk.c2w[-1].round(4).tolist()}
        for walk in drawn
    ]


if __name__ == "__main__":
    held_out = {"role": "evaluate", "seed": SEED, "chunks": CHUNKS, "known": walks(True), "unknown": walks(False)}
    FILE.write_text(json.dumps(held_out) + "\n")
    print(f"{2 * WALKS} walks in {FILE}")
