"""Training of the nano network: the start, the loss, and runs that are stopped."""

import copy
import json
import os
import signal
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sanawm_env.kernels import reference
from sanawm_env.kernels.inputs import Grid

from sanawm_env.camera.twist import hold
from sanawm_env.engines.rooms.raycast import intrinsics
from sanawm_env.engines.sanawm.codec.patch_pca import LATENT_STD, PatchPCACodec
from sanawm_env.engines.sanawm.conditions import camera_inputs, place_token
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.place_map import PlaceMap
from sanawm_env.engines.sanawm.reprojection import reprojection_channels
from sanawm_env.engines.sanawm.sampler import data_from_v, v_target
from sanawm_env.training import network as training
from sanawm_env.training.clips import ClipsConfig, ViewsConfig, generate, load, sample_frames_for_codec
from sanawm_env.training.depth import DepthConfig
from sanawm_env.training.initial import begun_from, initialise, parts_of, untrained
from sanawm_env.training.nano import NANO, NANO_SMALL
from sanawm_env.training.network import TrainConfig, draw, train_network
from sanawm_env.training.recipe import ON_GPU, QUICK, CodecConfig, Recipe
from sanawm_env.training.recipe import run as run_recipe
from sanawm_env.training.unseen import UnseenConfig
from sanawm_env.world.world import World
from tests.golden_files import ROOT
from tests.worlds import codec_of, evaluated_briefly

# for what no size and no precision of a network decides: how runs are stopped, kept and gone on with
SMALL = replace(NANO_SMALL, network=replace(NANO_SMALL.network, hidden_size=64, depth=2, num_heads=1))


@cache
def small_codec():
    """A codec for the small pictures of these tests; nobody writes to it."""
    return codec_of(sample_frames_for_codec(2) / 255, 96)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generate(folder, small_codec(), ClipsConfig(clips=3, chunks=2, seed=3, unknown_fraction=0.5))
    assert -1 in load(folder)["place"] and load(folder)["place"].max() >= 0
    return folder


def test_an_untrained_network_looks_where_the_ray_was_seen():
    """With a still camera every token of a noisy frame attends to its own cell of the start image."""
    model = SanaWM(NANO_SMALL.network)
    initialise(model, torch.Generator().manual_seed(0))
    eye = torch.eye(4)[None]
    lens = torch.as_tensor(intrinsics(), dtype=torch.float32)[None]
    poses, place = torch.eye(4).expand(1, 24, 4, 4), torch.tensor([-1])
    camera, plucker = camera_inputs(NANO_SMALL, PlaceMap(NANO_SMALL.places), eye, poses, lens, eye, place, first=True)
    text = place_token(NANO_SMALL.places, None, NANO_SMALL.network.caption_channels)[None]
    grid = Grid(4, NANO_SMALL.latent_height, NANO_SMALL.latent_width)
    seen = []

    def attend(q, pages, grid):
        seen.append((q, pages[-1][0]))
        return reference.attend(q, pages, grid)

    with torch.no_grad():
        context = model.prepare(grid, torch.zeros(1, dtype=torch.long), text=text, camera=camera, plucker=plucker)
        context = replace(context, kernels=replace(context.kernels, attend=attend))
        shape = 1, NANO_SMALL.network.latent_channels, 4, grid.height, grid.width
        latents = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        latents[:, :, 1:] /= 4  # noise, where the start image has data
        model(latents, torch.tensor([[0.0, 1000, 1000, 1000]]), context)
    q, k = seen[1]  # the first softmax block's camera branch follows its main branch
    weights = (q @ k.mT * NANO_SMALL.network.head_dim**-0.5).softmax(-1)[0]
    cells = grid.tokens
    own = weights[:, cells:, :cells].argmax(-1) == torch.arange(cells).repeat(3)
    assert own.float().mean() > 0.9
    assert weights[:, cells:, :cells].sum(-1).mean() > 0.95


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Ctrl-C is not ignored, as it is where a suite runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(clips, out, monkeypatch=None, stop_at=None, steps=4, config=SMALL, bf16=False):
    if stop_at is not None:
        step = training._step

        def interrupted(*args):
            if args[7] == stop_at - 1:
                os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in the middle of a step: the step is finished first
            return step(*args)

        monkeypatch.setattr(training, "_step", interrupted)
    train = TrainConfig(steps=steps, batch_size=1, max_chunks=2, single_chunk_steps=1, bf16=bf16)
    with nullcontext() if stop_at is None else pytest.raises(KeyboardInterrupt):
        train_network(config, train, small_codec(), clips, out)
    if monkeypatch is not None:
        monkeypatch.undo()
    return load_file(out / "network.safetensors") | load_file(out / "places.safetensors")


@pytest.mark.slow
def test_a_step_of_the_shipped_recipe_moves_every_part(clips, tmp_path):
    """In bfloat16, as `sanawm train` takes it."""
    after = run(clips, tmp_path, steps=1, config=NANO_SMALL, bf16=True)
    assert all(weights.isfinite().all() for weights in after.values())
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    (loss,) = saved["history"]
    assert np.isfinite(loss)
    before = untrained(NANO_SMALL, torch.Generator().manual_seed(0)).state_dict()
    moved = {name for name in before if not torch.equal(saved["model"][name], before[name])}
    for part in ("network.x_embedder", *(f"network.blocks.{i}.attn" for i in range(4)), "network.final_layer"):
        assert any(name.startswith(part) for name in moved), part
    assert (tmp_path / "loss.png").is_file()


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(clips, tmp_path, monkeypatch):
    whole = run(clips, tmp_path / "whole")
    run(clips, tmp_path / "parts", monkeypatch, stop_at=2)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 2
    parts = run(clips, tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    written = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()}
    run(clips, tmp_path / "parts")  # done already
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir()} == written


@pytest.mark.slow
def test_a_run_made_longer_is_the_run_that_was_longer_from_the_start(clips, tmp_path):
    whole = run(clips, tmp_path / "whole", steps=5)
    run(clips, tmp_path / "parts", steps=3)  # its learning rate fell over the third step: that step is taken anew
    parts = run(clips, tmp_path / "parts", steps=5)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_copied_costs_nothing(clips, tmp_path, monkeypatch):
    def half(source, target):
        target.write_bytes(source.read_bytes()[:1000])
        raise KeyboardInterrupt

    whole = run(clips, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.shutil, "copyfile", half)
        run(clips, tmp_path / "parts")
    parts = run(clips, tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_v_target_and_data_from_v_are_inverse():
    g = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 5, 7, generator=g, dtype=torch.float64)
    for sigma in (0.02, 0.5, 1.0):
        level = torch.tensor(sigma, dtype=torch.float64)
        x = (1 - level) * data + level * noise
        torch.testing.assert_close(data_from_v(x, v_target(data, noise, level), level), data)


@pytest.mark.slow
def test_clips_of_another_codec_are_refused(clips, tmp_path):
    codec = copy.deepcopy(small_codec())
    codec.scale.mul_(2)
    with pytest.raises(ValueError, match="another codec"):
        train_network(NANO_SMALL, TrainConfig(steps=1), codec, clips, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_asking_for_more_clips_completes_the_last_shard(tmp_path):
    codec = small_codec()
    for count in (1, 2):
        generate(tmp_path, codec, ClipsConfig(clips=count, chunks=1, shard_clips=2))
        assert len(load(tmp_path)["place"]) == count


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_reach_every_weight(clips):
    batch = draw(load(clips), 2, 2, NANO_SMALL, torch.Generator().manual_seed(4))
    model = untrained(NANO_SMALL, torch.Generator().manual_seed(0))
    weights = small_codec().pixel_weights

    def loss():
        generator = torch.Generator().manual_seed(3)
        return training.clip_loss(*parts_of(model), NANO_SMALL, TrainConfig(), batch, weights, 2, 0.5, generator)

    before = loss()
    assert np.isfinite(before.item())
    before.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    inert = ("raymap_embedder", "beta_proj", "gate_proj", "A_log", "dt_bias")
    assert all(any(part in name for part in inert) for name in missing)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        if step:  # the gradients of the first are there
            optimizer.zero_grad()
            loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert loss() < before


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "raised"), [(True, KeyboardInterrupt), (False, ChildProcessError)])
def test_a_process_that_ends_before_its_first_step_is_a_stop_or_a_sentence(clips, tmp_path, monkeypatch, asked, raised):
    exited = torch.multiprocessing.ProcessExitedException

    class Workers:
        processes = ()

        def join(self, timeout):
            if asked:
                signal.raise_signal(signal.SIGINT)
            raise exited("process 0 terminated with signal SIGTERM", error_index=0, error_pid=1, exit_code=-15)

    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda *_, **__: Workers())
    with pytest.raises(raised) as caught:
        train_network(NANO_SMALL, TrainConfig(steps=1), small_codec(), clips, tmp_path / "run", processes=2)
    assert not asked or caught.value.args == (signal.SIGINT,)


BAD = (0, -1, 10**12, 1.5, float("nan"), "many", None, True, [], {})
FITS = {  # of these, what an entry may be
    "network.mlp_ratio": (1.5,), "network.window": (-1,), "network.sink": (True,), "train.bf16": (True,),
    "clips.pictures": (True,), "from_shipped.": (True,), "depth.": (None, {}), "views.": (None, {}),
    "unseen.": (None, {}),
    "codec.unknown_fraction": (0,), "train.minutes": (0, 1.5),
    **dict.fromkeys(("codec.seed", "clips.seed", "train.seed"), (0, 10**12)), "train.single_chunk_steps": (0,),
    **dict.fromkeys((f"train.{name}" for name in ("learning_rate", "weight_decay", "place_rate")), (0, 1.5)),
    **dict.fromkeys(
        ("clips.unknown_fraction", *(f"train.{name}" for name in (
            "ema", "pure_noise", "self_forcing", "context_noise", "anchor_dropout",
        ))), (0,),
    ),
}  # fmt: skip
WHOLE = asdict(Recipe())


@pytest.mark.parametrize("part", WHOLE)
def test_every_number_of_a_recipe_has_limits(tmp_path, part):
    fields = WHOLE[part] if isinstance(WHOLE[part], dict) else {"": WHOLE[part]}
    for name in fields:
        for value in BAD:
            if any(
                value is fit or (type(value) is type(fit) and value == fit) for fit in FITS.get(f"{part}.{name}", ())
            ):
                continue
            (tmp_path / "r.json").write_text(json.dumps({part: {name: value} if name else value}))
            with pytest.raises(ValueError) as refused:
                Recipe.load(tmp_path / "r.json")
            said = str(refused.value)
            assert "is not a recipe" in said and "\n" not in said and len(said) < 400, (name, value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"network": {"depth": 256, "hidden_size": 16384, "head_dim": 128, "num_heads": 128}}, "is too large"),
        ({"clips": {"shard_clips": 10**5}}, "shard_clips times chunks"),
        ({"train": []}, "is not a recipe"),
        ({"train": {"colour": 1}}, "colour"),
    ],
)
def test_a_recipe_that_takes_the_machine_is_refused(tmp_path, text, says):
    (tmp_path / "r.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match=says):
        Recipe.load(tmp_path / "r.json")


def test_training_goes_on_from_the_shipped_world():
    """Before its first step the network is that of the shipped world."""
    shipped = ROOT / "sanawm_env" / "assets" / "nano"
    parts = untrained(NANO, torch.Generator())
    begun_from(parts, shipped)
    for name, part in parts.items():
        weights = load_file(shipped / f"{name}.safetensors")
        assert all(
            torch.equal(weights[key].float(), value) for key, value in part.state_dict().items() if key in weights
        )
        assert weights.keys() <= part.state_dict().keys()


def test_a_network_is_carried_over_to_the_codec_of_other_clips():
    """What it reads and predicts stays the same pictures, as far as the other codec shows them."""
    shipped = ROOT / "sanawm_env" / "assets" / "nano"
    own, small = PatchPCACodec.load(shipped / "codec.safetensors"), small_codec()
    config = replace(
        NANO_SMALL,
        network=replace(NANO_SMALL.network, latent_channels=small.channels, plucker_channels=48, caption_channels=1),
        places={},
    )
    parts = untrained(config, torch.Generator())
    begun_from(parts, shipped, small)
    network, weights = parts["network"], load_file(shipped / "network.safetensors")
    assert torch.equal(network.plucker_embedder.proj.weight, weights["plucker_embedder.proj.weight"][:, :48].float())

    more = replace(config, network=replace(config.network, plucker_channels=48 + reprojection_channels(small.channels)))
    guessing = untrained(more, torch.Generator())
    begun_from(guessing, shipped, small)

    noise = torch.randn(1, small.channels, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    frames = small.decode(2 * noise, True)
    large = torch.nn.functional.interpolate(frames[0].movedim(3, 1).float(), scale_factor=2).movedim(1, 3)[None]
    latents, wanted = small.encode(frames)[0].flatten(1).T, own.encode(large / 255)[0].flatten(1).T
    read = latents @ network.x_embedder.proj.weight.flatten(1).T + network.x_embedder.proj.bias
    before = weights["x_embedder.proj.weight"].flatten(1).float(), weights["x_embedder.proj.bias"].float()
    asked = wanted @ before[0].T + before[1]
    assert (read - asked).norm() < 0.3 * (asked - before[1]).norm()
    # a guess that is trusted everywhere, in the same latents
    embed = guessing["network"].plucker_embedder.proj.weight.flatten(1)[:, 48:]
    parts = torch.ones(len(latents), 20)
    read = torch.cat((latents / LATENT_STD, parts), dim=1) @ embed.T
    old = weights["plucker_embedder.proj.weight"].flatten(1).float()[:, -reprojection_channels(own.channels) :]
    asked = torch.cat((wanted / LATENT_STD, parts), dim=1) @ old.T
    assert (read - asked).norm() < 0.5 * (asked - parts @ old[:, -20:].T).norm()  # 0.66 without the offset
    # the last layers, of the same features: minus the data of either codec
    features = 0.5 * torch.randn(96, 192, generator=torch.Generator().manual_seed(1))
    last, old = network.final_layer.linear, weights["final_layer.linear.weight"].float()
    mine = -(features @ last.weight.T + last.bias).T.detach().reshape(1, small.channels, 1, 8, 12)
    theirs = -(features @ old.T + weights["final_layer.linear.bias"].float()).T.reshape(1, own.channels, 1, 8, 12)
    shown, meant = small.decode(mine, True)[0, 0].float(), own.decode(theirs, True)[0, 0].float()
    meant = meant.unflatten(0, (64, 2)).unflatten(2, (96, 2)).mean((1, 3))
    assert (shown - meant).abs().mean() < 0.3 * (meant - meant.mean()).abs().mean()


def test_a_world_of_another_width_cannot_go_on_from_the_shipped_one():
    config = replace(NANO, network=replace(NANO.network, hidden_size=64, num_heads=1))
    with pytest.raises(ValueError, match="of these sizes cannot go on"):
        begun_from(untrained(config, torch.Generator()), ROOT / "sanawm_env" / "assets" / "nano")


@pytest.mark.slow
def test_the_second_edition_is_made_from_end_to_end_in_the_time_it_is_given(tmp_path, monkeypatch):
    """The GPU's recipe at toy size: codec of wide patches, clips and views with depth, networks, world, numbers."""
    evaluated_briefly(monkeypatch)
    tiny = replace(
        ON_GPU,
        network=replace(QUICK.network, window=3),
        codec=CodecConfig(clips=2, channels=24, stride=8),
        clips=ClipsConfig(clips=2, chunks=2, shard_clips=1, height=64, width=96, pictures=True, unknown_fraction=1.0),
        train=replace(ON_GPU.train, minutes=0.02, batch_size=2, single_chunk_steps=1, warmup=1),
        views=ViewsConfig(rooms=1, views=2, shard_rooms=1),
        depth=DepthConfig(steps=2, batch_size=2),
        unseen=UnseenConfig(steps=2, batch_size=2),
        from_shipped=False,
        validation_scenes=1,
    )
    world = World.load(run_recipe(tiny, tmp_path, device="cpu"))
    assert world.config.reprojection and world.config.unseen and world.config.spatial_stride == 8
    record = json.loads((tmp_path / "world" / "training.json").read_text())
    assert record["validation"]["chunks"][0]["psnr"] > 5
    saved = torch.load(tmp_path / "network" / "checkpoint.pt", weights_only=True)
    assert 0 < saved["step"] < 100_000
    state = world.begin(world.scene(world.starts[0]), seed=0)
    assert world.advance(state, hold(np.eye(4), np.zeros(6)))[1].frames.shape == (1, 24, 64, 96, 3)


def test_recipes_that_cannot_be_made_are_refused(tmp_path):
    with pytest.raises(ValueError, match="learned from images"):
        Recipe(depth=DepthConfig())
    with pytest.raises(ValueError, match="for learning depth"):
        Recipe(views=ViewsConfig())
    with pytest.raises(ValueError, match="known from depth"):
        Recipe(unseen=UnseenConfig())
    with pytest.raises(ValueError, match="multiples of the codec's stride"):
        Recipe(codec=CodecConfig(stride=7))
    with pytest.raises(ValueError, match="and no views"):
        run_recipe(ON_GPU, tmp_path / "run", footage=lambda: [])
    with pytest.raises(ValueError, match="takes one process"):
        train_network(NANO_SMALL, TrainConfig(minutes=1), small_codec(), tmp_path, tmp_path, processes=2)
    assert not list(tmp_path.iterdir())
