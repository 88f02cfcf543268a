"""Prompts of a world: encoded once, kept on disk, and read without the encoder.

A world folder holds them in `prompts/`, one safetensors file each, named by the SHA-256 of kind, prompt, encoder and
settings (codec_text_refiner.md b.4).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sanawm_env.engines.sanawm.offload import work_blockwise
from sanawm_env.engines.sanawm.text.gemma import INSTRUCTION_SHA256, TEXT_LEN, GemmaEncoder
from sanawm_env.system.files import brief, check_prompt
from sanawm_env.world.folders import read_manifest
from sanawm_env.world.isolation import isolated
from sanawm_env.world.state import save_whole
from sanawm_env.world.threads import Lock

Kind = Literal["prompt", "negative", "refiner"]


@dataclass(frozen=True, eq=False)
class PromptFeatures:
    """Features of a prompt.

    Attributes:
        text: (1, L, C) for the network.
        text_mask: (1, L), or None.
        refiner: features and mask for the refiner, or None.
    """

    text: Tensor
    text_mask: Tensor | None = None
    refiner: tuple[Tensor, Tensor] | None = None


class PromptCache:
    """Features on disk.

    Args:
        folder: of the files.
        identity: plain values that say which encoder made them, and how.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, dict(identity)

    def get(self, prompt: str, kind: Kind = "prompt") -> tuple[Tensor, Tensor] | None:
        """Features and mask of a prompt; None where it is not cached.

        Raises:
            ValueError: for a damaged or foreign file.
        """
        content, path = self._address(prompt, kind)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("content") != content:
                    raise ValueError("it holds something else")
                return file.get_tensor("features"), file.get_tensor("mask")
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"The cached prompt {path} cannot be read ({error}): delete it and encode it again."
            ) from error

    def put(self, features: Tensor, mask: Tensor, prompt: str, kind: Kind = "prompt") -> None:
        """Write features and mask to a file, which appears whole or not at all.

        Raises:
            OSError: where it cannot be written.
        """
        content, path = self._address(prompt, kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"features": features.cpu().contiguous(), "mask": mask.to(torch.int64).cpu().contiguous()}
        save_whole(tensors, path, {"content": content})

    def _address(self, prompt: str, kind: Kind) -> tuple[str, Path]:
        content = json.dumps({"kind": kind, "prompt": prompt, **self.identity}, sort_keys=True)
        return content, self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.safetensors"


class Prompts:
    """The prompt features of one world: from its cache and, where that is allowed, from its encoders.

    Args:
        folder: of the world.
        name: of the world, for messages.
        softcap: see `GemmaEncoder.load`.
        load_encoders: encode prompts that the cache lacks, and cache them. An encoder is loaded for that and freed
            again.
        refiner: return the refiner's features too.
        offload: run encoders block by block from the host's memory.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        softcap: bool = False,
        load_encoders: bool = False,
        refiner: bool = False,
        offload: bool = False,
    ):
        self.folder, self.name, self.softcap = folder, name, softcap
        self.load_encoders, self.refiner, self.offload = load_encoders, refiner, offload
        self._lock = Lock()  # one encoder in memory at a time, and its tokenizer serves one thread
        self.cache = PromptCache(folder / "prompts", _identity(folder, softcap))

    def features(self, prompt: str, device: str | torch.device, negative: bool = False) -> PromptFeatures:
        """Features of a prompt.

        Args:
            prompt: the text.
            device: of the features.
            negative: of a negative prompt for guidance, without the instruction.

        Raises:
            ValueError: as `check_prompt`, and for a prompt that is neither cached nor may be encoded here; it names the
                command to run.
            TypeError: as `check_prompt`.
        """
        prompt = check_prompt(prompt)
        text, mask = self._find(prompt, "negative" if negative else "prompt", device)
        wanted = self.refiner and not negative
        return PromptFeatures(text, mask, self._find(prompt, "refiner", device) if wanted else None)

    def _find(self, prompt: str, kind: Kind, device: str | torch.device) -> tuple[Tensor, Tensor]:
        found = self.cache.get(prompt, kind)
        if found is None:
            if not self.load_encoders:
                raise ValueError(
                    f"The {self.name} world has no features of the {kind} {brief(prompt)}: write it into a file, run "
                    f"`sanawm encode-prompts FILE --world {self.name}`, or load the world with text_encoder=True."
                )
            with self._lock.held():
                if (found := self.cache.get(prompt, kind)) is None:
                    self.encode([(prompt, kind)], device)
                    found = self.cache.get(prompt, kind)
        features, mask = cast(tuple[Tensor, Tensor], found)
        return features.to(device), mask.to(device)

    def missing(self, prompts: list[str]) -> list[tuple[str, Kind]]:
        """Which of these prompts, the empty one and the empty negative one are not cached, encoder by encoder."""
        wanted: list[tuple[str, Kind]] = [("", "negative"), *((p, "prompt") for p in ["", *prompts])]
        if self.refiner:
            wanted += [(p, "refiner") for p in ["", *prompts]]
        return [(p, kind) for p, kind in dict.fromkeys(wanted) if self.cache.get(p, kind) is None]

    @isolated
    def encode(self, wanted: list[tuple[str, Kind]], device: str | torch.device, done=lambda: None) -> None:
        """Encode and cache prompts. Loads every encoder at most once, one at a time.

        Args:
            wanted: from `missing`.
            device: that encodes.
            done: called after each.

        Raises:
            FileNotFoundError: which names the command that fetches a missing encoder.
        """
        for load, kinds in ((self._gemma, ("prompt", "negative")), (self._refiner_text, ("refiner",))):
            batch = [(prompt, kind) for prompt, kind in wanted if kind in kinds]
            if not batch:
                continue
            with self._lock.held():
                encoders = load(device)
                for prompt, kind in batch:
                    features, mask = encoders[kind](prompt)
                    self.cache.put(features, mask, prompt, kind)
                    done()

    def _gemma(self, device: str | torch.device) -> Mapping[str, Any]:
        encoder = GemmaEncoder.load(self.folder / "text", "cpu" if self.offload else device, softcap=self.softcap)
        if self.offload:
            work_blockwise(encoder.model, torch.device(device))
        return {"prompt": encoder.encode, "negative": encoder.encode_negative}

    def _refiner_text(self, device: str | torch.device) -> Mapping[str, Any]:
        from sanawm_env.engines.sanawm.refiner.text import RefinerTextEncoder

        encoder = RefinerTextEncoder.load(self.folder / "refiner", "cpu" if self.offload else device)
        if self.offload:
            for module in encoder.modules:
                work_blockwise(module, torch.device(device))
        return {"refiner": encoder.encode}


def _identity(folder: Path, softcap: bool) -> dict[str, Any]:
    """Which encoder makes the prompts of a world folder; its manifest names it, if there is one."""
    text = read_manifest(folder).get("parts", {}).get("text", {})
    return {
        "repository": text.get("repository"),
        "revision": text.get("revision"),
        "dtype": "bfloat16",
        "softcap": softcap,
        "instruction": INSTRUCTION_SHA256,
        "text_len": TEXT_LEN,
    }
