"""The refiner's prompt encoder: Gemma-3 and LTX-2's connectors, run by diffusers (codec_text_refiner.md c.2)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanawm_env.system.files import explaining
from sanawm_env.system.packages import needing


class RefinerTextEncoder:
    """Prompts to features and masks. Use `RefinerTextEncoder.load`."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    @staticmethod
    def load(
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        length: int = 1024,
    ) -> "RefinerTextEncoder":
        """Load an encoder.

        Args:
            folder: with `text` (transformers' files) and `connectors`.
            device: of the weights.
            dtype: of the weights.
            length: tokens that a prompt is padded to.

        Raises:
            FileNotFoundError: which names the command that fetches it.
            ValueError: for files that do not fit.
            ImportError: without diffusers and transformers.
        """
        folder = Path(folder)
        for part in ("text", "connectors"):
            if not (folder / part / "config.json").is_file():
                raise FileNotFoundError(
                    f"There is no {part} in {folder}: run `sanawm fetch streaming --parts refiner`."
                )
        with needing("The refiner needs diffusers and transformers", "official"):
            from diffusers import SanaWMLTX2Refiner
            from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
            from transformers import AutoTokenizer, Gemma3ForConditionalGeneration
        with explaining(
            f"The refiner's text encoder in {folder} cannot be loaded", (OSError, ValueError, RuntimeError, KeyError)
        ):
            tokenizer: Any = AutoTokenizer.from_pretrained(folder / "text", local_files_only=True, padding_side="left")
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model = Gemma3ForConditionalGeneration.from_pretrained(folder / "text", local_files_only=True, dtype=dtype)
            connectors = LTX2TextConnectors.from_pretrained(
                folder / "connectors", local_files_only=True, torch_dtype=dtype
            )
        without: dict[str, Any] = {"transformer": None, "scheduler": None}  # prompts need neither
        pipeline = SanaWMLTX2Refiner(
            **without,
            connectors=connectors.to(device).eval(),
            tokenizer=tokenizer,
            text_encoder=model.to(device).eval(),
            text_max_sequence_length=length,
        )
        return RefinerTextEncoder(pipeline)

    @property
    def modules(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Gemma-3 and the connectors."""
        return self._pipeline.text_encoder, self._pipeline.connectors

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Features (1, length, C) and mask (1, length)."""
        model = self._pipeline.text_encoder
        return self._pipeline._encode_prompt(prompt, device=model.device, dtype=model.dtype)
