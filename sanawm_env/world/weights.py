"""Worlds on disk: the shipped ones, and official weights fetched from the hub and converted once.

A world folder holds `config.json`, `network.safetensors`, the codec (`codec.safetensors` or `codec/`) and, where the
world has them, `text/`, `refiner/`, `prompts/` and `manifest.json` (which parts came from where). Fetched worlds lie
under `$SANAWM_HOME` (by default ~/.cache/sanawm-env). Files and names: codec_text_refiner.md section (e), dit.md 1.1.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sanawm_env.network.config import SanaWMConfig
from sanawm_env.network.model import SanaWM
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.sampler import SamplerConfig, shifted_timesteps
from sanawm_env.world.state import save_whole

SHIPPED = Path(__file__).parent.parent / "assets"
OWNER = "Efficient-Large-Model"
INERT = ("recall_gate", "y_embedder.y_embedding", "raymap_embedder.")
"""Entries of the network that nothing reads; a checkpoint may lack them (dit.md 1.1)."""


@dataclass(frozen=True)
class Part:
    """Where one part of a world comes from.

    repository: on the hub, without its owner. patterns: files to download. folders: world folder -> folder in the
    repository; none for a network, which is converted instead. gigabytes: to download. licence: under which terms, as
    far as known.
    """

    repository: str
    patterns: tuple[str, ...]
    gigabytes: float
    licence: str
    folders: tuple[tuple[str, str], ...] = ()


LTX_TERMS = "derived from Lightricks' LTX-2, whose own terms can apply beside the card's: disputed"
GEMMA_TERMS = "Google's Gemma terms"
CARD_TERMS = "the card is reported to say Apache-2.0; not verified, and disputed"
PIPELINE, WHOLE = "SANA-WM_bidirectional-diffusers", (("pipeline", "."),)
CODEC = Part("SANA-WM_streaming", ("ltx2_causal_vae/*",), 2.4, LTX_TERMS, (("codec", "ltx2_causal_vae"),))
TEXT = Part(
    "gemma-2-2b-it",
    ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "special_tokens_map.json"),
    5.2,
    GEMMA_TERMS,
    (("text", "."),),
)
REFINER = Part(
    "SANA-WM_streaming",
    ("refiner_diffusers/*", "gemma3_12b/*"),
    62.0,
    f"{LTX_TERMS}; its text encoder: {GEMMA_TERMS}",
    (
        ("refiner/transformer", "refiner_diffusers/transformer"),
        ("refiner/connectors", "refiner_diffusers/connectors"),
        ("refiner/text", "gemma3_12b"),
    ),
)
OFFICIAL: dict[str, dict[str, Part]] = {
    "streaming": {
        "dit": Part("SANA-WM_streaming", ("sana_dit/model.pt",), 10.6, CARD_TERMS),
        "codec": CODEC,
        "text": TEXT,
        "refiner": REFINER,
    },
    "chunk-causal": {
        "dit": Part("SANA-WM_chunk_causal", ("dit/*.safetensors",), 10.6, "card not seen: read it before use"),
        "codec": CODEC,
        "text": TEXT,
        "refiner": REFINER,
    },
    "bidirectional": {
        "dit": Part(PIPELINE, ("transformer/*", "scheduler/*", "model_index.json"), 10.6, CARD_TERMS, WHOLE),
        "codec": Part(PIPELINE, ("vae/*",), 2.4, LTX_TERMS, WHOLE),
        "text": Part(PIPELINE, ("text_encoder/*", "tokenizer/*"), 5.2, GEMMA_TERMS, WHOLE),
    },
}
OFFLINE = ("bidirectional",)
"""Those that make whole clips and cannot be stepped: diffusers runs them (`sanawm render`)."""


def home() -> Path:
    """Folder of fetched worlds: `$SANAWM_HOME`, by default ~/.cache/sanawm-env."""
    return Path(os.environ.get("SANAWM_HOME", Path.home() / ".cache" / "sanawm-env"))


def official_folder(name: str) -> Path:
    """Where the official world of that name lies once it is fetched."""
    return home() / "worlds" / name


def shipped_worlds() -> list[str]:
    """Worlds inside this package."""
    return sorted(folder.parent.name for folder in SHIPPED.glob("*/config.json"))


def world_address(world: str | os.PathLike) -> str:
    """The name of a world, or its folder made absolute, so that it is found from elsewhere."""
    return str(world) if world in known_worlds() else os.path.abspath(world)


def known_worlds() -> list[str]:
    """Names that `World.load` takes here and now besides folders: shipped and fetched worlds."""
    return sorted({*shipped_worlds(), *(folder.parent.name for folder in home().glob("worlds/*/config.json"))})


def world_folder(name: str | os.PathLike) -> Path:
    """The folder of a world given by name or as a folder itself.

    Raises ValueError naming the known worlds, or the command that fetches an official one.
    """
    text = str(name)
    for folder in (SHIPPED / text, official_folder(text)):
        if text in known_worlds() and (folder / "config.json").is_file():
            return folder
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if text in OFFLINE:
        raise ValueError(f"The {text} world makes whole clips and cannot be stepped: use `sanawm render`.")
    if text in OFFICIAL:
        raise ValueError(f"The {text} world is not on this machine yet: run `sanawm fetch {text}`.")
    raise ValueError(
        f"Unknown world {text!r}; the known worlds are {', '.join(known_worlds())}, or give a folder that holds "
        f"config.json and weights. To be fetched: {', '.join(OFFICIAL)}."
    )


def read_manifest(folder: Path) -> dict:
    """What `fetch` wrote about a world folder, {} for other worlds."""
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / "manifest.json").read_text()))
    return {}


def recorded_sha256(folder: Path) -> str | None:
    """SHA-256 of network and codec as it was when they were converted, None for worlds that were not."""
    return read_manifest(folder).get("sha256")


def network_config(weights: Mapping[str, Tensor]) -> SanaWMConfig:
    """The sizes of the network these weights belong to; ValueError naming the entry that is missing."""
    try:
        hidden, latent = weights["x_embedder.proj.weight"].shape[:2]
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        softmax = [i for i in range(depth) if f"blocks.{i}.attn.conv_k.weight" not in weights]
        heads = weights["blocks.0.attn.beta_proj.weight"].shape[0]
        captions = weights["y_embedder.y_proj.fc1.weight"].shape[1]
        embedding = weights.get("y_embedder.y_embedding")
        return SanaWMConfig(
            latent_channels=latent,
            hidden_size=hidden,
            depth=depth,
            num_heads=heads,
            head_dim=hidden // heads,
            mlp_ratio=weights["blocks.0.mlp.point_conv.conv.weight"].shape[1] / hidden,
            caption_channels=captions,
            text_len=SanaWMConfig.text_len if embedding is None else embedding.shape[0],
            plucker_channels=weights["plucker_embedder.proj.weight"].shape[1],
            softmax_every_n=softmax[0] + 1 if softmax else depth + 1,
            conv_kernel_size=weights["blocks.0.attn.conv_k.weight"].shape[-1],
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"These are not the weights of a SANA-WM network: {error} is missing.") from error


def read_official_dit(path: Path) -> dict[str, Tensor]:
    """State dict of an official network file, `pos_embed` left out (dit.md 1.1).

    A pickle is read with `weights_only=True`, memory-mapped: nothing in it is run. Raises ValueError in one sentence
    for a file that is damaged, holds more than tensors, or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            weights = weights.get("generator", weights)
            weights = weights.get("state_dict", weights)
    except (FileNotFoundError, PermissionError):
        raise
    except (pickle.UnpicklingError, RuntimeError, SafetensorError, OSError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is never loaded: download it again ({reason})."
        ) from error
    weights = {name.removeprefix("model."): t for name, t in weights.items() if isinstance(t, Tensor)}
    weights.pop("pos_embed", None)
    return weights


def strict_weights(weights: Mapping[str, Tensor], config: SanaWMConfig) -> dict[str, Tensor]:
    """The weights in bfloat16, exactly the entries of a network of this size; inert ones that lack are zeros.

    Raises ValueError that lists what is missing, unexpected or has another shape.
    """
    with torch.device("meta"):
        expected = SanaWM(config).state_dict()
    expected.pop("pos_embed")
    inert = {name for name in expected if any(part in name for part in INERT)}
    wrong = {
        "missing": sorted(set(expected) - inert - set(weights)),
        "unexpected": sorted(set(weights) - set(expected)),
        "of another shape": sorted(n for n in expected if n in weights and weights[n].shape != expected[n].shape),
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ValueError(f"The weights do not fit the network: {told}.")
    return {
        name: weights[name].to(torch.bfloat16).contiguous()
        if name in weights
        else torch.zeros(meta.shape, dtype=torch.bfloat16)
        for name, meta in expected.items()
    }


def fetch(
    name: str,
    parts: Sequence[str] = ("dit", "codec", "text"),
    *,
    revision: str | None = None,
    source: Path | None = None,
    height: int = 704,
    width: int = 1280,
) -> Path:
    """Download parts of an official world and make its folder; what is there already is left alone.

    Args:
        name: one of `OFFICIAL`. parts: some of those it has. revision: of the network's repository; None for its
            newest, or for the network's own where other parts of its repository are added to it.
        source: a folder laid out as the hub (owner/repository/files), instead of the hub.
        height, width: of the world's picture, multiples of 32.

    Returns the world's folder. Raises ValueError or OSError in one sentence; nothing half-made is left in the folder.
    """
    if name not in OFFICIAL:
        raise ValueError(f"There is no official world {name!r}: fetch one of {', '.join(OFFICIAL)}.")
    if unknown := [part for part in parts if part not in OFFICIAL[name]]:
        raise ValueError(f"The {name} world has the parts {', '.join(OFFICIAL[name])}, not {', '.join(unknown)}.")
    check_picture_size(height, width)
    folder, config = official_folder(name), None
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"parts": {}, **read_manifest(folder)}
    network = OFFICIAL[name]["dit"].repository
    if revision is None and source is None and "dit" not in parts:
        revision = manifest["parts"].get("dit", {}).get("revision")
    for part in parts:
        entry = OFFICIAL[name][part]
        files, commit = _files(name, part, entry, revision if entry.repository == network else None, source)
        if not entry.folders:
            # config.json is written last: a world without it is not a world
            (folder / "config.json").unlink(missing_ok=True)
            config = _convert_network(name, files, folder, height, width)
        for inside, outside in entry.folders:
            _link(files / outside, folder / inside)
        manifest["parts"][part] = {"repository": f"{OWNER}/{entry.repository}", "revision": commit}
    if name not in OFFLINE and {"dit", "codec"} & set(parts):
        manifest["sha256"] = _sha256(folder)
    _write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    if config is not None:
        _write_text(folder / "config.json", config.to_json())
    return folder


def check_picture_size(height: int, width: int) -> None:
    """ValueError for a picture that is no whole number of latents."""
    if height % 32 or width % 32 or min(height, width) < 32:
        raise ValueError(f"height and width must be multiples of 32, got {height} x {width}.")


def world_config(name: str, network: SanaWMConfig, height: int, width: int) -> WorldConfig:
    """What an official world is, beside its weights: picture, lens, sampler, window."""
    sampler = SamplerConfig()
    if name == "chunk-causal":
        # the teacher sees all chunks before, takes the many steps of the official script and is guided (dit.md 13)
        network = SanaWMConfig(**{**asdict(network), "window": -1})
        sampler = SamplerConfig(timesteps=shifted_timesteps(60, 8.0), guidance_scale=5.0)
    return WorldConfig(
        name=name,
        network=network,
        sampler=sampler,
        height=height,
        width=width,
        horizontal_fov=90.0,  # codec_text_refiner.md section (f)
        codec="ltx2",
        dtype="bfloat16",
    )


def _convert_network(name: str, files: Path, folder: Path, height: int, width: int) -> WorldConfig:
    """Write network.safetensors from what was downloaded; the configuration that goes with it."""
    (pattern,) = OFFICIAL[name]["dit"].patterns
    found = sorted(files.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{files} holds {len(found)} files {pattern}, expected one: run `sanawm fetch {name}`.")
    weights = read_official_dit(found[0])
    network = network_config(weights)
    needed = 2 * sum(t.numel() for t in weights.values())
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, the converted network takes {needed / 1e9:.1f} GB.")
    save_whole(strict_weights(weights, network), folder / "network.safetensors")
    return world_config(name, network, height, width)


def _files(name: str, part: str, entry: Part, revision: str | None, source: Path | None) -> tuple[Path, str | None]:
    """Folder with the files of a part, and the commit they are of, as far as known."""
    command = f"sanawm fetch {name} --parts {part}"
    if source is not None:
        folder = Path(source) / OWNER / entry.repository
        if missing := [pattern for pattern in entry.patterns[:1] if not any(folder.glob(pattern))]:
            raise FileNotFoundError(f"{folder} has no {missing[0]}, which the {part} of {name} needs.")
        return folder.resolve(), revision
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError('Fetching needs huggingface_hub: pip install "sanawm-env[official]".') from error
    try:
        got = Path(
            snapshot_download(f"{OWNER}/{entry.repository}", revision=revision, allow_patterns=list(entry.patterns))
        )
    except Exception as error:  # the library raises many types for networks and missing repositories
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"The {part} of {name} could not be downloaded ({reason}); go on where it stopped with: {command}."
        ) from error
    return got, got.name


def _link(target: Path, link: Path) -> None:
    """A link to a folder of the download, or a copy where the file system has no links."""
    if not target.is_dir():
        raise FileNotFoundError(
            f"{target} is not there, though the download is complete: the hub's layout has changed."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    try:
        link.symlink_to(target.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(target, link)


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in (folder / "network.safetensors", *sorted((folder / "codec").glob("*"))):
        if path.is_file():
            digest.update(path.name.encode())
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text + "\n")
    os.replace(partial, path)
