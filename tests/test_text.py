"""Prompts: the official window of tokens, the attention cap, and the cache that spares the encoder."""

import pytest
import torch

from sanawm_env.cli.encode_prompts import EncodePrompts
from sanawm_env.engines.sanawm.prompts import PromptCache, Prompts
from sanawm_env.engines.sanawm.refiner.text import RefinerTextEncoder
from sanawm_env.engines.sanawm.text.gemma import TEXT_LEN, GemmaEncoder, instruction
from sanawm_env.world.world import World
from tests.standin_hub import write_gemma2, write_gemma3

pytest.importorskip("transformers")
IDENTITY = {"repository": "a", "revision": "b", "softcap": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    world = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    write_gemma2(world / "text")
    return world


@pytest.fixture(scope="module")
def encoder(folder):
    return GemmaEncoder.load(folder / "text", dtype=torch.float32)


def test_the_instruction_is_the_official_one():
    assert len(instruction()) == 1057
    assert instruction().endswith(": ")


def test_features_are_those_of_the_library_s_pipeline(encoder):
    from diffusers import SanaWMPipeline
    from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT

    features, mask = encoder.encode("a quiet street")
    tokens = encoder.tokenizer
    longest = len(tokens.encode(instruction())) + TEXT_LEN - 2
    batch = tokens(
        "\n".join(DEFAULT_CHI_PROMPT) + "a quiet street", padding="max_length", max_length=longest, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = encoder.model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    window = torch.cat((hidden[:, :1], hidden[:, -299:]), dim=1)
    assert torch.equal(features, window)
    assert features.shape == (1, 300, 32) and mask.shape == (1, 300)
    assert mask.sum() == 1 + 1 + len("a quiet street")  # start token, the instruction's last token, the prompt
    assert SanaWMPipeline  # the class whose text this is


def test_a_negative_prompt_stands_alone(encoder):
    features, mask = encoder.encode_negative("")
    assert features.shape == (1, 300, 32)
    assert mask.sum() == 1  # the start token


def test_a_long_prompt_is_cut(encoder):
    features, mask = encoder.encode("x" * 1000)
    assert features.shape == (1, 300, 32)
    assert mask.all()


def test_the_soft_cap_is_explicit_and_matters(folder, tmp_path):
    # scores far above the cap of 50
    # (loaded with the cap, so that the saved configuration names it)
    model = GemmaEncoder.load(folder / "text", dtype=torch.float32, softcap=True).model
    assert model.config.attn_logit_softcapping == 50
    for layer in model.layers:
        layer.self_attn.q_proj.weight.data.mul_(200)
        layer.self_attn.k_proj.weight.data.mul_(200)
    model.save_pretrained(tmp_path)
    GemmaEncoder.load(folder / "text").tokenizer.save_pretrained(tmp_path)
    plain = GemmaEncoder.load(tmp_path, dtype=torch.float32).encode("a street")[0]
    capped = GemmaEncoder.load(tmp_path, dtype=torch.float32, softcap=True).encode("a street")[0]
    assert (plain - capped).abs().max() > 1e-3


def test_the_cache_gives_back_what_was_kept_and_nothing_else(tmp_path):
    cache = PromptCache(tmp_path, IDENTITY)
    features, mask = torch.randn(1, 300, 4).bfloat16(), torch.ones(1, 300, dtype=torch.int64)
    cache.put(features, mask, "a street")
    found = cache.get("a street")
    assert torch.equal(found[0], features) and torch.equal(found[1], mask)
    assert cache.get("a road") is None
    assert cache.get("a street", "negative") is None
    for key, value in (("revision", "c"), ("softcap", True)):
        assert PromptCache(tmp_path, {**IDENTITY, key: value}).get("a street") is None


def test_a_damaged_file_is_named(tmp_path):
    cache = PromptCache(tmp_path, IDENTITY)
    cache.put(torch.zeros(1, 300, 4), torch.ones(1, 300), "a street")
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="delete it"):
        cache.get("a street")


def test_unknown_prompts_name_the_command_and_known_ones_need_no_encoder(folder, tmp_path):
    Prompts(folder, "streaming", load_encoders=True).features("a street", "cpu")
    (tmp_path / "prompts").mkdir()
    for path in (folder / "prompts").iterdir():
        (tmp_path / "prompts" / path.name).write_bytes(path.read_bytes())
    without = Prompts(tmp_path, "streaming")
    assert without.features("a street", "cpu").text.shape == (1, 300, 32)
    with pytest.raises(ValueError, match=r"sanawm encode-prompts FILE --world streaming"):
        without.features("a road", "cpu")
    with pytest.raises(TypeError, match="string"):
        without.features(7, "cpu")
    with pytest.raises(FileNotFoundError, match="sanawm fetch streaming --parts text"):
        Prompts(tmp_path, "streaming", load_encoders=True).features("a road", "cpu")


def test_the_refiner_s_encoder_gives_padded_features_of_its_prompt(tmp_path):
    import shutil

    write_gemma3(tmp_path / "hub")
    for inside, outside in (("text", "gemma3_12b"), ("connectors", "refiner_diffusers/connectors")):
        shutil.copytree(tmp_path / "hub" / outside, tmp_path / "refiner" / inside)
    encoder = RefinerTextEncoder.load(tmp_path / "refiner", dtype=torch.float32, length=256)
    features, mask = encoder.encode("a quiet street")
    assert features.shape == (1, 256, 32) and mask.shape == (1, 256)
    again, other = encoder.encode("a quiet street")[0], encoder.encode("a loud street")[0]
    assert torch.equal(again, features) and not torch.equal(other, features)
    shutil.rmtree(tmp_path / "refiner" / "connectors")
    with pytest.raises(FileNotFoundError, match="sanawm fetch streaming --parts refiner"):
        RefinerTextEncoder.load(tmp_path / "refiner")


CANNOT_BE = {
    "with a NUL": ("a\0street", ValueError, "without NUL"),
    "half a letter": ("a \ud83d street", ValueError, "broken Unicode"),
    "endless": ("street " * 10_000, ValueError, "at most 20,000 letters, got 69,999"),
    "a number": (7, TypeError, "must be a string"),
    "bytes": (b"a street", TypeError, "must be a string"),
}


@pytest.mark.parametrize("kind", CANNOT_BE)
def test_prompts_that_no_encoder_reads_are_refused_in_a_sentence(folder, tmp_path, kind):
    prompt, error, says = CANNOT_BE[kind]
    nano = World.load("nano")
    here = nano.begin(nano.scene(nano.starts[0]), seed=0)
    for read in (
        lambda: Prompts(folder, "streaming", load_encoders=True).features(prompt, "cpu"),
        lambda: nano.scene(nano.starts[0], prompt=prompt),
        lambda: nano.with_prompt(here, [prompt]),
    ):
        with pytest.raises(error, match=says) as refused:
            read()
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
    if isinstance(prompt, str) and "half" not in kind:
        (tmp_path / "prompts.txt").write_text(f"a street\n\n# none\n{prompt}\n")
        with pytest.raises(ValueError, match=f"Line 4 of .*{says}"):
            EncodePrompts(file=tmp_path / "prompts.txt", world="nano").run()
