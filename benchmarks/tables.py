"""Puts the numbers of results/ into the tables of docs and README.md: `python benchmarks/tables.py`.

A table is found by its first line. The numbers come from
`python benchmarks/nano_bars.py --scenes 16` (its bars.json as nano_bars.json),
`sanawm evaluate --scenes 32 --unknown-scenes 32 --seed 2028 --json nano_evaluate.json`,
`sanawm study --scenes 4 --seed 2028 --json nano_study.json`,
`sanawm bench --json nano_bench_{1,2}_threads.json`, `sanawm bench kernels --threads 1 --json kernels.json`,
`python -m tests.rounding kernels_rounding.json`,
`python benchmarks/{compare,fork_cost,learn,drift_meter,collect_speed,play_latency}.py`,
`python benchmarks/full_size.py` and
`sanawm precision --scenes 24 --seed 2028 --json nano_precision.json`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from harness import DOCS, RESULTS, parser

CAMERAS = {
    "predicted": "predicted frames", "truth": "rendered frames (the estimator's own error)",
    "frozen": "a still camera", "still": "a still camera",
}  # fmt: skip
"""What poses from pixels were recovered from."""


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def bars(report: dict) -> str:
    """All that is demanded of the nano world, met or not."""
    rows = []
    for bar in report["bars"]:
        rows.append([bar["bar"], f"{bar['value']:.2f}", bar["bound"], "yes" if bar["met"] else "no"])
    return table(["bar", "measured", "demanded", "met"], rows)


def sizes(report: dict) -> str:
    """PSNR in chunks 1, 4 and 8, shrunk to 64 x 96 pixels and at full size."""
    rows = []
    for part, walks in (("known", "known places"), ("unknown", "unknown rooms")):
        for size, pixels in (("small", "64 x 96"), ("full", "128 x 192")):
            found = report[part][size]
            scores = [found["psnr"][i] for i in (0, 3, 7)] + [found["over_plane"][i] for i in (0, 3, 7)]
            rows.append([walks, pixels, *(f"{x:.1f}" for x in scores), f"{found['sharpness']:.2f}"])
    columns = ["walks", "pixels", *(f"chunk {n}, dB" for n in (1, 4, 8)), *(f"over the plane, {n}" for n in (1, 4, 8))]
    return table([*columns, "sharpness"], rows)


def recovered(report: dict) -> str:
    """Medians of poses from pixels in unknown rooms."""
    rows = []
    for kind, errors in report["camera"].items():
        rows.append([CAMERAS[kind], f"{errors['rot_err_deg']:.2f}", f"{errors['trans_err']:.3f}"])
    return table(["camera recovered from", "RotErr, degrees", "TransErr, m"], rows)


def futures(report: dict) -> str:
    """How well predicted frames are told from rendered ones, and how far two seeds are apart."""
    accuracies, seeds, rows = report["two_sample"], report["seeds"], []
    for name, accuracy in accuracies.items():
        pair = seeds["other_steps"].get(name, seeds if name.startswith("predicted") else None)
        rows.append([name, f"{accuracy:.2f}", *(f"{pair[k]:.1f}" if pair else "" for k in ("unseen", "visible"))])
    return table(["frames", "told from rendered", "two seeds, unseen, dB", "two seeds, seen, dB"], rows)


def quality(report: dict) -> str:
    """One row per chunk: the world, then what knows the first frame alone, then the codec."""
    columns = ["chunk", "all", "visible", "unseen", "SSIM", "hold", "rotation homography", "fixed plane", "codec"]
    rows = []
    for number, c in enumerate(report["chunks"], start=1):
        baselines = [c["baselines"][name]["psnr"] for name in ("hold", "rotation_homography", "plane_warp")]
        scores = [c["psnr"], c["psnr_visible"], c["psnr_unseen"]]
        cells = [f"{x:.1f}" for x in scores] + [f"{c['ssim']:.2f}"] + [f"{x:.1f}" for x in (*baselines, c["codec"])]
        rows.append([str(number), *cells])
    return table(columns, rows)


def unknown(report: dict) -> str:
    """The same for layouts the world has never seen, without an anchor."""
    rows = []
    for i, c in enumerate(report["unknown"], start=1):
        baselines = [c["baselines"][name]["psnr"] for name in ("rotation_homography", "plane_warp")]
        rows.append([str(i), *(f"{x:.1f}" for x in (c["psnr"], *baselines, c["codec"])), f"{c['ssim']:.2f}"])
    return table(["chunk", "all", "rotation homography", "fixed plane", "codec", "SSIM"], rows)


def scalars(report: dict) -> str:
    names = {
        "sign_agreement": "a moving command told from its opposite",
        "retrieval9": "own command nearest among nine renderings",
        "psnr": "PSNR of all chunks, dB",
        "swapped_camera_psnr": "the same, along another scene's path, dB",
        "sharpness": "sharpness over that of rendered frames",
    }
    return table(["measure", "value"], [[text, f"{report[name]:.2f}"] for name, text in names.items()])


def memory(report: dict) -> str:
    """PSNR beyond the attention window with parts of the memory taken away."""
    names = ("kept", "no recurrence", "no window", "neither")
    known, unknown = report["memory"], report["unknown_memory"]
    columns = ["PSNR from chunk 4 on, dB", "all memory", "recurrent state zeroed", "window emptied", "both"]
    rows = (("known places", known), ("unknown rooms", unknown))
    return table(columns, [[where, *(f"{values[name]:.2f}" for name in names)] for where, values in rows])


def poses(findings: dict) -> str:
    """Means, and medians in brackets."""
    rows = []
    for kind, text in CAMERAS.items():
        if (errors := findings["camera"].get(kind)) is None:
            continue
        cells = (f"{errors[k]:.2f} ({errors[k + '_median']:.2f})" for k in ("rot_err_deg", "trans_err", "cam_mc"))
        rows.append([text, *cells])
    return table(["camera recovered from", "RotErr, degrees", "TransErr, m", "CamMC"], rows)


def loops(findings: dict) -> str:
    rows = []
    for loop in findings["closure"]:
        rows.append([str(loop["chunks"]), f"{loop['psnr']:.1f}", f"{loop['ssim']:.2f}", f"{loop['codec_psnr']:.1f}"])
    return table(["chunks, out and back", "last frame to first, dB", "SSIM", "codec, dB"], rows)


def long_walk(findings: dict) -> str:
    columns = ["chunk", "PSNR", "brightness", "contrast", "gradient", "state norm", "camera state norm"]
    keys, rows = ("brightness", "contrast", "gradient", "kv_norm", "camera_kv_norm"), []
    for row in findings["drift"]:
        if row["chunk"] in (1, 2, 4, 8, 16, 24, 32, 40):
            rows.append([str(row["chunk"]), f"{row['psnr']:.1f}", *(f"{row[key]:.2f}" for key in keys)])
    return table(columns, rows)


def two_seeds(findings: dict) -> str:
    pair = findings["seeds"]
    rows = [
        ["two seeds against each other", f"{pair['visible']:.1f}", f"{pair['unseen']:.1f}"],
        ["either against rendered frames", f"{pair['truth_visible']:.1f}", f"{pair['truth_unseen']:.1f}"],
    ]
    return table(["PSNR, dB", "seen in the first frame", "unseen"], rows)


def step_lists(findings: dict) -> str:
    rows = [
        [str(len(s["timesteps"])), *(f"{s[k]:.2f}" for k in ("known", "unknown", "ssim", "sharpness", "seconds"))]
        for s in findings["steps"]
    ]
    return table(["denoising steps", "known, dB", "unknown, dB", "SSIM", "sharpness", "seconds per chunk"], rows)


def speed(benches: list[dict]) -> str:
    columns = ["threads", "batch", "ms per step", "network", "codec", "rest", "steps/s", "frames/s"]
    keys, rows = ("ms", "network_ms", "codec_ms", "rest_ms", "steps_per_s", "frames_per_s"), []
    for bench in benches:
        for batch, row in bench["batch"].items():
            rows.append([str(bench["threads"]), batch, *(f"{row[key]:.1f}" for key in keys)])
    return table(columns, rows)


def kernels(report: dict) -> str:
    columns = ["batch", "what", "reference, ms", f"{report['backend']}, ms", "faster", "floor, ms", "by", "over floor"]
    rows = []
    for batch, measured in report["batch"].items():
        for name, r in measured["rows"].items():
            times = (f"{r['reference_ms']:.2f}", f"{r['fast_ms']:.2f}", f"{r['ratio']:.2f}", f"{r['floor_ms']:.3f}")
            rows.append([batch, f"`{name}`", *times, r["floor"], f"{r['over_floor']:.2f}"])
    return table(columns, rows)


def rounding(report: dict) -> str:
    errors = report["error_after_frames"]
    rows = [[operands, *(f"{error:.1e}" for error in after.values())] for operands, after in errors.items()]
    return table(["operands", "3 frames", "30", "120"], rows)


def planning(report: dict) -> str:
    """Success in the truth of who plans in a predicted world, in the truth, or not at all."""
    places = {"known": "known places", "rooms:test": "unknown rooms"}
    rows = [
        [name, *(f"{percent([who[part] for part in ('value', 'low', 'high')])} of {who['episodes']}" for who in both)]
        for name, both in ((name, [by[name] for by in report["scenes"].values()]) for name in report["scenes"]["known"])
    ]
    return table(["ImageNav, acting in the truth", *(places[scenes] for scenes in report["scenes"])], rows)


def learning(task: str, numbers: dict) -> str:
    """A row per policy; columns are places and worlds. Means, and the seeds in brackets, in percent."""
    policies = numbers["policies"]
    columns = list(dict.fromkeys(name for row in policies.values() for name in row))

    def cell(found: dict) -> str:
        return f"{found['mean']:.0%} ({', '.join(f'{100 * rate:.0f}' for rate in found['seeds'])})"

    rows = [[policy, *(cell(row[name]) if name in row else "" for name in columns)] for policy, row in policies.items()]
    return table([f"{task} policy", *columns], rows)


def training_cost(tasks: dict) -> str:
    """Processor minutes of one training."""
    rows = []
    for task, numbers in tasks.items():
        minutes = (
            f"{sum(numbers['seconds'][world]) / len(numbers['seconds'][world]) / 60:.1f}" for world in ("nano", "rooms")
        )
        rows.append([task, f"{numbers['settings']['steps']:,}", *minutes])
    return table(["task", "steps", "minutes of a core, in nano", "in the truth"], rows)


def meters(report: dict) -> str:
    """What the drift of chunks and of walks says of the PSNR that is lost, beside other meters."""
    names = {
        "drift": "drift",
        "age": "chunks passed",
        "away": "metres from the start",
        "true_drift": "drift of the truth",
    }
    text, rows = "{r:.2f} ({low:.2f} to {high:.2f})", []
    for row in report["correlations"]:
        if row["error"] == "psnr_loss":
            cells = (text.format(**row[kind]) for kind in ("spearman", "pearson"))
            rows.append([f"{row['place']}, each {row['of']}", names[row["meter"]], *cells])
    return table(["places", "meter", "Spearman's r with the dB lost", "Pearson's r"], rows)


def forking(report: dict) -> str:
    rates = report["futures_per_second"]
    ways = list(next(iter(rates.values())))
    rows = [
        [n, *(f"{row[way]:.1f}" for way in ways), f"{row['forked'] / row['replayed']:.1f}"] for n, row in rates.items()
    ]
    return table(["futures", *ways, "forked over replayed"], rows)


def collecting(report: dict) -> str:
    rows = []
    for row in report["rows"]:
        rates = (f"{row[name]:.0f}" for name in ("bare_fps", "collect_fps"))
        rows.append([str(row["threads"]), str(row["batch"]), *rates, f"{row['ratio']:.0%}"])
    return table(["torch threads", "batch", "bare frames/s", "collected frames/s", "collected over bare"], rows)


def yields(report: dict, fps: int = 16) -> str:
    rows = []
    for row in report["rows"]:
        frames = row["collect_fps"] * 3600
        cells = (f"{frames / 1e6:.2f}", f"{frames / fps / 3600:.0f}", f"{frames * row['bytes_per_frame'] / 1e9:.2f}")
        rows.append([str(row["threads"]), str(row["batch"]), *cells])
    return table(["torch threads", "batch", "million frames an hour", "hours of video", "GB"], rows)


def serving(report: dict) -> str:
    rows = []
    for row in report["rows"]:
        times = (f"{row['ms'][part][q]:.0f}" for part in ("step", "waited", "transport") for q in ("p50", "p99"))
        rates = (f"{row['steps_per_second']:.2f}", f"{row['over_local']:.0%}", f"{row['episodes_in_batch']:.1f}")
        rows.append([str(row["clients"]), *rates, *times])
    times = [f"{part} {q}, ms" for part in ("step", "queueing", "transport") for q in ("p50", "p99")]
    return table(["clients", "steps/s", "over a local batch", "in a batch", *times], rows)


def killed(report: dict) -> str:
    columns = ["`--keep-every`", "steps before", "repeated", "MB of a state", "ms to write and send a kept step",
               "s to start a server", "s until the first reply"]  # fmt: skip
    rows = []
    for row in report["kept"]:
        counts = [str(row[name]) for name in ("every", "steps_before", "steps_again")]
        seconds = [f"{row[name]:.1f}" for name in ("start_seconds", "answer_seconds")]
        rows.append([*counts, f"{row['state_mb']:.1f}", f"{row['kept_step_transport_ms']:.0f}", *seconds])
    return table(columns, rows)


def operations(bench: dict) -> str:
    rows = [
        ["`env.step`", f"{bench['env_step_ms']:.0f} ms"],
        ["`snapshot`", f"{bench['snapshot_ms']:.3f} ms"],
        ["`restore`, observation included", f"{bench['restore_ms']:.3f} ms"],
        ["fork into eight", f"{bench['fork_ms']:.3f} ms"],
        ["a state", f"{bench['state_bytes'] / 1e6:.1f} MB"],
        ["the next state, on top of it", f"{bench['snapshot_added_bytes'] / 1e6:.1f} MB"],
    ]
    return table(["what", "cost"], rows)


def playing(report: dict) -> str:
    delay, seam = report["latency_ms"], report["seam_db"]
    rows = [
        ["from a key to the first frame that follows it, p50", f"{delay['p50']:.0f} ms"],
        ["the same, p95", f"{delay['p95']:.0f} ms"],
        [f"longest stall (a chunk lasts {report['chunk_ms']:.0f} ms)", f"{report['longest_stall_ms']:.0f} ms"],
        ["a chunk, imagined", f"{report['imagining_ms']:.0f} ms"],
        ["frames drawn per second", f"{report['frames_per_s']:.1f}"],
        [
            f"last frame before a change of keys, as shown and as kept ({seam['changes']} changes)",
            f"{seam['mean']:.1f} dB, least {seam['least']:.1f}",
        ],
        ["cores: player, browser", f"{report['cores']['player']:.2f}, {report['cores']['browser']:.2f}"],
    ]
    return table([f"a driven minute, {report['presses']} keys", "in the browser"], rows)


def full_size(report: dict) -> str:
    """Stages, memory and the state at the official size."""
    state = report["state"]
    rows = [[name, f"{s['seconds']:.1f} s", gigabytes(s["most_bytes"])] for name, s in report["stages"].items()]
    predicted = f"{gigabytes(report['predicted']['peak'])} predicted ({report['measured_over_predicted']:.2f})"
    rows += [
        [f"at most, of {predicted}", "", gigabytes(report["measured_peak"])],
        ["`snapshot`", f"{1e3 * state['snapshot_seconds']:.2f} ms", gigabytes(state["bytes"])],
        [
            "fork it into eight",
            f"{1e3 * state['fork_seconds']:.2f} ms",
            gigabytes(state["bytes_of_8_forks"]) + " in all",
        ],
        ["`restore`", f"{1e3 * state['restore_seconds']:.1f} ms", ""],
        ["save a state", f"{state['save_seconds']:.1f} s", gigabytes(state["file_bytes"]) + " on disk"],
        ["load it", f"{state['load_seconds']:.1f} s", ""],
    ]
    where = f"{report['width']} x {report['height']}, {report['machine']}, {report['threads']} threads"
    return table([where, "time", "memory"], rows)


def ranked(passing: dict, stopping: dict) -> str:
    """Success of each policy, in percent with its interval; the predicted world is the same beside both truths."""
    rows = [
        [row["policy"], row["acts_on"], *map(percent, (row["predicted"], row["truth"], other["truth"]))]
        for row, other in zip(passing["rows"], stopping["rows"], strict=True)
    ]
    title, episodes = passing["title"].rsplit(", ", 1)[0], passing["episodes"]
    return table([f"{title}, {episodes} episodes", "acts on", "predicted", "truth", "truth, walls stop"], rows)


def agreements(found: dict[str, dict]) -> str:
    """How far prediction and truth agree on policies, with intervals."""
    rows = []
    for title, comparison in found.items():
        every, seeing = comparison["all policies"], comparison["those that act on images"]
        cells = [between(each[name]) for each in (every, seeing) for name in ("r", "violation")]
        rows.append([title, *cells, between(seeing["gap"], sign="+")])
    columns = ["predicted and true", "r, all policies", "violation", "r, acting on images", "violation", "gap"]
    return table(columns, rows)


def percent(estimate: Sequence[float]) -> str:
    value, low, high = (f"{number:.0%}" for number in estimate)
    return f"{value} ({low} to {high})"


def between(estimate: Sequence[float | None], sign: str = "") -> str:
    """A number and its interval, as far as there are any."""
    told = ["none" if number is None else f"{number:{sign}.2f}" for number in estimate]
    return f"{told[0]} ({told[1]} to {told[2]})" if None not in estimate else told[0]


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def fidelity(report: dict) -> str:
    """PSNR of every chunk against the rollout in bfloat16."""
    others = {name: row["psnr_against_bf16"] for name, row in report["precisions"].items() if name != "bf16"}
    chunks = zip(*others.values(), strict=True)
    return table(["chunk", *others], [[str(i), *(f"{x:.1f}" for x in row)] for i, row in enumerate(chunks, start=1)])


def following(report: dict) -> str:
    columns = ["weights", "bytes per value", "dB of the truth", "told from its opposite", "nearest of nine"]
    rows = []
    for name, row in report["precisions"].items():
        stored = row["bytes_per_value"] or {"float32": 4, "bf16": 2}[name]
        scores = (row["psnr_against_truth"], row["sign_agreement"], row["retrieval9"])
        rows.append([name, f"{stored:.2f}", *(f"{x:.2f}" for x in scores)])
    return table(columns, rows)


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def precision_tables() -> list[str]:
    report = read("nano_precision")
    return [fidelity(report), following(report)]


def nano_tables() -> list[str]:
    held, report, findings = read("nano_bars"), read("nano_evaluate"), read("nano_study")
    tables = [part(held) for part in (bars, sizes, recovered, futures)]
    tables += [part(report) for part in (quality, unknown, scalars, memory)]
    return tables + [part(findings) for part in (poses, loops, long_walk, two_seeds, step_lists)]


def benchmarks_tables() -> list[str]:
    benches = [read("nano_bench_1_threads"), read("nano_bench_2_threads")]
    tables = [speed(benches), operations(benches[0]), collecting(read("collect_speed"))]
    return [*tables, playing(read("play_latency")), forking(read("fork_cost"))]


def kernels_tables() -> list[str]:
    return [rounding(read("kernels_rounding")), kernels(read("kernels"))]


def official_tables() -> list[str]:
    return [full_size(read("full_size"))]


def collect_tables() -> list[str]:
    return [yields(read("collect_speed"))]


def learn_tables() -> list[str]:
    tasks, names = read("learn")["tasks"], {"pointnav": "PointNav", "imagenav": "ImageNav"}
    success = [learning(names[task], numbers) for task, numbers in tasks.items()]
    return [*success, training_cost(tasks), meters(read("drift_meter"))]


def comparisons() -> dict[str, dict]:
    """Those of compare.json by their titles."""
    return {comparison["title"]: comparison for comparison in read("compare")["comparisons"]}


def compare_tables() -> list[str]:
    found = comparisons()
    pairs = list(zip(list(found.values())[::2], list(found.values())[1::2], strict=True))
    return [agreements(found), *(ranked(*pair) for pair in pairs), planning(read("compare_planning"))]


def proof(compared: dict[str, dict], planned: dict[str, dict], learnt: dict) -> str:
    """What holds in the truth, where nano knows the rooms least and the truth has walls."""
    rows = []
    for task, title in (("ImageNav", "image-nav"), ("PointNav", "point-nav")):
        both = compared[f"{title}, unknown rooms, walls stop"]
        for name, which in (("all policies", ""), ("those that act on images", " that act on images")):
            count, r = both[name]["policies"], between(both[name]["r"])
            rows.append([f"ranking {count} {task} policies{which} in nano: r", r])
    for name, found in planned.items():
        estimate = percent([found[part] for part in ("value", "low", "high")])
        rows.append([f"finding a goal image: {name}", f"{estimate} of {found['episodes']}"])
    for name in ("PPO, learned in nano", "PPO, learned in rooms"):
        found = learnt["tasks"]["imagenav"]["policies"][name]["rooms:test, truth, walls"]
        episodes = learnt["episodes_per_seed"] * len(found["seeds"])
        rows.append([f"finding a goal image: {name}", f"{found['mean']:.0%} of {episodes}"])
    return table(["in the truth, in rooms that nobody trained on", "measured"], rows)


def readme_tables() -> list[str]:
    return [proof(comparisons(), read("compare_planning")["scenes"]["rooms:test"], read("learn"))]


def footage(report: dict, plain: dict) -> str:
    """One row per chunk of clips that were held out; what follows the worlds knows the first frame alone. plain: of a
    world without a depth network."""
    names, rows = ("hold", "rotation_homography", "plane_warp", "codec"), []
    both = zip(report["validation"]["chunks"], plain["validation"]["chunks"], strict=True)
    for number, (c, other) in enumerate(both, start=1):
        scores = [f"{x:.1f}" for x in (c["psnr"], other["psnr"], *(c[name] for name in names))]
        rows.append([str(number), *scores, f"{c['ssim']:.2f}", f"{c['sharpness']:.2f}", f"{other['sharpness']:.2f}"])
    columns = ["chunk", "predicted", "without depth", "hold", "rotation homography", "fixed plane", "codec"]
    return table([*columns, "SSIM", "sharpness", "without depth"], rows)


def trained_on(report: dict) -> str:
    """What the training took."""
    recipe, found = report["recipe"], report["validation"]
    rows = [
        ["steps", str(recipe["train"]["steps"])],
        ["machine", f"{report['machine']}, {report['processes']} process of one thread"],
        ["minutes", f"{report['training_seconds'] / 60:.0f}"],
        ["image size", f"{recipe['clips']['width']} x {recipe['clips']['height']}"],
        ["held-out clips", str(found["clips"])],
        ["PSNR over all chunks, dB", f"{found['psnr']:.2f}"],
        ["the same, along another clip's path, dB", f"{found['swapped_camera_psnr']:.2f}"],
    ]
    return table(["training", "value"], rows)


def own_footage_tables() -> list[str]:
    report = read("own_footage")
    return [trained_on(report), footage(report, read("own_footage_plain"))]


def serve_tables() -> list[str]:
    report = read("serve_load")
    return [serving(report), killed(report)]


def exports(report: dict) -> str:
    rows = [
        [row["clip"], f"{row['placed']} of {row['pictures']}", str(row["points"]), f"{row['metres']:.2f}",
         *(f"{row[name]:.3f}" if name in row else "-" for name in ("rot_err_deg", "trans_err"))]
        for row in report["exports"]
    ]  # fmt: skip
    columns = ["clip of the true rooms", "images placed", "points", "path, m", "RotErr, degrees", "TransErr, m"]
    return table(columns, rows)


def scored(report: dict) -> str:
    def told(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = []
    for estimator, splits in report["scores"].items():
        for split, means in splits.items():
            for who, label in (("clip", "nano"), ("rendered", "rendered"), ("still", "standing still")):
                of = means[who]
                found = "" if who == "still" else f"{of['followed']} of {of['of']}"
                errors = [
                    told(of[name], digits) for name, digits in (("rot_err_deg", 2), ("trans_err", 3), ("cam_mc", 3))
                ]
                rows.append([estimator, split, label, found, *errors])
    columns = ["estimator", "place", "images of", "camera found in", "RotErr, degrees", "TransErr, m", "CamMC"]
    return table(columns, rows)


def score_tables() -> list[str]:
    report = read("score")
    return [exports(report), scored(report)]


PAGES = {
    "benchmarks": benchmarks_tables,
    "kernels": kernels_tables,
    "learn": learn_tables,
    "nano": nano_tables,
    "precision": precision_tables,
    "collect": collect_tables,
    "official": official_tables,
    "serve": serve_tables,
    "own_footage": own_footage_tables,
    "compare": compare_tables,
    "score": score_tables,
    "../README": readme_tables,
}


def fill(path: Path, tables: list[str]) -> None:
    """Replace the tables of a page that have the same columns."""
    text = path.read_text()
    for made in tables:
        columns = made.split("\n", 1)[0]
        if text.count(columns + "\n") != 1:
            raise ValueError(f"{path} must have one table with the columns {columns}")
        before, after = text.split(columns + "\n")
        rest = after.splitlines(keepends=True)
        rows = next((i for i, line in enumerate(rest) if not line.startswith("|")), len(rest))
        text = before + made + "\n" + "".join(rest[rows:])
    path.write_text(text)


def main() -> None:
    parser(__doc__, quick=False, json=False).parse_args()
    for name, made in PAGES.items():
        fill(DOCS / f"{name}.md", made())


if __name__ == "__main__":
    main()
