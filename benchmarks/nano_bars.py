"""All that the nano world is held to (sanawm_env/training/bars.py), in one table and one JSON.

    python benchmarks/nano_bars.py --world runs/train/world --role validation --out runs/bars

Parts that are measured already, for the same weights and walks, are read from the folder: a measurement that was
stopped goes on, and one that is done is printed again.
"""

from pathlib import Path

from harness import console, parser

from sanawm_env.system.signals import interrupting
from sanawm_env.training.bars import PARTS, measure, print_bars


def main() -> None:
    options = parser(__doc__, json=False)
    options.add_argument("--world", default="nano", help="name or folder of a world of known places")
    options.add_argument("--out", type=Path, default=Path("runs/bars"), help="folder of the numbers, one file a part")
    options.add_argument("--scenes", type=int, default=16, help="walks in known places, and in unknown rooms")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--role", choices=("test", "validation"), default="test", help="whose walks")
    options.add_argument("--parts", nargs="+", choices=tuple(PARTS), help="only these")
    given = options.parse_args()
    scenes, chunks = (2, 2) if given.quick else (given.scenes, 8)
    out = given.out / "quick" if given.quick else given.out
    with interrupting():
        numbers = measure(given.world, out, scenes, given.seed, chunks, role=given.role, parts=given.parts)
    print_bars(numbers, console)


if __name__ == "__main__":
    main()
