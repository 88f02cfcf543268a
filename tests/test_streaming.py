"""The official layout from hub to frames, end to end: fetch, load, step, fork, refine, guide, on tiny weights."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import torch

import sanawm_env  # noqa: F401
from sanawm_env.camera.twist import hold
from sanawm_env.cli import main
from sanawm_env.engines.sanawm.prompts import Prompts
from sanawm_env.engines.sanawm.sampler import shifted_timesteps
from sanawm_env.envs.env import SanaWMEnv
from sanawm_env.recording.episode import EpisodeWriter, RecordedEpisode, Step, begin
from sanawm_env.viewer.session import Session
from sanawm_env.world import tree
from sanawm_env.world.folders import world_folder
from sanawm_env.world.state import WorldState, stack
from sanawm_env.world.world import World
from tests.standin_hub import fetched
from tests.worlds import drive, picture

pytestmark = pytest.mark.slow  # a hub is written, fetched from and loaded

FORWARD, TURN = (0, 0, 0.5, 0, 0, 0), (0, 0, 0, 0, 0.4, 0)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A home with every world fetched from a local hub, and one prompt encoded."""
    worlds = {"streaming": ("dit", "codec", "text", "refiner"), "chunk-causal": ("dit", "codec", "text")}
    with fetched(tmp_path_factory.mktemp("home"), worlds) as home:
        prompts = home / "prompts.txt"
        prompts.write_text("a quiet street\n")
        for world in worlds:
            main(["encode-prompts", str(prompts), "--world", world])
        yield home


@pytest.fixture(scope="module")
def world(hub):
    return World.load("streaming")


@pytest.fixture(scope="module")
def scene(world):
    return world.scene(picture(), "a quiet street")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_gym_make_runs_the_official_layout(hub):
    env = gym.make("SanaWM/Explore-v0", world="streaming", scenes=[picture()], max_episode_chunks=2)
    obs, info = env.reset(seed=0, options={"prompt": "a quiet street"})
    assert env.observation_space.contains(obs)
    assert env.unwrapped.scene.intrinsics_source == "default"
    assert env.unwrapped.world.mode == "streaming"
    np.testing.assert_allclose(info["intrinsics"], [48, 48, 48, 32], atol=1e-4)  # 90 degrees across 96 pixels
    for _ in range(2):
        obs, _, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(obs)
    assert truncated and not terminated
    assert env.unwrapped.clip.frames.shape == (24, 64, 96, 3)


def test_an_unknown_prompt_fails_with_the_command_to_run(world):
    with pytest.raises(ValueError, match="sanawm encode-prompts"):
        world.scene(picture(), "something else")


def test_blanks_around_a_prompt_do_not_count(world, scene):
    assert world.scene(picture(), "  a quiet street\r\n").key == scene.key
    with pytest.raises(TypeError, match="string"):
        world.scene(picture(), 3)


def test_an_unknown_prompt_is_encoded_where_that_is_allowed(hub, world, scene):
    allowed = World.load("streaming", text_encoder=True)
    assert allowed.weights_hash == world.weights_hash
    fresh = allowed.scene(picture(), "never encoded before")
    assert fresh.conditions.text.shape == scene.conditions.text.shape
    assert not torch.equal(fresh.conditions.text, scene.conditions.text)


def test_the_camera_and_the_prompt_matter(world, scene):
    state = world.begin(scene)
    _, (forward,) = drive(world, state, FORWARD)
    _, (turn,) = drive(world, state, TURN)
    assert not torch.equal(forward.latents, turn.latents)


@pytest.mark.parametrize("policy", ["tails", "latents"])
def test_a_restored_state_goes_on_bit_for_bit(world, scene, policy, tmp_path):
    state, _ = drive(world, world.begin(scene), FORWARD, TURN)
    kept = state if policy == "tails" else world.without_caches(state)
    if policy == "latents":
        assert kept.nbytes < state.nbytes
    _, (expected,) = drive(world, state, FORWARD)
    _, (again,) = drive(world, kept, FORWARD)
    assert torch.equal(again.frames, expected.frames)
    kept.save(tmp_path / "state.safetensors")
    loaded = WorldState.load(tmp_path / "state.safetensors", world)
    _, (from_disk,) = drive(world, loaded, FORWARD)
    assert torch.equal(from_disk.frames, expected.frames)


def test_the_latents_policy_of_an_environment_drops_the_caches_and_changes_no_frame(world):
    env = SanaWMEnv(world, scenes=[picture()], snapshots="latents")
    env.reset(seed=0, options={"prompt": "a quiet street"})
    env.step(np.zeros(6))
    here = env.snapshot()
    assert here.slot.memory.decoder.tails is None
    env.step(np.full(6, 0.5))
    expected = env.clip.frames.copy()
    env.restore(here)
    env.step(np.full(6, 0.5))
    np.testing.assert_array_equal(env.clip.frames, expected)


def test_slots_of_different_depth_step_together(world, scene):
    deep, _ = drive(world, world.begin(scene, 1), FORWARD)
    both = stack([deep, world.begin(scene, 2), world.without_caches(deep)])
    after, (clip,) = drive(world, both, TURN)
    assert clip.batch_rows == ((0, 1),) * 3
    assert torch.equal(clip.frames[0], clip.frames[2])
    assert [slot.chunk for slot in after.slots] == [2, 1, 2]


@pytest.fixture(scope="module")
def two_prompts(hub):
    for prompts in ("rain", "snow"):
        (hub / "more.txt").write_text(prompts)
        main(["encode-prompts", str(hub / "more.txt")])


def test_a_prompt_changed_in_mid_episode_is_what_follows(world, scene, two_prompts, monkeypatch):
    state, _ = drive(world, world.begin(scene), FORWARD)
    with monkeypatch.context() as patch:
        patch.setattr(world.engine, "encode_image", lambda image: pytest.fail("the picture is encoded already"))
        rain = world.with_prompt(state, " rain\n")
    assert (rain.slots[0].scene.prompt, state.slots[0].scene.prompt) == ("rain", "a quiet street")
    assert rain.slots[0].memory is state.slots[0].memory
    _, (wet,) = drive(world, rain, FORWARD)
    _, (dry,) = drive(world, state, FORWARD)
    assert not torch.equal(wet.latents, dry.latents)
    _, (again,) = drive(world, world.with_prompt(rain, "a quiet street"), FORWARD)
    assert torch.equal(again.frames, dry.frames)
    assert world.with_prompt(state, "a quiet street").slots[0] is state.slots[0]
    # before the first chunk it is the state that begins with that prompt
    begun = world.begin(world.scene(picture(), "rain"), 5)
    changed = world.with_prompt(world.begin(scene, 5), "rain")
    assert changed.slots[0].scene.key == begun.slots[0].scene.key
    assert torch.equal(drive(world, changed, TURN)[1][0].frames, drive(world, begun, TURN)[1][0].frames)
    both = world.with_prompt(stack([state, state]), ["rain", "snow"])
    assert [slot.scene.prompt for slot in both.slots] == ["rain", "snow"]


def test_a_changed_prompt_reaches_the_refiner(hub, two_prompts):
    world = World.load("streaming", refiner=True)
    state, _ = drive(world, world.begin(world.scene(picture(), "a quiet street")), FORWARD)
    rain = world.with_prompt(state, "rain")
    expected = world.scene(picture(), "rain").conditions.refiner_text
    assert torch.equal(rain.slots[0].memory.refiner.text, expected[0])
    assert rain.slots[0].memory.refiner.history is state.slots[0].memory.refiner.history
    _, (wet,) = drive(world, rain, FORWARD)
    _, (dry,) = drive(world, state, FORWARD)
    assert not torch.equal(wet.frames, dry.frames)


def test_prompts_that_cannot_be_taken_change_nothing(world, scene, two_prompts):
    state = stack([world.begin(scene)] * 2)
    for prompt, error, told in (
        ("never encoded", ValueError, "sanawm encode-prompts"),
        (["rain"], ValueError, "each of 2 episodes"),
        (["rain", 3], TypeError, "string"),
        (None, TypeError, "string"),
    ):
        with pytest.raises(error, match=told):
            world.with_prompt(state, prompt)
    nano = World.load("nano")
    start = nano.begin(nano.scene(nano.starts[0]))
    assert nano.with_prompt(start, "").slots[0] is start.slots[0]
    with pytest.raises(ValueError, match="no text encoder"):
        nano.with_prompt(start, "rain")
    env = SanaWMEnv(world, scenes=[picture()])
    with pytest.raises(gym.error.ResetNeeded):
        env.set_prompt("rain")
    env.reset(seed=0, options={"prompt": "a quiet street"})
    with pytest.raises(TypeError, match="string"):
        env.set_prompt(["rain"])
    with pytest.raises(ValueError, match="encode-prompts"):
        env.set_prompt("never encoded")
    assert env.scene.prompt == "a quiet street"


def test_slots_of_a_vector_take_prompts_of_their_own(hub, two_prompts):
    envs = gym.make_vec("SanaWM/Explore-v0", num_envs=3, world="streaming", scenes=[picture()], batch_invariant=True)
    envs.reset(seed=[1, 1, 1], options={"prompt": "a quiet street"})
    with pytest.raises(ValueError, match="encode-prompts"):
        envs.set_prompt(["rain", "never encoded"], [0, 1])
    assert [env.scene.prompt for env in envs.envs] == ["a quiet street"] * 3
    envs.set_prompt("rain", [1])
    envs.set_prompt(["snow"], [2])
    envs.restore(envs.snapshot([0]), [0])
    envs.step(np.zeros((3, 6), np.float32))
    frames = [env.clip.frames for env in envs.envs]
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with pytest.raises(ValueError, match="one prompt or one for each of 3"):
        envs.set_prompt(["rain", "snow"])


def test_an_episode_with_changed_prompts_is_imagined_again(hub, two_prompts, tmp_path):
    settings = {"world": "streaming", "max_episode_chunks": 3}
    env = SanaWMEnv(scenes=[picture()], **settings)
    begin(env, picture(), 3, prompt="a quiet street")
    with EpisodeWriter(tmp_path / "episode", env, env.config, 3, sheet=False) as writer:
        for prompt in ("rain", None, "snow"):
            if prompt is not None:
                env.set_prompt(prompt)
            action = np.full(6, 0.3)
            reward = env.step(action)[1]
            writer.add(Step.of(env, action, reward))
    episode = RecordedEpisode.open(tmp_path / "episode")
    assert (episode.meta["prompt"], episode.meta["prompts"]) == ("a quiet street", [[0, "rain"], [2, "snow"]])
    main(["replay", str(tmp_path / "episode"), "--verify"])
    meta = json.loads((tmp_path / "episode" / "meta.json").read_text())
    for wrong in ([[9, "rain"]], [["0", "rain"]], "rain", [[0, 1]], [[True, "rain"]]):
        (tmp_path / "episode" / "meta.json").write_text(json.dumps(meta | {"prompts": wrong}))
        with pytest.raises(ValueError, match="prompts"):
            RecordedEpisode.open(tmp_path / "episode")


def test_a_session_goes_on_under_another_prompt(world, two_prompts):
    session = Session(world)
    session.begin(picture(), prompt="a quiet street", seed=1)
    first = session.drive("w-24")
    dry = session.frames(session.drive("w-24").id)
    session.restore(first.id)
    session.set_prompt("rain")
    assert session.prompt(first.id) == "rain"
    wet = session.drive("w-24")
    assert not np.array_equal(session.frames(wet.id), dry)
    assert session.prompt(wet.id) == "rain"
    again = session.revise(wet.id, "w-24")  # under its own prompt, and so the same
    assert session.prompt(again.id) == "rain"
    other = session.reseed(again.id, 1)
    assert np.array_equal(session.frames(other.id), session.frames(again.id))
    session.set_prompt("snow")
    revised = session.revise(other.id, "d-24")  # what comes after it still follows what was said
    assert session.prompt(revised.id) == "snow"
    with pytest.raises(ValueError, match="encode-prompts"):
        session.set_prompt("never encoded")
    assert session.prompt(revised.id) == "snow"
    session.close()


def test_guided_worlds_carry_both_memories(hub):
    world = World.load("chunk-causal", timesteps=[1000, 500])
    assert world.config.sampler.guidance_scale > 1 and world.config.network.window == -1
    state = world.begin(world.scene(picture(), "a quiet street"))
    deep, clips = drive(world, state, FORWARD, TURN)
    assert len(deep.slots[0].memory.network) == 2
    assert not same(*deep.slots[0].memory.network)
    _, again = drive(world, state, FORWARD, TURN)
    assert torch.equal(again[1].frames, clips[1].frames)
    _, (pair,) = drive(world, stack([deep, deep]), FORWARD)
    _, (single,) = drive(world, deep, FORWARD)
    torch.testing.assert_close(pair.latents[:1].float(), single.latents.float(), atol=0.1, rtol=0.05)


def test_the_teacher_runs_its_own_sampler_and_the_decoder_of_whole_clips(hub):
    world = World.load("chunk-causal")
    sampler = world.config.sampler
    assert (sampler.name, sampler.flow_shift, len(sampler.timesteps)) == ("chunk_flow_euler", 9.8, 60)
    assert sampler.timesteps == pytest.approx(shifted_timesteps(60, 9.8))
    codec = world.engine.codec
    assert not codec.causal and not codec.vae.config.decoder_causal
    latents = torch.randn(2, 4, 4 + 3 * 6, 2, 3, generator=torch.Generator().manual_seed(0))
    state, shown = None, []
    for chunk in latents.split([4] + [3] * 6, dim=2):
        frames, state = codec.decode_video(chunk, state, first=state is None)
        shown.append(frames)
    # each chunk is the end of a clip that ends there; of a long one, of its last 13 latents, 97 frames
    for n, (end, frames) in enumerate(zip(range(4, 23, 3), shown, strict=True)):
        part = codec._raw(latents[:, :, max(0, end - 13) : end])
        whole = codec.vae.decode(part, causal=False).sample
        assert frames.shape[2] == 24 + (n == 0)
        assert torch.equal(frames, whole[:, :, -frames.shape[2] :])
    assert state.history.shape[2] == codec.replay_frames == 10


RECIPE = [1000, 967, 908, 764]


def test_other_steps_are_another_world(world, scene):
    other = World.load("streaming", timesteps=RECIPE, flow_shift=10)
    assert other.config.sampler.timesteps == (1000, 967, 908, 764)
    assert other is World.load("streaming", timesteps=tuple(RECIPE), flow_shift=10.0)
    assert other.weights_hash == World.load("streaming", timesteps=RECIPE).weights_hash  # the list decides
    assert other.weights_hash != world.weights_hash
    state, (clip,) = drive(other, other.begin(other.scene(picture(), "a quiet street")), FORWARD)
    _, (as_trained,) = drive(world, world.begin(scene), FORWARD)
    assert not torch.equal(clip.frames, as_trained.frames)
    with pytest.raises(ValueError, match="flow_shift and temperature"):
        world.check_state(state)


def test_a_shift_makes_a_list_of_as_many_steps(world):
    assert World.load("streaming", flow_shift=8).weights_hash == world.weights_hash  # its own
    assert World.load("streaming", flow_shift=10).config.sampler.timesteps == (1000, 968, 909, 769)
    teacher = World.load("chunk-causal", flow_shift=9.95).config.sampler
    assert teacher.timesteps == pytest.approx(shifted_timesteps(60, 9.95)) and teacher.flow_shift == 9.95


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"timesteps": [967, 1000]}, ValueError, "decrease"),
        ({"timesteps": []}, ValueError, "decrease"),
        ({"timesteps": [1200]}, ValueError, "1000"),
        ({"timesteps": [float("nan")]}, ValueError, "decrease"),
        ({"timesteps": "1000,967"}, TypeError, "numbers"),
        ({"timesteps": ["1000"]}, TypeError, "numbers"),
        ({"timesteps": 1000}, TypeError, "numbers"),
        ({"timesteps": [1000 - i / 10 for i in range(2000)]}, ValueError, "1000"),
        ({"flow_shift": 0}, ValueError, "flow_shift"),
        ({"flow_shift": float("inf")}, ValueError, "flow_shift"),
        ({"flow_shift": "8"}, ValueError, "flow_shift"),
    ],
)
def test_steps_that_are_none_are_a_sentence(options, error, told):
    with pytest.raises(error, match=told) as raised:
        World.load("nano", **options)
    assert len(str(raised.value)) < 300


def test_other_steps_are_flags_and_travel_in_episodes(tmp_path):
    common = ["rollout", "--twist", "0,0,0.3,0,0,0", "--chunks", "1", "--out", str(tmp_path)]
    main([*common, "--timesteps", "1000,600"])
    meta = RecordedEpisode.open(tmp_path).meta
    assert meta["env"]["timesteps"] == [1000, 600]
    assert meta["weights_hash"] == World.load("nano", timesteps=[1000, 600]).weights_hash
    main(["replay", str(tmp_path), "--verify"])
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--timesteps", "1000,x"])
    assert stopped.value.code == 2


def test_the_refiner_changes_the_picture_and_not_the_memory(hub, world, scene):
    refined = World.load("streaming", refiner=True)
    assert refined.mode == "streaming+refiner"
    state = refined.begin(refined.scene(picture(), "a quiet street"))
    deep, clips = drive(refined, state, FORWARD, TURN)
    plain, plain_clips = drive(world, world.begin(scene), FORWARD, TURN)
    assert same(deep.slots[0].memory.network, plain.slots[0].memory.network)
    assert not torch.equal(clips[1].frames, plain_clips[1].frames)
    _, (again,) = drive(refined, deep, FORWARD)
    _, (expected,) = drive(refined, deep, FORWARD)
    assert torch.equal(again.frames, expected.frames)
    with pytest.raises(ValueError, match="other weights"):
        world.advance(deep, np.broadcast_to(np.eye(4), (24, 4, 4)))


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_every_weight_only_precision_steps(hub, precision):
    world = World.load("streaming", precision=precision)
    _, (clip,) = drive(world, world.begin(world.scene(picture(), "a quiet street")), FORWARD)
    assert clip.frames.float().std() > 0


@pytest.mark.parametrize("offload", ["codec", ["refiner"], True])
def test_offloaded_parts_give_the_same_frames(hub, offload):
    here = World.load("streaming", refiner=True)
    away = World.load("streaming", refiner=True, offload=offload)
    assert away is not here and away.weights_hash == here.weights_hash
    state = here.begin(here.scene(picture(), "a quiet street"))
    _, expected = drive(here, state, FORWARD, TURN)
    _, clips = drive(away, state, FORWARD, TURN)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(clips, expected, strict=True))


def test_an_offloaded_encoder_gives_the_same_features(hub):
    folder = world_folder("streaming")
    features = {}
    for offload in (False, True):
        words = Prompts(folder, "streaming", load_encoders=True, refiner=True, offload=offload)
        for path in (folder / "prompts").glob("*"):
            path.unlink()
        words.encode(words.missing(["a quiet street"]), "cpu")
        features[offload] = words.features("a quiet street", "cpu")
    assert same(features[False], features[True])


def test_a_world_that_was_not_fetched_names_the_command(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("SANAWM_HOME", str(tmp_path))
    with pytest.raises((ValueError, FileNotFoundError), match="sanawm fetch streaming"):
        World.load("streaming")


def test_unknown_load_options_are_named():
    with pytest.raises(TypeError, match="precision"):
        World.load("nano", precison="bf16")
    with pytest.raises(ValueError, match="nvfp4"):
        World.load("nano", precision="int3")
    with pytest.raises(ValueError, match="no refiner"):
        World.load("nano", refiner=True)


def test_a_live_session_takes_a_prompt_and_its_moments_come_back_from_disk(world):
    session = Session(world, memory_limit=1)
    session.begin(picture(), prompt="a quiet street")
    first = session.drive("w-24")
    second = session.drive("d-12,none-12")
    expected = session.frames(second.id).copy()
    assert session.memory.on_disk == 2
    assert np.array_equal(session.frames(session.drive("d-12,none-12", at=first.id).id), expected)
    before = session.tree
    with pytest.raises(ValueError, match="sanawm encode-prompts"):
        session.begin(picture(), prompt="something else")
    assert session.tree is before
    session.close()


def test_the_command_line_rolls_out_from_a_prompt(hub, tmp_path, capsys):
    image = tmp_path / "start.png"
    from PIL import Image

    Image.fromarray(picture()).save(image)
    common = [
        "rollout",
        "--world",
        "streaming",
        "--image",
        str(image),
        "--actions",
        "w-24",
        "--out",
        str(tmp_path / "o"),
    ]
    main([*common, "--prompt", "a quiet street", "--fov-deg", "80"])
    assert (tmp_path / "o" / "video.mp4").stat().st_size > 0
    with pytest.raises(SystemExit) as stopped:
        main([*common, "--prompt", "not encoded"])
    assert stopped.value.code == 2
    assert "encode-prompts" in capsys.readouterr().err


def test_poses_reach_the_streaming_world_in_its_own_frame(world, scene):
    poses = hold(np.eye(4), np.asarray(FORWARD, float))
    state, clip = world.advance(world.begin(scene), poses)
    np.testing.assert_array_equal(clip.c2w[0], poses)
    np.testing.assert_array_equal(state.slots[0].c2w, poses[-1])


@pytest.mark.parametrize("options", [{}, {"refiner": True, "offload": True}], ids=str)
def test_threads_get_what_one_thread_alone_gets(hub, options):
    """Each drives an episode of its own in one world, all at the same time."""
    world = World.load("streaming", **options)
    scenes = [world.scene(picture(i), "a quiet street") for i in range(3)]

    def walk(i):
        ready.wait()
        return drive(world, world.begin(scenes[i], i), FORWARD, TURN, FORWARD)[1]

    ready = threading.Barrier(1)
    alone = [walk(i) for i in range(3)]
    ready = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(walk, range(3)))
    assert all(
        torch.equal(a.frames, b.frames) for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True)
    )
