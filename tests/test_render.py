"""The bidirectional model from hub to video: fetched, loaded and run by diffusers, seen through `sanawm render`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sanawm_env.camera.trajectory import load_trajectory
from sanawm_env.cli import main
from sanawm_env.engines.sanawm import bidirectional, memory
from sanawm_env.engines.sanawm.bidirectional import (
    check_layout,
    dtypes,
    load_pipeline,
    one_step,
    predict_render_memory,
    show,
)
from sanawm_env.engines.sanawm.fetch import fetch, official_folder
from sanawm_env.recording.video import read_video
from sanawm_env.world.folders import world_folder
from tests.standin_hub import fetched
from tests.worlds import alive, picture

pytest.importorskip("diffusers")
SIZE = ["--height", "64", "--width", "96", "--steps", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with fetched(tmp_path_factory.mktemp("home"), {"bidirectional": ("dit", "codec", "text")}):
        yield official_folder("bidirectional")


@pytest.fixture
def start(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "start.png")
    return str(tmp_path / "start.png")


@pytest.mark.slow
def test_a_clip_is_rendered_along_a_path(folder, start, tmp_path):
    out = tmp_path / "clip"
    common = ["render", "--image", start, "--prompt", "a street", *SIZE]
    main([*common, "--actions", "w-12", "--seed", "3", "--out", str(out)])
    path = load_trajectory(out / "trajectory.npz")
    assert path.c2w.shape == (17, 4, 4)  # frame 0 and 12 frames, filled up to whole latents
    assert path.c2w[12, 2, 3] > 0
    np.testing.assert_array_equal(path.c2w[12], path.c2w[16])
    # in pixels of the video, which shows each of the picture's as a square of five
    np.testing.assert_allclose(path.intrinsics[0], [[240, 0, 240], [0, 240, 160], [0, 0, 1]], atol=1e-4)
    meta = json.loads((out / "meta.json").read_text())
    assert meta["num_frames"] == 17 and meta["mode"] == "bidirectional" and not meta["interrupted"]
    assert len(read_video(out / "video.mp4")) == 17
    sheet = (out / "contact_sheet.png").read_bytes()  # of the frames themselves: x264 does not repeat itself to the bit
    for seed, same in ("3", True), ("4", False):
        main([*common, "--actions", "w-12", "--seed", seed, "--out", str(tmp_path / "other")])
        assert ((tmp_path / "other" / "contact_sheet.png").read_bytes() == sheet) == same


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--actions", "w-8", "--height", "100"], "multiples of 32"),
        (["--actions", "w-8", "--steps", "0"], "at least 1"),
        (["--actions", "w-8", "--steps", "1000000000"], "at most 1000"),
        (["--actions", "w-8", "--height", "3200000"], "up to 4096"),
        (["--actions", "w-8", "--fov-deg", "150"], "field of view"),
        (["--actions", "w-8", "--twist", "0,0,1,0,0,0"], "one of --actions"),
        (["--actions", "w-8", "--offload"], "needs a GPU"),
        (["--actions", "w-8", "--device", "cuda"], "cannot be used here"),
        (["--actions", "w-8", "--pipeline", "nowhere"], "sanawm fetch bidirectional"),
        (["--actions", "q-8"], "q"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(folder, start, tmp_path, capsys, options, told):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["render", "--image", start, *SIZE, *options, "--out", str(out)])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.slow
def test_a_damaged_pipeline_is_a_sentence(folder, start, tmp_path, capsys):
    import shutil

    copy = tmp_path / "pipeline"
    shutil.copytree(folder / "pipeline", copy)
    weights = next((copy / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SystemExit):
        main(["render", "--image", start, *SIZE, "--actions", "w-8", "--pipeline", str(copy), "--out", str(tmp_path)])
    assert "cannot be loaded" in capsys.readouterr().err


def test_the_codec_works_in_tiles_of_time_and_in_float32(folder, monkeypatch):
    pipeline = load_pipeline(folder / "pipeline", "cpu", False)
    vae = pipeline.vae
    assert vae.use_framewise_encoding and vae.use_framewise_decoding and vae.use_tiling
    assert (vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames) == (96, 64)
    on_a_gpu = type(pipeline).from_pretrained(folder / "pipeline", dtype=dtypes("cuda"), local_files_only=True)
    kinds = on_a_gpu.vae.dtype, on_a_gpu.transformer.dtype, on_a_gpu.text_encoder.dtype
    assert kinds == (torch.float32, torch.bfloat16, torch.bfloat16)
    lengths, decoder = [], vae.decoder.forward
    monkeypatch.setattr(vae.decoder, "forward", lambda z, *a, **k: lengths.append(z.shape[2]) or decoder(z, *a, **k))
    assert show(pipeline, torch.zeros(1, 4, 15, 2, 3)).shape[1] == 8 * 14 + 1
    assert lengths == [13, 7]


def relaid(folder, to, index=None, drop=()):
    """A copy of a pipeline's folder, of links, with another index."""
    to.mkdir()
    for path in (folder / "pipeline").iterdir():
        if path.name not in drop:
            (to / path.name).symlink_to(path)
    if index is not None:
        (to / "model_index.json").unlink()
        (to / "model_index.json").write_text(json.dumps(index))
    return to


@pytest.mark.slow
def test_a_refiner_may_lie_inside_the_pipeline_or_apart(folder, start, tmp_path, capsys):
    index = json.loads((folder / "pipeline" / "model_index.json").read_text())
    inside = relaid(folder, tmp_path / "inside", index | {"refiner": ["diffusers", "SanaWMLTX2Refiner"]})
    (inside / "refiner").mkdir()
    common = ["render", "--image", start, *SIZE, "--actions", "w-8"]
    main([*common, "--pipeline", str(inside), "--out", str(tmp_path / "out")])
    assert "refiner beside this pipeline is not run" in capsys.readouterr().out
    assert not check_layout(folder / "pipeline") and check_layout(inside)
    apart = relaid(folder, tmp_path / "x-refiner", {"_class_name": "SanaWMLTX2Refiner", "vae": [None, None]})
    lacks = relaid(folder, tmp_path / "lacks", index, drop=("vae",))
    other = relaid(folder, tmp_path / "other", {"_class_name": "SanaPipeline"})
    for place, told in (apart, "without -refiner"), (lacks, "lacks vae"), (other, "SanaPipeline"):
        with pytest.raises(SystemExit) as stopped:
            main([*common, "--pipeline", str(place), "--out", str(tmp_path / "none")])
        assert stopped.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_it_is_no_world_to_step_in(folder):
    assert json.loads((folder / "manifest.json").read_text())["parts"].keys() == {"dit", "codec", "text"}
    with pytest.raises(ValueError, match="sanawm render"):
        world_folder("bidirectional")
    with pytest.raises(ValueError, match="not refiner"):
        fetch("bidirectional", ("refiner",))


@pytest.mark.slow
def test_memory_is_predicted_from_shapes(folder, monkeypatch):
    """Part by part against the tensors that are alive, the network in float32 and the codec in bfloat16; what
    convolutions take besides is each processor's business: without it here, and the most of it in a prediction."""
    with_workspace = predict_render_memory(folder / "pipeline", 128, 192, 33)
    monkeypatch.setattr(memory, "convolution_workspace", lambda *_: 0)
    bidirectional._rehearse.cache_clear()
    pipeline = load_pipeline(folder / "pipeline", "cpu", False)
    size, cpu = (128, 192, 33), torch.device("cpu")
    network = predict_render_memory(folder / "pipeline", *size, dtype=torch.float32)
    measured = alive(lambda: one_step(pipeline, *size, cpu, torch.float32))
    assert network.working["network"] == pytest.approx(measured, rel=0.05)
    for part, module in (("network", pipeline.transformer), ("codec", pipeline.vae), ("text", pipeline.text_encoder)):
        # an encoder's two embeddings are one tensor
        stored = {t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}
        assert network.weights[part] == sum(stored.values())
    torch.nn.Module.to(pipeline.vae, torch.bfloat16)
    codec = predict_render_memory(folder / "pipeline", *size, vae_dtype=torch.bfloat16)
    measured = alive(lambda: show(pipeline, torch.zeros(1, 4, 5, 4, 6, dtype=torch.bfloat16)))
    assert codec.working["codec"] == pytest.approx(measured, rel=0.01)
    assert codec.working["codec"] < with_workspace.working["codec"] < 2 * codec.working["codec"]
    offloaded = predict_render_memory(folder / "pipeline", *size, offload=True, vae_dtype=torch.bfloat16)
    parts = [size + offloaded.working.get(part, 0) for part, size in offloaded.weights.items()]
    assert offloaded.peak == max(parts) < codec.peak
    bidirectional._rehearse.cache_clear()
