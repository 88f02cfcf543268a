"""Fetching official weights: from a hub on this machine through huggingface_hub's own client, or from a folder. Strict,
safe, recorded, within memory and disk, and one sentence where it cannot go on."""

import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sanawm_env.cli import main
from sanawm_env.engines.sanawm import fetch as weights_module
from sanawm_env.engines.sanawm.checkpoint import UNUSED, check_entries, network_config, open_checkpoint
from sanawm_env.engines.sanawm.fetch import fetch
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.official import NETWORK_GB, OFFICIAL, PINS
from sanawm_env.system.saving import only_writer
from sanawm_env.world.engine import read_config
from sanawm_env.world.folders import read_manifest, world_folder
from tests.golden_files import SHIPPED
from tests.standin_hub import NETWORK, OWNER, network_weights, serving, training_checkpoint, write_hub

SIZE = {"height": 64, "width": 96}
MODEL = f"{OWNER}/SANA-WM_streaming/sana_dit/model.pt"
GENERATOR_BYTES = 2 * sum(t.numel() for t in network_weights().values())


def network_bytes(config):
    """Of a network in bfloat16."""
    with torch.device("meta"):
        return 2 * sum(t.numel() for name, t in SanaWM(config).state_dict().items() if name != UNUSED)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAWM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def server(hub, tmp_path):
    with serving(hub, tmp_path / "cache") as server:
        yield server


def own_weights():
    weights = network_weights()
    weights.pop("pos_embed")
    return weights


def shapes(weights):
    return {name: tuple(t.shape) for name, t in weights.items()}


# --- a world from the hub ---


@pytest.mark.slow
def test_a_fetched_world_is_whole(server, home):
    folder = fetch("streaming", ("dit", "codec", "text"), **SIZE)
    assert folder == home / "worlds" / "streaming" == world_folder("streaming")
    config = read_config(folder / "config.json")
    assert (config.network.hidden_size, config.codec, config.dtype) == (NETWORK.hidden_size, "ltx2", "bfloat16")
    assert config.sampler.timesteps == (1000, 960, 889, 727)
    weights, official = load_file(folder / "network.safetensors"), own_weights()
    assert weights.keys() == official.keys()
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weights[name], official[name].bfloat16()) for name in weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["parts"]) == {"dit", "codec", "text"}
    assert manifest["parts"]["dit"] == {
        "repository": f"{OWNER}/SANA-WM_streaming",
        "revision": PINS["SANA-WM_streaming"],
    }
    assert len(manifest["sha256"]) == 64
    assert (folder / "codec" / "config.json").is_file() and (folder / "text" / "config.json").is_file()


def test_only_the_files_of_a_part_are_downloaded_and_nothing_twice(server):
    fetch("streaming", ("dit", "text"), **SIZE)
    sent = [name for name, _, _ in server.sent]
    assert sent[0] == "sana_dit/model.pt"
    assert "model.safetensors" in sent and "gemma-2-2b-it.safetensors" not in sent  # the same weights once more
    assert not [name for name in sent if name.startswith(("ltx2", "refiner", "gemma3"))]
    server.sent.clear()
    fetch("streaming", ("dit", "text"), **SIZE)
    assert server.sent == []
    fetch("streaming", ("dit", "text"), height=96, width=96)  # another picture is no other network
    assert server.sent == []
    assert read_config(world_folder("streaming") / "config.json").height == 96


def test_what_is_here_at_its_pin_needs_no_hub(server):
    fetch("streaming", ("dit", "codec"), **SIZE)
    server.shutdown()
    server.server_close()
    assert fetch("streaming", ("dit", "codec"), **SIZE) == world_folder("streaming")


def test_the_checkpoint_is_given_back_unless_it_is_to_be_kept(server, home):
    fetch("streaming", ("dit", "codec"), **SIZE)
    assert not list((home / "hub").rglob("model.pt")) and list((home / "hub").rglob("ltx2_causal_vae/*.safetensors"))
    fetch("streaming", ("dit",), revision="b" * 40, keep_source=True, **SIZE)
    (source,) = (home / "hub").rglob("model.pt")
    assert source.stat().st_size == (server.folder / MODEL).stat().st_size


@pytest.mark.slow
def test_what_others_have_in_the_hubs_cache_is_used_and_stays(server, home):
    from huggingface_hub import snapshot_download

    pin = PINS["SANA-WM_streaming"]
    theirs = snapshot_download(f"{OWNER}/SANA-WM_streaming", revision=pin, allow_patterns=["sana_dit/*"])
    server.sent.clear()
    fetch("streaming", ("dit",), **SIZE)
    assert server.sent == []
    assert (Path(theirs) / "sana_dit" / "model.pt").is_file()
    server.shutdown()
    server.server_close()
    shutil.rmtree(home / "worlds")
    assert (fetch("streaming", ("dit",), **SIZE) / "network.safetensors").is_file()  # offline


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    size = (server.folder / MODEL).stat().st_size
    server.left = size // 2
    with pytest.raises(OSError, match="go on where it stopped with: sanawm fetch streaming --parts dit"):
        fetch("streaming", ("dit",), **SIZE)
    with pytest.raises(ValueError, match="sanawm fetch streaming"):
        world_folder("streaming")
    server.left = None
    server.sent.clear()
    fetch("streaming", ("dit",), **SIZE)
    ((name, first, sent),) = server.sent
    assert name == "sana_dit/model.pt" and size // 4 < first <= size // 2 and first + sent == size
    assert world_folder("streaming").is_dir()


def test_a_file_that_did_not_arrive_as_it_is_on_the_hub_is_no_world(server, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tests.standin_hub._sha256", lambda path: 64 * "0")
        with pytest.raises(OSError, match="did not arrive as it is on the hub"):
            fetch("streaming", ("dit",), **SIZE)
    assert not list((home / "hub").rglob("model.pt*"))
    fetch("streaming", ("dit",), **SIZE)


def test_a_stop_by_hand_keeps_what_was_downloaded(server, home, monkeypatch):
    from huggingface_hub import file_download

    def stopped(url, file, **_):
        file.write(b"x" * 1000)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", stopped)
        with pytest.raises(KeyboardInterrupt):
            fetch("streaming", ("dit",), **SIZE)
    (part,) = (home / "hub").rglob("model.pt.incomplete")
    assert part.stat().st_size == 1000


@pytest.mark.slow
def test_parts_are_fetched_once_and_the_network_first(server):
    fetch("streaming", ("text", "dit", "text", "dit"), **SIZE)
    sent = [name for name, _, _ in server.sent]
    assert sent[0] == "sana_dit/model.pt" and len(sent) == len(set(sent))


def test_two_fetches_of_one_world_do_not_meet(server, home):
    folder = home / "worlds" / "streaming"
    folder.mkdir(parents=True)
    with only_writer(folder), pytest.raises(BlockingIOError, match="another process"):
        fetch("streaming", ("dit",), **SIZE)
    assert server.sent == []


@pytest.mark.slow
def test_worlds_share_what_they_have_in_common(server):
    fetch("streaming", ("dit", "text"), **SIZE)
    server.sent.clear()
    folder = fetch("chunk-causal", ("dit", "codec", "text"), **SIZE)
    sent = [name for name, _, _ in server.sent]
    assert sent[0].endswith("sana_wm_chunk_causal_1600m_720p.safetensors")
    assert [name for name in sent[1:] if not name.startswith("vae/")] == []
    parts = read_manifest(folder)["parts"]
    assert parts["codec"]["revision"] == PINS["SANA-WM_bidirectional"]
    assert read_config(folder / "config.json").codec == "ltx2_bidirectional"


def test_a_branch_that_has_moved_brings_the_new_weights(server):
    folder = fetch("streaming", ("dit",), revision="main", **SIZE)
    assert read_manifest(folder)["parts"]["dit"]["revision"] == server.main
    server.sent.clear()
    fetch("streaming", ("dit",), revision="main", **SIZE)
    assert server.sent == []
    server.main = "c" * 40
    fetch("streaming", ("dit",), revision="main", **SIZE)
    assert read_manifest(folder)["parts"]["dit"]["revision"] == "c" * 40
    assert [name for name, _, _ in server.sent] == ["sana_dit/model.pt"]


def test_a_pin_that_is_gone_is_a_sentence(server):
    server.gone.add(PINS["SANA-WM_streaming"])
    with pytest.raises(ValueError, match=r"no revision c7694938.*--revision"):
        fetch("streaming", ("dit",), **SIZE)
    assert fetch("streaming", ("dit",), revision="main", **SIZE) == world_folder("streaming")


def test_parts_that_are_added_come_from_the_networks_revision(server):
    folder = fetch("streaming", ("dit",), revision="b" * 40, **SIZE)
    assert not (folder / "refiner").exists()
    fetch("streaming", ("codec", "text"))
    parts = read_manifest(folder)["parts"]
    assert parts["codec"]["revision"] == "b" * 40
    assert parts["text"]["revision"] == PINS["gemma-2-2b-it"]


def test_a_repository_that_lacks_the_file_is_a_sentence_before_anything_is_downloaded(tmp_path):
    (tmp_path / "hub" / OWNER / "SANA-WM_streaming").mkdir(parents=True)
    (tmp_path / "hub" / OWNER / "SANA-WM_streaming" / "README.md").write_text("moved")
    with serving(tmp_path / "hub", tmp_path / "cache") as server:
        with pytest.raises(FileNotFoundError, match=r"no sana_dit/model\.pt.*layout has changed"):
            fetch("streaming", ("dit",), **SIZE)
        with pytest.raises(ValueError, match="not on the hub"):
            fetch("chunk-causal", ("dit",), **SIZE)
        assert server.sent == []


def test_an_unreachable_hub_gives_the_command_that_goes_on(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="sanawm fetch streaming --parts dit"):
        fetch("streaming", ("dit",))


# --- the disk ---


def space(monkeypatch, free):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 0, free))
    monkeypatch.setattr(weights_module, "SPARE", 0)


def test_the_disk_is_checked_before_the_download_for_all_that_is_to_come(server, monkeypatch):
    size = (server.folder / MODEL).stat().st_size
    codec = server.folder / OWNER / "SANA-WM_streaming" / "ltx2_causal_vae"
    codec = sum(path.stat().st_size for path in codec.iterdir())
    assert size > 5 * GENERATOR_BYTES
    # the checkpoint and its conversion are there together, or the conversion and the codec, for which it has made room
    needed = max(size + min(size, NETWORK_GB * 1e9), min(size, NETWORK_GB * 1e9) + codec)
    space(monkeypatch, int(needed))
    with pytest.raises(OSError, match="GB free") as told:
        fetch("streaming", ("dit", "codec"), **SIZE)
    assert told.value.errno == errno.ENOSPC and "to download" in str(told.value) and "stay" in str(told.value)
    assert server.sent == []
    space(monkeypatch, int(needed * 1.02))
    fetch("streaming", ("dit", "codec"), **SIZE)


def test_a_kept_checkpoint_counts_among_what_stays():
    dit, codec = (weights_module.PartPlan(part, OFFICIAL["streaming"][part], {}, "") for part in ("dit", "codec"))
    dit, codec = replace(dit, download=32, converted=5), replace(codec, download=4)
    assert weights_module.disk_need([dit, codec]) == (41, 41)
    assert weights_module.disk_need([replace(dit, given_back=True), codec]) == (37, 9)
    assert weights_module.disk_need([replace(dit, here=True), codec]) == (4, 4)


def test_what_an_interrupted_download_has_already_is_not_asked_for_again(server, monkeypatch):
    size = (server.folder / MODEL).stat().st_size
    server.left = size * 3 // 4
    with pytest.raises(OSError):
        fetch("streaming", ("dit",), **SIZE)
    server.left = None
    space(monkeypatch, int((size // 3 + min(size, NETWORK_GB * 1e9)) * 1.02))
    fetch("streaming", ("dit",), **SIZE)


def test_a_disk_that_fills_up_in_the_middle_of_a_download_is_a_sentence(server, monkeypatch):
    from huggingface_hub import file_download

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_download, "http_get", full)
        with pytest.raises(OSError, match=r"disk is full.*make room and go on.*sanawm fetch streaming") as told:
            fetch("streaming", ("dit",), **SIZE)
        assert told.value.errno == errno.ENOSPC
    fetch("streaming", ("dit",), **SIZE)


def test_a_disk_that_fills_up_in_the_middle_of_the_conversion_leaves_the_world_before(server, home):
    folder = fetch("streaming", ("dit",), **SIZE)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (GENERATOR_BYTES // 2, limits[1]))
        with pytest.raises(OSError, match=r"cannot write .*network\.safetensors.*kept.*go on with: sanawm fetch"):
            fetch("streaming", ("dit",), source=server.folder, **SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# --- the checkpoint ---


PROBE = """
import resource, sys, threading
from pathlib import Path
from sanawm_env.engines.sanawm.checkpoint import open_checkpoint, write_network
from sanawm_env.engines.sanawm.fetch import network_size
import torch
torch.zeros(8).bfloat16()

def most():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])

with open_checkpoint(Path(sys.argv[1])) as warm, open(sys.argv[2], "wb") as file:
    write_network(warm, network_size(warm), file)
before = most()
with open_checkpoint(Path(sys.argv[3])) as checkpoint, open(sys.argv[2], "wb") as file:
    write_network(checkpoint, network_size(checkpoint), file)
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory of a process is read from /proc")
def test_a_training_checkpoint_is_converted_in_less_memory_than_its_generator_takes(tmp_path):
    """What a process takes at most, pages of the mapped file among it. The file is some ten times its generator."""
    config = SanaWMConfig(**{**asdict(NETWORK), "hidden_size": 512, "head_dim": 64, "num_heads": 8})
    with torch.device("meta"):
        outline = SanaWM(config).state_dict()
    weights = {name: torch.zeros(t.shape) for name, t in outline.items()}
    torch.save(training_checkpoint(network_weights()), tmp_path / "small.pt")
    torch.save(training_checkpoint(weights), tmp_path / "model.pt")
    generator = network_bytes(config)
    assert (tmp_path / "model.pt").stat().st_size > 9 * generator > 300e6
    files = [str(tmp_path / name) for name in ("small.pt", "out.safetensors", "model.pt")]
    taken = subprocess.run([sys.executable, "-c", PROBE, *files], capture_output=True, text=True, check=True)
    # the generator's pages, one tensor and the names: a quarter of it is left for those
    assert int(taken.stdout) < 1.25 * generator
    assert (tmp_path / "out.safetensors").stat().st_size > generator


def test_the_official_sizes_are_read_from_the_shapes():
    official = json.loads((SHIPPED / "dit_state_dict.json").read_text())
    assert len(official) == 872
    found = {name: tuple(entry["shape"]) for name, entry in official.items() if name != "pos_embed"}
    assert network_config(found) == SanaWMConfig()
    assert check_entries(found, SanaWMConfig()).keys() == found.keys()
    assert network_bytes(SanaWMConfig()) == pytest.approx(NETWORK_GB * 1e9, rel=0.01)


def test_missing_unexpected_and_misshapen_entries_are_listed():
    found = shapes(own_weights())
    found["blocks.3.extra"] = (1,)
    found["final_layer.linear.bias"] = (9,)
    del found["t_block.1.weight"]
    with pytest.raises(ValueError) as told:
        check_entries(found, NETWORK)
    message = str(told.value)
    assert "1 missing: t_block.1.weight" in message
    assert "1 unexpected: blocks.3.extra" in message
    assert "1 of another shape: final_layer.linear.bias" in message
    with pytest.raises(ValueError) as told:
        check_entries({}, NETWORK)
    assert "more" in str(told.value) and len(str(told.value)) < 500


def test_inert_entries_may_lack(tmp_path):
    weights = own_weights()
    kept = {n: t for n, t in weights.items() if "recall_gate" not in n and not n.startswith("raymap_embedder")}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "own.safetensors")
    folder = fetch("streaming", ("dit",), dit=tmp_path / "own.safetensors", **SIZE)
    converted = load_file(folder / "network.safetensors")
    assert converted.keys() == weights.keys()
    assert not any(t.any() for name, t in converted.items() if name not in kept)


class Malicious:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"generator": Malicious()}, tmp_path / "model.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("model.pt", "old.pt"):
        with pytest.raises(ValueError, match="more than tensors"), open_checkpoint(tmp_path / name):
            pass
    assert "run" not in capsys.readouterr().out


def test_a_truncated_download_is_refused_and_leaves_no_world(hub, tmp_path, home):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    model = copy / MODEL
    model.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        fetch("streaming", ("dit",), source=copy, **SIZE)
    with pytest.raises(ValueError, match="sanawm fetch streaming"):
        world_folder("streaming")


# --- somebody's own file ---


def plain(prefix):
    return lambda w: {prefix + name: t for name, t in w.items()}


FORMS = {
    "as the network names it": plain(""),
    "model.": plain("model."),
    "generator.": plain("generator."),
    "generator.model.": plain("generator.model."),
    "model.diffusion_model.": plain("model.diffusion_model."),
    "with the critic": lambda w: plain("generator.")(w) | plain("critic.")({n: t + 1 for n, t in w.items()}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_conversion_of_somebody_is_taken(tmp_path, form, dtype, suffix):
    weights = own_weights()
    content, file = FORMS[form]({name: t.to(dtype) for name, t in weights.items()}), tmp_path / f"own.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": content} if "model" in form else content, file)
    else:
        save_file(content, file)
    folder = fetch("streaming", ("dit",), dit=file, **SIZE)
    converted = load_file(folder / "network.safetensors")
    assert all(torch.equal(converted[name], weights[name].bfloat16()) for name in weights)
    assert read_manifest(folder)["parts"]["dit"]["file"] == str(file)


@pytest.mark.slow
def test_a_file_that_does_not_fit_is_one_sentence_before_anything_is_downloaded(server, tmp_path, capsys):
    weights = own_weights()
    del weights["t_block.1.weight"]
    bad = {
        "lacks.safetensors": (weights, "missing: t_block.1.weight"),
        "more.safetensors": (own_weights() | {"blocks.0.lora": torch.zeros(2)}, "unexpected: blocks.0.lora"),
        "other.safetensors": ({"unet.conv.weight": torch.zeros(2)}, "no SANA-WM network.*unet.conv.weight"),
        "fp8.safetensors": (
            {name: t.to(torch.float8_e4m3fn) for name, t in own_weights().items()},
            "F8_E4M3.*convert it",
        ),
        "two.safetensors": (plain("a.")(own_weights()) | plain("b.")(own_weights()), r"several networks \(a\., b\.\)"),
    }
    for name, (content, told) in bad.items():
        save_file(content, tmp_path / name)
        with pytest.raises(ValueError, match=told):
            fetch("streaming", ("dit", "codec"), dit=tmp_path / name, **SIZE)
    with pytest.raises(FileNotFoundError):
        fetch("streaming", ("dit",), dit=tmp_path / "nowhere.safetensors", **SIZE)
    with pytest.raises(ValueError, match="dit among the parts"):
        fetch("streaming", ("codec",), dit=tmp_path / "more.safetensors", **SIZE)
    assert server.sent == []
    with pytest.raises(SystemExit) as stopped:
        main(["fetch", "streaming", "--dit", str(tmp_path / "lacks.safetensors"), "--yes"])
    assert stopped.value.code == 2 and "missing: t_block.1.weight" in capsys.readouterr().err


def test_files_of_strangers_are_a_sentence_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.safetensors").mkdir()
    far = own_weights() | {"blocks.999999999.attn.conv_k.weight": torch.zeros(1)}
    gap = {name: t for name, t in own_weights().items() if not name.startswith("blocks.1.")}
    long = {"x" * 10**5: torch.zeros(1)}
    for name, content in (("far", far), ("gap", gap), ("long", long), ("empty", {})):
        save_file(content, tmp_path / f"{name}.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"generator": {"model": own_weights()}, "step": 3}, tmp_path / "nested.pt")
    (tmp_path / "text.pt").write_text("hello")
    told = {
        "pipe.pt": "a pipe",
        "folder.safetensors": "a folder",
        "far.safetensors": "blocks.4 is missing",
        "gap.safetensors": "blocks.1 is missing",
        "long.safetensors": "no SANA-WM network",
        "list.pt": "no tensors",
        "empty.safetensors": "no tensors",
        "text.pt": "damaged",
    }
    for name, words in told.items():
        with pytest.raises(ValueError, match=words) as raised:
            fetch("streaming", ("dit",), dit=tmp_path / name, **SIZE)
        assert len(str(raised.value)) < 600
    fetch("streaming", ("dit",), dit=tmp_path / "nested.pt", **SIZE)


@pytest.mark.parametrize("manifest", ["{", "[]", '{"parts": []}', '{"parts": {"dit": 3}}', '{"parts": {"dit": {}}}'])
def test_a_manifest_that_is_none_counts_for_nothing(hub, home, manifest):
    folder = fetch("streaming", ("dit",), source=hub, **SIZE)
    (folder / "manifest.json").write_text(manifest)
    assert all(isinstance(part, dict) for part in read_manifest(folder).get("parts", {}).values())
    fetch("streaming", ("dit",), source=hub, **SIZE)
    assert read_manifest(folder)["parts"]["dit"]["repository"] == f"{OWNER}/SANA-WM_streaming"


def test_a_file_of_the_official_width_must_be_the_whole_official_network():
    official = json.loads((SHIPPED / "dit_state_dict.json").read_text())
    found = {name: tuple(entry["shape"]) for name, entry in official.items() if name != "pos_embed"}
    fewer = {name: shape for name, shape in found.items() if not name.startswith("blocks.19.")}
    with pytest.raises(ValueError, match=r"missing: blocks\.19\."):
        weights_module.network_size(weights_module.Checkpoint(Path("file"), fewer, None))


# --- the command, and a folder in place of the hub ---


def test_parts_can_be_fetched_later_from_a_folder(hub):
    folder = fetch("streaming", ("dit",), source=hub, **SIZE)
    fetch("streaming", ("refiner",), source=hub)
    assert (folder / "refiner" / "transformer" / "config.json").is_file()
    assert set(read_manifest(folder)["parts"]) == {"dit", "refiner"}
    assert (hub / MODEL).is_file()


def test_a_part_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sana_dit/model\.pt"):
        fetch("streaming", ("dit",), source=tmp_path)


def test_bad_arguments_are_a_sentence(hub):
    with pytest.raises(ValueError, match="chunk-causal"):
        fetch("stream", source=hub)
    with pytest.raises(ValueError, match="refiner"):
        fetch("streaming", ("vae",), source=hub)
    with pytest.raises(ValueError, match="multiples of 32"):
        fetch("streaming", ("dit",), source=hub, height=100)


def test_the_command_shows_sizes_terms_sources_and_asks_for_consent(hub, home, capsys):
    common = ["fetch", "streaming", "--source", str(hub), "--parts", "dit,codec", "--height", "64", "--width", "96"]
    with pytest.raises(SystemExit):
        main(common)
    shown = capsys.readouterr()
    for part in ("dit", "codec"):
        for notice in OFFICIAL["streaming"][part].notices:
            assert notice.terms in shown.out and notice.source in shown.out and notice.date in shown.out
    assert PINS["SANA-WM_streaming"] in shown.out
    assert "To download: 36.9 GB; converted weights: 5.3 GB; kept: 10.2 GB (32.0 GB are deleted" in shown.out
    assert "--yes" in shown.err
    assert not (home / "worlds").exists()
    main([*common, "--yes", "--keep-source"])
    shown = capsys.readouterr().out
    assert "kept: 42.2 GB." in shown and "encode-prompts" in shown
    assert world_folder("streaming").is_dir()


def test_every_part_says_its_terms_and_where_they_are_known_from():
    for parts in OFFICIAL.values():
        for part in parts.values():
            assert part.notices and all(n.terms and n.source and n.date for n in part.notices)
    assert all(len(pin) == 40 for pin in PINS.values())
    assert sum(part.gigabytes for part in OFFICIAL["streaming"].values()) == pytest.approx(107, abs=1)
