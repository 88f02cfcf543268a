"""The walks that nano is measured on for the record: `python benchmarks/held_out.py` writes results/held_out.json.

Walk i is what `sanawm_env.training.truth.draw_walk` makes of (role "evaluate", seed, i); no training or choice draws
from that role. The file holds where each begins and ends, so that `tests/test_evaluate.py` notices when places, walks
or random streams change: then the published numbers are of other walks.
"""

from harness import numbers_file, parser, write

from sanawm_env.training.nano import NANO_SMALL
from sanawm_env.training.truth import draw_walk

SEED, WALKS, CHUNKS = 2028, 64, 8


def walks(known: bool, count: int = WALKS) -> list[dict]:
    drawn = [draw_walk(NANO_SMALL, SEED, i, 1 + CHUNKS * NANO_SMALL.chunk_frames, known) for i in range(count)]
    return [
        {"place": walk.place.name, "start": walk.c2w[0].round(4).tolist(), "end": walk.c2w[-1].round(4).tolist()}
        for walk in drawn
    ]


def main() -> None:
    file = numbers_file(parser(__doc__, quick=False).parse_args(), "held_out")
    drawn = {"known": walks(True), "unknown": walks(False)}
    write(file, {"role": "evaluate", "seed": SEED, "chunks": CHUNKS, **drawn}, indent=None)


if __name__ == "__main__":
    main()
