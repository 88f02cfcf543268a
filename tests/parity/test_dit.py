"""The network against the official vectors, operator by operator, then whole (golden/dit, any sizes)."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sanawm_env.kernels.dispatch import choose
from sanawm_env.kernels.inputs import GDNState, Grid, Page, RayTransform
from sanawm_env.kernels.reference import (
    by_frame,
    camera_branch,
    forward_states,
    frame_gated_delta_rule,
    key_conv,
    main_branch,
    merge_heads,
    query_world,
    reverse_states,
    rms_norm,
    rotate,
    split_heads,
    to_world,
)

from sanawm_env.camera.rays import plucker_groups, ray_from_world, raymap_rows, rigid_inverse
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM
from sanawm_env.engines.sanawm.network.rope import phases, rope_angles
from sanawm_env.engines.sanawm.network.state import WindowState
from sanawm_env.engines.sanawm.sampler import SamplerConfig, sample_chunk, shifted_timesteps
from tests.golden_files import SHIPPED, golden
from tests.interpreter import patched_once  # noqa: F401
from tests.parity import official
from tests.parity.official import (
    MODEL_TOLERANCE,
    OPERATOR_TOLERANCE,
    SAMPLER_TOLERANCE,
    check_inner,
    grid_of,
    model,
    numbered,
    recorded,
    same_rows,
    sizes,
    slots_from_state,
    state_from_slots,
    unfold_tail,
    vectors,
    within,
    worst,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def backend(request, monkeypatch):
    """The form of the operators that the parameter names; what asks for none tests the reference."""
    monkeypatch.setattr(official, "BACKEND", request.param)
    return request.param


both_backends = pytest.mark.parametrize("backend", ["reference", "cpu"], indirect=True)


def exactly(got, expected, name):
    assert worst(got, expected) < OPERATOR_TOLERANCE, name


def features(mixer, x, norm):
    return split_heads(rms_norm(x, norm.weight, norm.eps), mixer.heads).relu()


def context_for(latents, first, text, mask, camera=None, plucker=None):
    batch = latents.shape[0]
    return model().prepare(
        Grid(*grid_of(latents)),
        torch.full((batch,), first),
        text=same_rows(text[:, 0], batch),
        text_mask=same_rows(mask, batch),
        camera=None if camera is None else same_rows(camera, batch),
        plucker=None if plucker is None else same_rows(plucker, batch),
    )


def test_state_dict_of_the_real_size_equals_the_official_one():
    expected = json.loads((SHIPPED / "dit_state_dict.json").read_text())
    with torch.device("meta"):
        state = SanaWM(SanaWMConfig()).state_dict()
    assert {name: list(t.shape) for name, t in state.items()} == {n: e["shape"] for n, e in expected.items()}


def test_rotary_tables():
    tensors = vectors("rope")
    names = {key.rsplit(".", 2)[0] for key in tensors if key.startswith("d") and "_off" in key}
    assert names
    for name in names:
        d, t, h, w, off = (int("".join(c for c in part if c.isdigit())) for part in name.split("_"))
        angles = rope_angles(d, off + torch.arange(t), h, w)
        for table, got in zip(("main", "cam"), angles, strict=True):
            assert worst(got.cos(), tensors[f"{name}.{table}.cos"]) < 1e-12
            assert worst(got.sin(), tensors[f"{name}.{table}.sin"]) < 1e-12


def test_rotary_table_of_explicit_frames():
    tensors = vectors("rope")
    c = sizes()
    if not recorded(tensors, "frame_index."):
        pytest.skip("the file holds no explicit frames")
    frames = tensors["frame_index.in.frame_index"].flatten()
    main, _ = rope_angles(c["linear_head_dim"], frames, c["H_lat"], c["W_lat"])
    assert worst(main.cos(), tensors["frame_index.main.cos"]) < 1e-12
    assert worst(main.sin(), tensors["frame_index.main.sin"]) < 1e-12


def test_rotation_of_a_tensor():
    tensors = vectors("rope")
    x, c = tensors["apply.in.x_bnhd"], sizes()
    frames = x.shape[1] // (c["H_lat"] * c["W_lat"])
    # the file does not say where its chunk starts: one of the offsets of its tables of that size
    size = f"d{x.shape[-1]}_t{frames}_h{c['H_lat']}_w{c['W_lat']}_off"
    offsets = {int(key.split(".")[0].removeprefix(size)) for key in tensors if key.startswith(size)}
    errors = []
    for offset in offsets:
        main, _ = rope_angles(x.shape[-1], offset + torch.arange(frames), c["H_lat"], c["W_lat"])
        got = rotate(x.transpose(1, 2).double(), phases(main)).transpose(1, 2)
        errors.append(worst(got, tensors["apply.out.x_bnhd"]))
    assert min(errors) < OPERATOR_TOLERANCE


def test_timestep_embedding():
    tensors, net = vectors("timestep_embedding"), model()
    t = tensors["in.timesteps"]
    if "out.sinusoid" in tensors:
        # an angle of t radians carries float32 rounding of t * 2^-23, and exp() differs by that much between CPUs
        rounding = t[:, None].double() * 2**-23
        difference = (net.t_embedder.sinusoid(t).double() - tensors["out.sinusoid"].double()).abs()
        assert (difference < OPERATOR_TOLERANCE + rounding).all()
        if "out.embed" in tensors:
            assert worst(net.t_embedder.mlp(tensors["out.sinusoid"]), tensors["out.embed"]) < OPERATOR_TOLERANCE
    if "out.embed" in tensors:
        assert worst(net.t_block(tensors["out.embed"]), tensors["out.t_block"]) < OPERATOR_TOLERANCE
    assert worst(net.t_block(net.t_embedder(t)), tensors["out.t_block"]) < MODEL_TOLERANCE


@pytest.mark.parametrize("case", sorted({k.split(".")[0] for k in vectors("camera")}))
def test_camera_conditions_and_ray_matrices(case):
    tensors = vectors("camera")
    poses, px = tensors[f"{case}.in.poses_c2w"], tensors[f"{case}.in.intrinsics_px"]
    expected = tensors[f"{case}.out.camera_conditions"]
    p, plucker = tensors[f"{case}.out.P"], tensors[f"{case}.out.chunk_plucker"]
    # "real_grid keeps every 3rd row and 4th column" of the full-size grid
    rows, columns = (3, 4) if case == "real_grid" else (1, 1)
    height, width = (22, 40) if case == "real_grid" else tuple(plucker.shape[-2:])
    assert worst(raymap_rows(poses, px / 32), expected) < OPERATOR_TOLERANCE
    groups = plucker_groups(poses, px / 32, height=height, width=width)
    assert worst(groups[..., ::rows, ::columns], plucker) < OPERATOR_TOLERANCE
    got = ray_from_world(expected, height, width)[..., ::rows, ::columns, :, :]
    assert worst(got, p) < OPERATOR_TOLERANCE
    if f"{case}.out.P_inv" in tensors:
        assert worst(rigid_inverse(got), tensors[f"{case}.out.P_inv"]) < OPERATOR_TOLERANCE


@pytest.mark.parametrize("case", sorted({k.split(".")[0] for k in vectors("gdn_op") if not k.startswith("full")}))
def test_gated_delta_rule(case):
    tensors = vectors("gdn_op")
    given = recorded(tensors, f"{case}.in.")
    kv, z = given.get("slot0"), given.get("slot1")
    kv = None if kv is None else kv.mT
    ones = torch.ones_like(given["v"][..., :1])
    gates = given["beta"], given["decay"]

    def reads(q, states):
        return torch.stack([torch.zeros_like(q[:, :, t] @ states[0]) if s is None else q[:, :, t] @ s
                            for t, s in enumerate(states)], dim=2)  # fmt: skip

    def read_reverse(q, k, v):
        states = reverse_states(k, v, *gates)
        zero = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
        return reads(q, [zero if s is None else s for s in states])

    q, k, v, q_rot, k_rot = (given[n] for n in ("q", "k", "v", "q_rot", "k_rot"))
    halves = {
        "num_fwd": reads(q_rot, forward_states(k_rot, v, *gates, kv)),
        "num_rev": read_reverse(q_rot, k_rot, v),
        "den_fwd": reads(q, forward_states(k, ones, *gates, z))[..., 0],
        "den_rev": read_reverse(q, k, ones)[..., 0],
    }
    expected = recorded(tensors, f"{case}.out.")
    check_inner(halves, {name: expected[name] for name in halves.keys() & expected.keys()}, exactly)
    numerator, kv = frame_gated_delta_rule(q_rot, k_rot, v, *gates, kv)
    denominator, z = frame_gated_delta_rule(q, k, ones, *gates, z)
    assert worst(numerator / (denominator + 1e-8), expected["out"]) < OPERATOR_TOLERANCE
    assert worst(kv.mT, expected["slot0"]) < OPERATOR_TOLERANCE
    assert worst(z, expected["slot1"]) < OPERATOR_TOLERANCE


@pytest.mark.parametrize("case", sorted({k.split(".")[0] for k in vectors("gdn_op") if k.startswith("full")}))
def test_gdn_main_branch(case):
    tensors, c = vectors("gdn_op"), sizes()
    qkv = tensors[f"{case}.in.qkv_post_conv"]
    n, heads, d = qkv.shape[1], qkv.shape[3], qkv.shape[4]
    grid = Grid(n // (c["H_lat"] * c["W_lat"]), c["H_lat"], c["W_lat"])
    q, k, v = qkv.flatten(3).unbind(2)

    def features(x, weight):
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight
        return split_heads(normed, heads).relu()

    offset = int(tensors[f"{case}.in.frame_offset"])
    main, _ = rope_angles(d, offset + torch.arange(grid.frames)[None], grid.height, grid.width)
    phase = phases(main.float())[:, None]
    state = None
    if f"{case}.in.slot0" in tensors:
        state = GDNState(tensors[f"{case}.in.slot0"].mT, tensors[f"{case}.in.slot1"], key_tail=torch.zeros(()))
    out, kv, z = main_branch(
        features(q, tensors[f"{case}.in.q_norm_weight"]),
        features(k, tensors[f"{case}.in.k_norm_weight"]) * (d * grid.tokens) ** -0.5,
        split_heads(v, heads), tensors[f"{case}.in.beta"], tensors[f"{case}.in.decay"], phase, grid, state,
    )  # fmt: skip
    assert worst(out.transpose(1, 2), tensors[f"{case}.out.attn"]) < OPERATOR_TOLERANCE
    assert worst(kv.mT, tensors[f"{case}.out.slot0"]) < OPERATOR_TOLERANCE
    assert worst(z, tensors[f"{case}.out.slot1"]) < OPERATOR_TOLERANCE


def test_key_convolution_over_chunks():
    tensors, c = vectors("short_conv"), sizes()
    conv = model().blocks[0].attn.conv_k
    assert worst(conv.weight, tensors["params.weight"]) == 0
    tail = None
    for i in numbered(tensors, "chunk"):
        x = tensors[f"chunk{i}.in.x"]
        if f"chunk{i}.in.state" in tensors:
            assert worst(unfold_tail(tensors[f"chunk{i}.in.state"], x.shape[0]), tail) == 0
        grid = Grid(x.shape[1] // (c["H_lat"] * c["W_lat"]), c["H_lat"], c["W_lat"])
        y, tail = key_conv(x, conv.weight, grid, tail)
        assert worst(y, tensors[f"chunk{i}.out.y"]) < OPERATOR_TOLERANCE
        assert worst(tail, unfold_tail(tensors[f"chunk{i}.out.state"], x.shape[0])) == 0


def test_ffn_over_chunks():
    tensors, c = vectors("ffn_cached"), sizes()
    for i in numbered(tensors, "chunk"):
        x, slot = tensors[f"chunk{i}.in.x"], tensors.get(f"chunk{i}.in.slot9")
        grid = Grid(x.shape[1] // (c["H_lat"] * c["W_lat"]), c["H_lat"], c["W_lat"])
        tail = None if slot is None else slot[:, :, 0].mT
        y, tail = model().blocks[0].mlp(x, grid, tail, choose(x.device, x.dtype))
        assert worst(y, tensors[f"chunk{i}.out.y"]) < OPERATOR_TOLERANCE
        assert worst(tail.mT[:, :, None], tensors[f"chunk{i}.out.slot9"]) < OPERATOR_TOLERANCE


def ray_transform(camera, first, grid, d):
    p = ray_from_world(camera, grid.height, grid.width).flatten(1, 3)
    _, cam = rope_angles(d, first + torch.arange(grid.frames)[None], grid.height, grid.width)
    return RayTransform(p, rigid_inverse(p), phases(cam.float())[:, None])


def test_camera_branch_over_chunks():
    tensors, c = vectors("cam_branch_op"), sizes()
    mixer = model().blocks[0].attn
    for i in numbered(tensors, "chunk"):
        given, mid, out = (recorded(tensors, f"chunk{i}.{part}.") for part in ("in", "mid", "out"))
        x, first = given["x"], int(given["frame_range"][0])
        grid = Grid(x.shape[1] // (c["H_lat"] * c["W_lat"]), c["H_lat"], c["W_lat"])
        rays = ray_transform(given["camera_conditions"], first, grid, c["linear_head_dim"])
        beta, decay = mixer.gates(x, grid)
        tail = given.get("slot3")
        k, new_tail = key_conv(
            mixer.k_proj_cam(x), mixer.conv_k_cam.weight, grid, None if tail is None else unfold_tail(tail, x.shape[0])
        )
        raw = {"q_raw": mixer.q_proj_cam(x), "k_raw": k, "v_raw": mixer.v_proj_cam(x)}
        inner = {name: t.unflatten(-1, (mixer.heads, -1)) for name, t in raw.items()}
        assert worst(new_tail, unfold_tail(out["slot3"], x.shape[0])) < OPERATOR_TOLERANCE
        q = features(mixer, mixer.q_proj_cam(x), mixer.q_norm_cam)
        k = features(mixer, k, mixer.k_norm_cam) * (c["linear_head_dim"] * grid.tokens) ** -0.5
        v = split_heads(mixer.v_proj_cam(x), mixer.heads)
        moved = to_world(k, rays)
        stretch = by_frame(moved.square().sum(-1).clamp(min=1e-12) / k.square().sum(-1).clamp(min=1e-12), grid)
        discounted = beta / stretch.mean(-1, keepdim=True).clamp(min=1)
        scan = [by_frame(x, grid) for x in (moved, to_world(v, rays))]
        forward = torch.stack(forward_states(*scan, discounted, decay, given.get("slot2")), 2)
        backward = reverse_states(*scan, discounted, decay)
        backward = torch.stack([torch.zeros_like(forward[:, :, 0]) if r is None else r for r in backward], 2)
        turned = by_frame(query_world(q, rays), grid)
        inner |= {
            "beta_raw": beta, "decay": decay, "beta_discounted": discounted, "inflation_sq": stretch,
            "q_transformed": query_world(q, rays).mT, "k_transformed": moved.mT, "v_transformed": to_world(v, rays).mT,
            "scan_fwd": (turned @ forward).flatten(2, 3).mT, "scan_rev": (turned @ backward).flatten(2, 3).mT,
        }  # fmt: skip
        if "inflation_sq" in mid:  # a quotient of small numbers
            torch.testing.assert_close(stretch, mid.pop("inflation_sq"), atol=1e-5, rtol=1e-5)
        check_inner(inner, mid, exactly)
        state = None
        if "slot2" in given:
            state = GDNState(torch.zeros(()), torch.zeros(()), torch.zeros(()), camera_kv=given["slot2"])
        raw, kv = camera_branch(q, k, v, beta, decay, rays, grid, state)
        assert worst(merge_heads(raw), out["cam_raw"]) < OPERATOR_TOLERANCE
        assert worst(mixer.out_proj_cam(merge_heads(raw)), out["cam_contribution"]) < OPERATOR_TOLERANCE
        assert worst(kv, out["slot2"]) < OPERATOR_TOLERANCE


def test_softmax_block_over_chunks():
    tensors, c = vectors("softmax_block"), sizes()
    index = next(i for i in range(c["depth"]) if model().config.is_softmax(i))
    first = 0
    for i in numbered(tensors, "chunk"):
        given = recorded(tensors, f"chunk{i}.in.")
        x = given["x"]
        grid = Grid(x.shape[1] // (c["H_lat"] * c["W_lat"]), c["H_lat"], c["W_lat"])
        main, _ = rope_angles(c["linear_head_dim"], first + torch.arange(grid.frames)[None], grid.height, grid.width)
        phase = phases(main.float())[:, None]
        rays = ray_transform(given["camera_conditions"], first, grid, c["linear_head_dim"])
        state = WindowState((Page(*(given[f"slot{n}"] for n in range(4))),)) if "slot0" in given else None
        context = SimpleNamespace(kernels=choose(x.device, x.dtype), grid=grid, phase=phase, rays=rays)
        y, new = model().blocks[index].attn(x, context, state, save=True)
        assert worst(y, tensors[f"chunk{i}.out.attn"]) < OPERATOR_TOLERANCE
        page = new.pages[-1]
        for n, got in enumerate((page.k, page.v, page.camera_k, page.camera_v)):
            assert worst(got, tensors[f"chunk{i}.out.slot{n}"]) < OPERATOR_TOLERANCE
        first += grid.frames


@contextmanager
def recorded_calls(modules):
    """Last input and output of each named module, while the block runs."""
    seen, hooks = {}, []
    for name, module in modules.items():

        def keep(_, args, out, name=name):
            seen[name] = args[0], out[0] if isinstance(out, tuple) else out

        hooks.append(module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def test_single_forward_and_its_activations():
    tensors, net = vectors("single_forward"), model()
    latents = tensors["in.latents"]
    modules = {name: net.get_submodule(name) for name in (
        "x_embedder", "plucker_embedder", "t_embedder", "t_block", "y_embedder", "attention_y_norm", "final_layer"
    )}  # fmt: skip
    for i, block in enumerate(net.blocks):
        parts = {"out": block, "attn": block.attn, "cross_attn": block.cross_attn, "mlp": block.mlp}
        modules |= {f"block{i}.{name}": part for name, part in parts.items()}
        modules[f"block{i}.cam"] = block.attn.out_proj_cam
    with recorded_calls(modules) as seen:
        context = context_for(
            latents, 0, tensors["in.text"], tensors["in.text_mask"],
            tensors["in.camera_conditions"], tensors["in.chunk_plucker"],
        )  # fmt: skip
        out, state = net(latents, tensors["in.timestep"], context)
    assert state is None
    assert worst(out, tensors["out"]) < MODEL_TOLERANCE
    got = {name.replace("attention_y_norm", "y_norm"): out for name, (_, out) in seen.items()}
    for i in range(net.config.depth):
        for part in ("attn", "cross_attn", "mlp"):
            given, result = seen[f"block{i}.{part}"]
            got |= {f"block{i}.{part}_in": given, f"block{i}.{part}_out": result}
        got[f"block{i}.cam_raw"] = seen[f"block{i}.cam"][0]
    check_inner(got, recorded(tensors, "act."), within(MODEL_TOLERANCE))


def test_inside_of_the_first_block():
    """Features, gates and both halves of the read-out of the main and camera branches of block 0."""
    tensors, net = vectors("single_forward"), model()
    expected, mixer = recorded(tensors, "int.block0."), net.blocks[0].attn
    if not expected:
        pytest.skip("the file holds no inner values of block 0")
    grid = Grid(*grid_of(tensors["in.latents"]))
    context = context_for(
        tensors["in.latents"], 0, tensors["in.text"], tensors["in.text_mask"],
        tensors["in.camera_conditions"], tensors["in.chunk_plucker"],
    )  # fmt: skip
    x = tensors.get("act.block0.attn_in")
    if x is None:
        with recorded_calls({"attn": mixer}) as seen:
            net(tensors["in.latents"], tensors["in.timestep"], context)
        x = seen["attn"][0]

    def frames(t):
        return t.unflatten(2, (grid.frames, grid.tokens))

    def halves(q, k, v, beta, decay):
        forward = torch.stack(forward_states(k, v, beta, decay), 2)
        zero = torch.zeros_like(forward[:, :, 0])
        reverse = torch.stack([zero if s is None else s for s in reverse_states(k, v, beta, decay)], 2)
        return q @ forward, q @ reverse

    beta, decay = mixer.gates(x, grid)
    scale = (x.shape[-1] // mixer.heads * grid.tokens) ** -0.5
    q, k, v = mixer.qkv(x).chunk(3, dim=-1)
    q = features(mixer, q, mixer.q_norm)
    k = features(mixer, key_conv(k, mixer.conv_k.weight, grid, None)[0], mixer.k_norm) * scale
    v = frames(split_heads(v, mixer.heads))
    q_rot, k_rot = frames(rotate(q, context.phase)), frames(rotate(k, context.phase))
    q, k = frames(q), frames(k)
    num, den = halves(q_rot, k_rot, v, beta, decay), halves(q, k, torch.ones_like(v[..., :1]), beta, decay)
    got = {
        "gdn.beta": beta, "gdn.decay": decay, "gdn.q": q, "gdn.k": k, "gdn.v": v, "gdn.q_rot": q_rot,
        "gdn.k_rot": k_rot, "gdn.num_fwd": num[0], "gdn.num_rev": num[1],
        "gdn.den_fwd": den[0][..., 0], "gdn.den_rev": den[1][..., 0],
        "gdn.out": sum(num) / (sum(den) + 1e-8),
    }  # fmt: skip
    rays = context.rays
    q = query_world(features(mixer, mixer.q_proj_cam(x), mixer.q_norm_cam), rays)
    k, _ = key_conv(mixer.k_proj_cam(x), mixer.conv_k_cam.weight, grid, None)
    before = features(mixer, k, mixer.k_norm_cam) * scale
    k, v = to_world(before, rays), to_world(split_heads(mixer.v_proj_cam(x), mixer.heads), rays)
    stretch = k.square().sum(-1).clamp(min=1e-12) / before.square().sum(-1).clamp(min=1e-12)
    beta = beta / frames(stretch).mean(-1, keepdim=True).clamp(min=1)
    read = halves(frames(q), frames(k), frames(v), beta, decay)
    got |= {
        "cam.beta": beta, "cam.q": q.mT, "cam.k": k.mT, "cam.v": v.mT,
        "cam.out_fwd": read[0].flatten(2, 3).mT, "cam.out_rev": read[1].flatten(2, 3).mT,
    }  # fmt: skip

    def close(got, expected, name):
        torch.testing.assert_close(got, expected, atol=MODEL_TOLERANCE, rtol=1e-5, msg=lambda m: f"{name}: {m}")

    check_inner(got, expected, close)


@pytest.mark.parametrize(
    "variant", sorted({k.split(".")[1] for k in vectors("single_forward") if k.startswith("var.")})
)
def test_single_forward_variants(variant):
    tensors = vectors("single_forward")
    latents = tensors["in.latents"]
    conditions = (tensors["in.camera_conditions"], tensors["in.chunk_plucker"])
    context = context_for(
        latents, 0, tensors["in.text"], tensors["in.text_mask"], *(() if variant == "no_camera" else conditions)
    )
    timestep = tensors.get(f"var.{variant}.in.timestep", tensors["in.timestep"])
    if variant == "t_zero":
        timestep = torch.zeros(latents.shape[0])
    out, _ = model()(latents, timestep, context)
    assert worst(out, tensors[f"var.{variant}.out"]) < MODEL_TOLERANCE


def streamed_chunks():
    return sorted(p.stem for p in golden("dit").glob("stream_chunk*.safetensors"))


def episode():
    """Inputs that hold for all chunks of the streaming vectors."""
    first = vectors(streamed_chunks()[0])
    return {k: first[f"in.{k}"] for k in ("camera_conditions", "chunk_plucker", "text", "text_mask")}


def chunk_context(given, latents, a, b):
    return context_for(
        latents, a, given["text"], given["text_mask"],
        given["camera_conditions"][:, a:b], given["chunk_plucker"][:, :, a:b],
    )  # fmt: skip


@pytest.mark.parametrize("name", streamed_chunks())
def test_streamed_chunk_from_its_recorded_cache(name):
    tensors, given = vectors(name), episode()
    a, b = tensors["in.frame_range"].tolist()
    latents = tensors["in.latents_noisy"]
    batch = latents.shape[0]
    has_cache = any(k.startswith("cache_in.") for k in tensors)
    state = state_from_slots(tensors, "cache_in", batch) if has_cache else None
    context = chunk_context(given, latents, a, b)
    blocks = {f"block{i}.out": block for i, block in enumerate(model().blocks)}
    with recorded_calls(blocks) as noisy_blocks:
        noisy, nothing = model()(latents, tensors["in.timestep_noisy"], context, state)
    assert nothing is None
    assert worst(noisy, tensors["out_noisy"]) < MODEL_TOLERANCE
    with recorded_calls(blocks) as clean_blocks:
        clean, new = model()(tensors["in.latents_clean"], tensors["in.timestep_clean"], context, state, save=True)
    assert worst(clean, tensors["out_clean"]) < MODEL_TOLERANCE
    for kind, seen in ("noisy", noisy_blocks), ("clean", clean_blocks):
        inner = {name: out for name, (_, out) in seen.items()}
        check_inner(inner, recorded(tensors, f"act_{kind}."), within(MODEL_TOLERANCE))
    got = slots_from_state(new)
    expected = {k: v for k, v in recorded(tensors, "cache_out.").items() if not k.endswith("slot6")}  # 6: a type
    assert got.keys() == expected.keys()
    for key, tensor in expected.items():
        assert worst(got[key], tensor) < MODEL_TOLERANCE, key


def carry(name, state, backend):
    """Both passes of a streamed chunk against the vectors: the state after it."""
    tensors = vectors(name)
    latents = tensors["in.latents_clean"]
    context = chunk_context(episode(), latents, *tensors["in.frame_range"].tolist())
    assert context.kernels.name == backend
    noisy, _ = model()(tensors["in.latents_noisy"], tensors["in.timestep_noisy"], context, state)
    clean, state = model()(latents, tensors["in.timestep_clean"], context, state, save=True)
    assert worst(noisy, tensors["out_noisy"]) < MODEL_TOLERANCE
    assert worst(clean, tensors["out_clean"]) < MODEL_TOLERANCE
    return state


@both_backends
def test_streaming_carries_its_own_state(backend):
    state = None
    for name in streamed_chunks():
        state = carry(name, state, backend)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the model is on the CPU, where a GPU leaves no interpreter")
def test_a_block_of_either_kind_in_triton_leaves_the_stream_as_it_is():
    """A chunk that goes on from a state, the interpreter being slow; first chunks and longer walks are compared with
    the reference in tests/test_kernels_triton.py and tests/test_world_triton.py."""
    pytest.importorskip("triton")
    net, (first, second, *_) = model(), streamed_chunks()
    state = carry(first, None, "reference")
    tensors = vectors(second)
    latents = tensors["in.latents_clean"]
    context = chunk_context(episode(), latents, *tensors["in.frame_range"].tolist())
    triton = replace(context, kernels=choose(latents.device, latents.dtype, "triton"))
    kinds = {net.config.is_softmax(i): block for i, block in enumerate(net.blocks)}
    assert len(kinds) == 2

    def in_triton(block, args):
        x, modulation, conditions, _, *rest = args
        return x, modulation, conditions, triton, *rest

    hooks = [block.register_forward_pre_hook(in_triton) for block in kinds.values()]
    try:
        clean, state = net(latents, tensors["in.timestep_clean"], context, state, save=True)
    finally:
        for hook in hooks:
            hook.remove()
    assert worst(clean, tensors["out_clean"]) < MODEL_TOLERANCE
    got = slots_from_state(state)
    for name, expected in recorded(tensors, "cache_out.").items():
        if not name.endswith("slot6"):
            assert worst(got[name], expected) < MODEL_TOLERANCE, name


def test_all_frames_at_once_equal_streaming():
    """dit.md 13: with clean frames and every chunk in the window, a chunk-causal pass is the same computation."""
    given = episode()
    parts = [vectors(name) for name in streamed_chunks()]
    latents = torch.cat([p["in.latents_clean"] for p in parts], dim=2)
    starts = tuple(int(p["in.frame_range"][0]) for p in parts)
    batch = latents.shape[0]
    context = model().prepare(
        Grid(*grid_of(latents), starts),
        torch.zeros(batch, dtype=torch.long),
        text=same_rows(given["text"][:, 0], batch),
        text_mask=same_rows(given["text_mask"], batch),
        camera=same_rows(given["camera_conditions"], batch),
        plucker=same_rows(given["chunk_plucker"], batch),
    )
    out, _ = model()(latents, torch.zeros(batch), context)
    assert worst(out, torch.cat([p["out_clean"] for p in parts], dim=2)) < MODEL_TOLERANCE
    # one single chunk is something else: the test would notice a mask that does nothing
    whole = chunk_context(given, latents, 0, latents.shape[2])
    assert worst(model()(latents, torch.zeros(batch), whole)[0], out) > 0.1


def chunk_ranges(frames, size):
    first = size + frames % size
    return [(0, first), *((a, a + size) for a in range(first, frames, size))]


def sample(tensors, prefix="", *, timesteps=None, guidance=1.0, window=2, sink=True):
    net, c = model(window, sink), sizes()
    noise, image = tensors[f"{prefix}in.noise"], tensors[f"{prefix}in.image_latent"]
    text, mask = tensors[f"{prefix}in.text"], tensors[f"{prefix}in.text_mask"]
    batch = noise.shape[0]
    text, mask = same_rows(text[:, 0], batch), same_rows(mask, batch)
    camera = same_rows(tensors[f"{prefix}in.camera_conditions"], batch)
    plucker = same_rows(tensors[f"{prefix}in.chunk_plucker"], batch)
    if guidance > 1:
        text = torch.cat((same_rows(tensors["in.text_uncond"][:, 0], batch), text))
        mask = torch.cat((same_rows(tensors["in.text_uncond_mask"], batch), mask))
        camera, plucker = torch.cat((camera, camera)), torch.cat((plucker, plucker))
    if timesteps is None:
        timesteps = tensors["in.denoising_step_list"].tolist()[:-1]
    config = SamplerConfig(tuple(timesteps), guidance)
    state, out = None, []
    for a, b in chunk_ranges(noise.shape[2], c["chunk_size"]):
        context = net.prepare(
            Grid(b - a, *noise.shape[3:]), torch.full((len(text),), a), text=text, text_mask=mask,
            camera=camera[:, a:b], plucker=plucker[:, :, a:b],
        )  # fmt: skip
        latents, state = sample_chunk(net, noise[:, :, a:b], context, state, config, image if a == 0 else None)
        out.append(latents)
    return torch.cat(out, dim=2)


def test_sampler_three_chunks():
    tensors = vectors("sampler")
    calls, net = [], model(2, True)
    hook = net.register_forward_hook(lambda _, args, out: calls.append((args[0], args[1], out[0])))
    try:
        out = sample(tensors)
    finally:
        hook.remove()
    *timesteps, _ = tensors["in.denoising_step_list"].tolist()
    names = [f"chunk{i}.{step}" for i in range(len(chunk_ranges(out.shape[2], sizes()["chunk_size"])))
             for step in (*(f"step{k}" for k in range(len(timesteps))), "write")]  # fmt: skip
    got = {}
    for name, call in zip(names, calls, strict=True):
        got |= {f"{name}.{part}": t for part, t in zip(("model_in", "timestep", "model_out"), call, strict=True)}

    def close(got, expected, name):
        bound = 1e-3 if name.endswith(".timestep") else SAMPLER_TOLERANCE
        assert worst(got.reshape(expected.shape), expected) < bound, name

    check_inner(got, recorded(tensors, "trace."), close)
    assert worst(out, tensors["out.latents"]) < SAMPLER_TOLERANCE
    assert worst(out[:, :, :1], tensors["in.image_latent"]) == 0
    if "sched.sigmas" in tensors:
        assert SamplerConfig(tuple(timesteps)).sigmas == pytest.approx(tensors["sched.sigmas"].tolist(), abs=1e-6)


def variants(tensors, kind):
    """Names of a file's variants of a kind, from which their settings are read; skipped where it has none."""
    found = sorted({key.split(".")[0] for key in recorded(tensors, "var.") if key.startswith(kind)})
    if not found:
        pytest.skip(f"the file holds no variant {kind}")
    return found


@pytest.mark.slow
@both_backends
def test_sampler_with_guidance(backend):
    tensors = vectors("sampler")
    for variant in variants(tensors, "cfg"):
        scale = float(variant.removeprefix("cfg").replace("p", "."))
        assert worst(sample(tensors, guidance=scale), tensors[f"var.{variant}.out.latents"]) < SAMPLER_TOLERANCE


def test_sampler_with_a_shifted_schedule():
    tensors = vectors("sampler")
    for variant in variants(tensors, "shift"):
        shift, steps = (int(part.lstrip("shiftep")) for part in variant.split("_"))
        timesteps, schedule = shifted_timesteps(steps, shift), recorded(tensors, f"var.{variant}.sched.")
        if "timesteps" in schedule:
            assert timesteps == pytest.approx(schedule["timesteps"].tolist(), abs=1e-2)
        if "sigmas" in schedule:
            assert SamplerConfig(timesteps).sigmas == pytest.approx(schedule["sigmas"].tolist(), abs=1e-5)
        assert worst(sample(tensors, timesteps=timesteps), tensors[f"var.{variant}.out.latents"]) < SAMPLER_TOLERANCE


@pytest.mark.slow
@both_backends
@pytest.mark.parametrize("policy", sorted({name.split(".")[0] for name in recorded(vectors("sampler_long"), "out.")}))
def test_sampler_window_policies(policy, backend):
    """Their names say what they are: `unbounded`, `sink_window2`, `nosink_window2`."""
    tensors, sink = vectors("sampler_long"), policy.startswith("sink")
    window = -1 if policy == "unbounded" else int(policy.partition("window")[2])
    out = sample(tensors, window=window, sink=sink)
    assert worst(out, tensors[f"out.{policy}.latents"]) < SAMPLER_TOLERANCE


def test_sampler_first_chunk_takes_the_remainder():
    tensors = vectors("sampler_long")
    frames = tensors["rem.in.noise"].shape[2]
    assert chunk_ranges(frames, sizes()["chunk_size"]) == [tuple(r) for r in tensors["rem.chunk_ranges"].tolist()]
    assert worst(sample(tensors, "rem."), tensors["rem.out.latents"]) < SAMPLER_TOLERANCE


@both_backends
def test_batch_equals_singles(backend):
    given, tensors = episode(), vectors(streamed_chunks()[0])
    a, b = tensors["in.frame_range"].tolist()
    one = tensors["in.latents_noisy"][:1]
    latents = torch.cat((one, one.flip(-1), 2 * one))
    t = tensors["in.timestep_noisy"][:1].expand(3, -1, -1)
    single = [model()(x[None], t[:1], chunk_context(given, x[None], a, b), save=True) for x in latents]
    both, state = model()(latents, t, chunk_context(given, latents, a, b), save=True)
    assert worst(both, torch.cat([out for out, _ in single])) < 1e-5
    # and so does a chunk later, at another frame offset for every sample
    nxt = vectors(streamed_chunks()[1])
    lat = nxt["in.latents_noisy"][:1].expand(3, -1, -1, -1, -1).contiguous()
    t = nxt["in.timestep_noisy"][:1].expand(3, -1, -1)
    a, b = nxt["in.frame_range"].tolist()
    offsets = torch.tensor([a, a + 3, a + 30])
    camera, plucker = given["camera_conditions"][:, a:b], given["chunk_plucker"][:, :, a:b]

    def context(offset):
        n = len(offset)
        return model().prepare(
            Grid(*grid_of(lat)), offset, text=same_rows(given["text"][:1, 0], n),
            text_mask=same_rows(given["text_mask"][:1], n), camera=same_rows(camera[:1], n),
            plucker=same_rows(plucker[:1], n),
        )  # fmt: skip

    together, _ = model()(lat, t, context(offsets), state)
    for i, (_, own) in enumerate(single):
        alone, _ = model()(lat[i : i + 1], t[:1], context(offsets[i : i + 1]), own)
        assert worst(together[i : i + 1], alone) < 1e-5


def test_embeddings_of_masked_text_have_no_effect():
    tensors = vectors("single_forward")
    latents, text, mask = tensors["in.latents"], tensors["in.text"], tensors["in.text_mask"]
    conditions = (tensors["in.camera_conditions"], tensors["in.chunk_plucker"])
    other = torch.where(mask[:, None, :, None] > 0, text, text + 1)
    assert worst(other, text) > 0
    contexts = [context_for(latents, 0, t, mask, *conditions) for t in (text, other)]
    assert worst(*[model()(latents, tensors["in.timestep"], context)[0] for context in contexts]) == 0


INNER = (
    "act.", "int.", "act_noisy.", "act_clean.", "trace.", "sched.", ".mid.", ".num_", ".den_", "out.sinusoid", "out.emb"
)  # fmt: skip


@pytest.fixture
def rewritten(tmp_path, monkeypatch):
    """What tests read from then on: the vectors after a change, a function of name and tensor (None drops it)."""
    source = golden("dit")

    def rewrite(change):
        folder = tmp_path / "dit"
        folder.mkdir()
        for name in ("config.json", "model_state.safetensors"):
            shutil.copy(source / name, folder)
        for path in set(source.glob("*.safetensors")) - {source / "model_state.safetensors"}:
            changed = {name: change(name, tensor) for name, tensor in load_file(path).items()}
            save_file({name: t for name, t in changed.items() if t is not None}, folder / path.name)
        monkeypatch.setenv("SANAWM_GOLDEN", str(tmp_path))

    return rewrite


def compare_outputs():
    """Every comparison that reads inner values too, but that of the inside of a block."""
    test_timestep_embedding()
    for case in sorted({k.split(".")[0] for k in vectors("gdn_op") if not k.startswith("full")}):
        test_gated_delta_rule(case)
    test_camera_branch_over_chunks()
    test_single_forward_and_its_activations()
    for name in streamed_chunks():
        test_streamed_chunk_from_its_recorded_cache(name)
    test_sampler_three_chunks()


@pytest.mark.slow
def test_files_without_inner_values_are_compared_by_their_outputs(rewritten):
    rewritten(lambda name, tensor: None if any(part in name for part in INNER) else tensor)
    compare_outputs()
    with pytest.raises(pytest.skip.Exception, match="no inner values"):
        test_inside_of_the_first_block()


@pytest.mark.slow
def test_files_with_some_inner_values_are_compared_by_those(rewritten):
    kept = "act.block1.out", "act_clean.block2.out", "int.block0.cam.q", "trace.chunk1.write.model_out"
    rewritten(lambda name, tensor: None if any(p in name for p in INNER) and name not in kept else tensor)
    compare_outputs()
    test_inside_of_the_first_block()


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", ["act.block2.mlp_out", "act_noisy.block1.out", "chunk1.mid.scan_rev", "trace.chunk1.step1.model_in"]
)
def test_a_wrong_inner_value_is_noticed(rewritten, which):
    rewritten(lambda name, tensor: tensor + 0.05 if name == which else tensor)
    with pytest.raises(AssertionError, match=which.split(".", 1)[1].removeprefix("mid.")):
        compare_outputs()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["out", "out_clean", "chunk1.out.cam_raw", "a_first.out.out", "out.latents"])
def test_a_file_without_its_outputs_is_an_error(rewritten, which):
    rewritten(lambda name, tensor: None if name == which else tensor)
    with pytest.raises(KeyError, match=which.removeprefix("chunk1.out.").removeprefix("a_first.out.")):
        compare_outputs()


def test_an_inner_value_that_we_do_not_compute_is_an_error(rewritten):
    rewritten(lambda name, tensor: tensor)
    path = golden("dit") / "single_forward.safetensors"
    save_file(load_file(path) | {"act.block0.something": torch.zeros(1)}, path)
    with pytest.raises(AssertionError, match=r"not computed here: \['block0.something'"):
        test_single_forward_and_its_activations()
