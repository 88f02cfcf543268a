"""Puts what a run of `sanawm train --data ... --held-out ... --out RUN` measured where docs/own_footage.md shows it.

    python benchmarks/own_footage.py RUN                   # results/own_footage.json, docs/own_footage.png
    python benchmarks/own_footage.py RUN --plain OTHER     # and own_footage_plain.json, of a recipe without depth

The numbers are the run's own record, world/training.json; the picture is its sheet, with 128 colours.
"""

import json
from pathlib import Path

from harness import DOCS, RESULTS, parser
from PIL import Image

from sanawm_env.system.saving import replacing, write_text
from sanawm_env.training.recipe import RECORD, SHEET, WORLD

if __name__ == "__main__":
    options = parser(__doc__, quick=False, json=False)
    options.add_argument("run", type=Path)
    options.add_argument("--plain", type=Path, help="run of a recipe with depth null, to compare with")
    given = options.parse_args()
    run = given.run
    for folder, name in ((run, "own_footage"), (given.plain, "own_footage_plain")):
        if folder is None:
            continue
        record = json.loads((folder / WORLD / RECORD).read_text())
        if "chunks" not in record.get("validation", {}):
            raise SystemExit(f"{folder} was not measured: train it with --held-out.")
        write_text(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    with replacing(DOCS / "own_footage.png") as part:
        Image.open(run / SHEET).convert("RGB").quantize(128).save(part, format="PNG", optimize=True)
