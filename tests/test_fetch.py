"""Fetching official weights from a hub folder: strict, safe, recorded, and one sentence where it cannot go on."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sanawm_env.cli import main
from sanawm_env.network.config import SanaWMConfig
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.weights import fetch, network_config, read_official_dit, strict_weights, world_folder
from tests.golden_files import SHIPPED
from tests.standin_hub import NETWORK, OWNER, network_weights, write_hub

SIZE = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SANAWM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_fetched_world_is_whole(hub, home):
    folder = fetch("streaming", ("dit", "codec", "text"), source=hub, **SIZE)
    assert folder == home / "worlds" / "streaming" == world_folder("streaming")
    config = WorldConfig.load(folder / "config.json")
    assert (config.network.hidden_size, config.codec, config.dtype) == (NETWORK.hidden_size, "ltx2", "bfloat16")
    assert config.sampler.timesteps == (1000, 960, 889, 727)
    weights, official = load_file(folder / "network.safetensors"), network_weights()
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weights[name], official[name].bfloat16()) for name in weights)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["parts"]) == {"dit", "codec", "text"}
    assert manifest["parts"]["dit"]["repository"] == f"{OWNER}/SANA-WM_streaming"
    assert len(manifest["sha256"]) == 64
    assert (folder / "codec" / "config.json").is_file() and (folder / "text" / "config.json").is_file()


def test_parts_can_be_fetched_later(hub):
    folder = fetch("streaming", ("dit",), source=hub, **SIZE)
    assert not (folder / "refiner").exists()
    fetch("streaming", ("refiner",), source=hub)
    assert (folder / "refiner" / "transformer" / "config.json").is_file()
    assert set(json.loads((folder / "manifest.json").read_text())["parts"]) == {"dit", "refiner"}


def test_the_official_sizes_are_read_from_the_shapes():
    shapes = json.loads((SHIPPED / "dit_state_dict.json").read_text())
    weights = {name: torch.empty(entry["shape"], device="meta") for name, entry in shapes.items()}
    assert network_config(weights) == SanaWMConfig()


def test_missing_unexpected_and_misshapen_entries_are_listed():
    weights = network_weights()
    weights.pop("pos_embed")
    weights["blocks.9.extra"] = torch.zeros(1)
    weights["final_layer.linear.bias"] = torch.zeros(9)
    del weights["t_block.1.weight"]
    with pytest.raises(ValueError) as told:
        strict_weights(weights, NETWORK)
    message = str(told.value)
    assert "1 missing: t_block.1.weight" in message
    assert "1 unexpected: blocks.9.extra" in message
    assert "1 of another shape: final_layer.linear.bias" in message


def test_inert_entries_may_lack():
    weights = network_weights()
    weights.pop("pos_embed")
    kept = {n: t for n, t in weights.items() if "recall_gate" not in n and not n.startswith("raymap_embedder")}
    assert len(kept) < len(weights)
    assert set(strict_weights(kept, NETWORK)) == set(weights)


class Malicious:
    def __reduce__(self):
        return print, ("run",)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path, capsys):
    torch.save({"generator": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        read_official_dit(tmp_path / "model.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="more than tensors"):
        read_official_dit(tmp_path / "old.pt")
    assert "run" not in capsys.readouterr().out


def test_a_truncated_download_is_refused_and_leaves_no_world(hub, tmp_path, home):
    copy = tmp_path / "copy"
    shutil.copytree(hub, copy)
    model = copy / OWNER / "SANA-WM_streaming" / "sana_dit" / "model.pt"
    model.write_bytes(model.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        fetch("streaming", ("dit",), source=copy, **SIZE)
    with pytest.raises(ValueError, match="sanawm fetch streaming"):
        world_folder("streaming")


def test_a_part_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sana_dit/model\.pt"):
        fetch("streaming", ("dit",), source=tmp_path)


def test_an_unreachable_hub_gives_the_command_that_goes_on(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(OSError, match=r"no route to host.*sanawm fetch streaming --parts dit"):
        fetch("streaming", ("dit",))


def test_the_hub_is_asked_only_for_the_files_of_a_part(hub, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repository, *, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(hub / repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    fetch("streaming", ("dit", "text"), revision="abc", **SIZE)
    assert asked[0] == (f"{OWNER}/SANA-WM_streaming", "abc", ["sana_dit/model.pt"])
    assert asked[1][:2] == (f"{OWNER}/gemma-2-2b-it", None)  # a revision is of the network's repository


def test_bad_arguments_are_a_sentence(hub):
    with pytest.raises(ValueError, match="chunk-causal"):
        fetch("stream", source=hub)
    with pytest.raises(ValueError, match="refiner"):
        fetch("streaming", ("vae",), source=hub)
    with pytest.raises(ValueError, match="multiples of 32"):
        fetch("streaming", ("dit",), source=hub, height=100)


def test_the_command_shows_terms_and_asks_for_consent(hub, home, capsys):
    common = ["fetch", "streaming", "--source", str(hub), "--parts", "dit,codec", "--height", "64", "--width", "96"]
    with pytest.raises(SystemExit):
        main(common)
    shown = capsys.readouterr()
    assert "disputed" in shown.out and "--yes" in shown.err
    assert not (home / "worlds").exists()
    main([*common, "--yes"])
    assert "encode-prompts" in capsys.readouterr().out
    assert world_folder("streaming").is_dir()
