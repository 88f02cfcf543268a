"""A hub that holds tiny random weights in exactly the official layout: folders, file names, key names, file kinds. And
a server that speaks as the hub does, for its own client library."""

import copy
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save_file

from sanawm_env.engines.sanawm.fetch import fetch
from sanawm_env.engines.sanawm.network.config import SanaWMConfig
from sanawm_env.engines.sanawm.network.model import SanaWM

OWNER = "Efficient-Large-Model"
NETWORK = SanaWMConfig(
    latent_channels=4,
    hidden_size=32,
    depth=4,
    num_heads=2,
    head_dim=16,
    caption_channels=32,
    text_len=300,
    input_size=2,
)
VAE = {
    "latent_channels": 4, "block_out_channels": (8, 16, 32, 64), "decoder_block_out_channels": (8, 16, 32),
    "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1), "encoder_causal": True,
    "decoder_causal": True, "scaling_factor": 1.0, "encoder_spatial_padding_mode": "zeros",
    "decoder_spatial_padding_mode": "reflect", "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
REFINER = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12,
    "cross_attention_dim": 24, "num_layers": 2, "caption_channels": 32, "audio_in_channels": 4,
    "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
}  # fmt: skip


def network_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict as in the official file: every entry, random and not trivial."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) * (0.2 if t.ndim > 1 else 0.5)
        for name, t in SanaWM(NETWORK).state_dict().items()
    }


def training_checkpoint(weights: Mapping[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> dict:
    """A training's whole state, as `model.pt` holds it: generator, critic, and two moments of every weight of both."""
    generator = {f"model.{name}": t.to(dtype) for name, t in weights.items()}
    optimizer = {
        "state": {
            i: {"step": torch.tensor(7.0), "exp_avg": t.float(), "exp_avg_sq": t.float().square()}
            for i, t in enumerate(weights.values())
        },
        "param_groups": [{"lr": 1e-5, "betas": (0.0, 0.999), "params": list(range(len(weights)))}],
    }
    return {
        "generator": generator,
        "critic": {f"model.{name}": t.flip(0).contiguous() for name, t in weights.items()},
        "generator_optimizer": optimizer,
        "critic_optimizer": copy.deepcopy(optimizer),
        "step": 7,
    }


def write_hub(folder: Path) -> Path:
    """Write owner/repository/... below `folder` and return it."""
    return shutil.copytree(_hub().name, folder, dirs_exist_ok=True)


@cache
def _hub() -> TemporaryDirectory:
    """Made once in a process, and never written to."""
    made = TemporaryDirectory()
    _write_hub(Path(made.name))
    return made


def _write_hub(folder: Path) -> None:
    from diffusers import AutoencoderKLLTX2Video, SanaWMLTX2RefinerTransformer3DModel

    torch.manual_seed(0)
    streaming = folder / OWNER / "SANA-WM_streaming"
    (streaming / "sana_dit").mkdir(parents=True)
    weights = network_weights()
    torch.save(training_checkpoint(weights), streaming / "sana_dit" / "model.pt")
    AutoencoderKLLTX2Video(**VAE).save_pretrained(streaming / "ltx2_causal_vae")
    SanaWMLTX2RefinerTransformer3DModel(**REFINER).save_pretrained(streaming / "refiner_diffusers" / "transformer")
    write_gemma3(streaming)

    causal = folder / OWNER / "SANA-WM_chunk_causal" / "dit"
    causal.mkdir(parents=True)
    save_file(weights, causal / "sana_wm_chunk_causal_1600m_720p.safetensors")
    bidirectional = folder / OWNER / "SANA-WM_bidirectional"
    AutoencoderKLLTX2Video(**VAE | {"decoder_causal": False}).save_pretrained(bidirectional / "vae")
    write_gemma2(folder / OWNER / "gemma-2-2b-it")
    write_pipeline(folder / OWNER / "SANA-WM_bidirectional-diffusers")


@contextmanager
def fetched(home: Path, worlds: Mapping[str, Sequence[str]]) -> Iterator[Path]:
    """`home` as $SANAWM_HOME, with these parts of these worlds fetched from such a hub, at 64 x 96 pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANAWM_HOME", str(home))
        hub = write_hub(home / "hub")
        for name, parts in worlds.items():
            fetch(name, parts, source=hub, height=64, width=96)
        yield home


def write_pipeline(folder: Path) -> None:
    """diffusers' own layout of the bidirectional model."""
    from diffusers import (
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        SanaWMPipeline,
        SanaWMTransformer3DModel,
    )
    from transformers import Gemma2Config, Gemma2ForCausalLM

    transformer = SanaWMTransformer3DModel(
        in_channels=4, num_layers=4, hidden_size=32, num_attention_heads=2, linear_head_dim=16, caption_channels=32,
        chunk_plucker_post_attn_blocks=4,
    )  # fmt: skip
    SanaWMPipeline(
        tokenizer=tokenizer(),
        text_encoder=Gemma2ForCausalLM(Gemma2Config(**TEXT, query_pre_attn_scalar=16)),
        vae=AutoencoderKLLTX2Video(**VAE),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    ).save_pretrained(folder)


def tokenizer():
    """Words of a small alphabet, with Gemma's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *letters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip


def write_gemma2(folder: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    Gemma2ForCausalLM(Gemma2Config(**TEXT, query_pre_attn_scalar=16)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    shutil.copyfile(folder / "model.safetensors", folder / "gemma-2-2b-it.safetensors")  # the same once more


def write_gemma3(streaming: Path) -> None:
    """The refiner's text encoder and connectors."""
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    text = Gemma3TextConfig(**TEXT, query_pre_attn_scalar=16)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(streaming / "gemma3_12b")
    tokenizer().save_pretrained(streaming / "gemma3_12b")
    LTX2TextConnectors(
        caption_channels=TEXT["hidden_size"],
        text_proj_in_factor=TEXT["num_hidden_layers"] + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=16,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=16,
        connector_rope_base_seq_len=1024,
        rope_theta=10000.0,
        rope_double_precision=True,
        causal_temporal_positioning=False,
    ).save_pretrained(streaming / "refiner_diffusers" / "connectors")


class Hub(ThreadingHTTPServer):
    """A hub over HTTP on this machine, as far as its client library asks.

    folder: owner/repository/files. main: the commit that the branch of that name stands for; any other commit is
    itself. gone: commits that are not there any more. left: bytes of files that it still sends before it fails, None
    for all. sent: (path, first byte, bytes) of every file that was sent.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.left: int | None = None
        self.main, self.gone = "a" * 40, set()
        self.sent: list[tuple[str, int, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, revision: str) -> str | None:
        known = len(revision) == 40 and set(revision) <= set("0123456789abcdef")
        commit = revision if known else self.main if revision == "main" else None
        return None if commit in self.gone else commit

    def handle_error(self, request, client_address) -> None:
        """Clients that hang up are no news."""


@contextmanager
def serving(folder: Path, cache: Path) -> Iterator[Hub]:
    """A hub on this machine that huggingface_hub asks, with a cache of its own."""
    from huggingface_hub import constants, file_download

    server = Hub(folder)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
        patch.setattr(file_download.time, "sleep", lambda seconds: None)
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()


class _Answers(BaseHTTPRequestHandler):
    """Repositories, their trees and their files."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        if path[:2] == ["api", "models"]:
            return self._describe(path[2:])
        owner, repository, _, revision, *names = path
        commit, file = self.server.commit(revision), self.server.folder.joinpath(owner, repository, *names)
        if commit is None or not file.is_file():
            return self._refuse(404, "RevisionNotFound" if commit is None else "EntryNotFound")
        if body and self.server.left == 0:
            return self._refuse(503, "Overloaded")
        data = file.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            part = data[first : None if self.server.left is None else first + self.server.left]
            if self.server.left is not None:
                self.server.left -= len(part)
            self.server.sent.append(("/".join(names), first, len(part)))
            self.wfile.write(part)
            if len(part) < len(data) - first:
                self.close_connection = True

    def _describe(self, path: list[str]) -> None:
        owner, repository, *rest = path
        folder = self.server.folder / owner / repository
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.server.commit(revision)
        if not folder.is_dir() or commit is None:
            return self._refuse(404, "RepoNotFound" if commit else "RevisionNotFound")
        files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
        siblings = [
            {"rfilename": name, "size": size, "blobId": name}
            | ({"lfs": {"size": size, "sha256": _sha256(folder / name), "pointerSize": 1}} if size > 10**6 else {})
            for name, size in files.items()
        ]
        answer: object = {"id": f"{owner}/{repository}", "sha": commit, "siblings": siblings}
        if rest[:1] == ["tree"]:
            answer = [{"type": "file", "oid": name, "size": size, "path": name} for name, size in files.items()]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
