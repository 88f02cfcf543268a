"""The official prompt encoder: Gemma-2 behind an instruction text (codec_text_refiner.md section (b)).

The features are the last hidden states after the final norm. Of the tokens the network sees the first one and the last
299: the start token, the end of the instruction, the prompt and padding.
"""

import hashlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sanawm_env.system.files import explaining
from sanawm_env.system.packages import needing

TEXT_LEN = 300
INSTRUCTION_SHA256 = "62b9ab89eebb0ac5ee4d264bf96bf19d2b81f504bc3852500efeaf5a34d638b1"


@cache
def instruction() -> str:
    """The instruction text before every prompt, as diffusers ships it.

    Raises:
        ImportError: without diffusers 0.42.
        RuntimeError: where its text is not the one the model was trained with.
    """
    with needing("Prompts need diffusers 0.42", "official"):
        from diffusers.pipelines.sana_wm.pipeline_sana_wm import DEFAULT_CHI_PROMPT
    text = "\n".join(DEFAULT_CHI_PROMPT)
    if hashlib.sha256(text.encode()).hexdigest() != INSTRUCTION_SHA256:
        raise RuntimeError('This diffusers has another instruction text: pip install "diffusers>=0.42,<0.43".')
    return text


class GemmaEncoder:
    """Prompts to features and masks. Use `GemmaEncoder.load`.

    Args:
        model: of transformers, which gives `last_hidden_state`.
        tokenizer: of transformers; set to right padding.
    """

    def __init__(self, model: nn.Module, tokenizer):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        tokenizer.padding_side = "right"

    @staticmethod
    def load(
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        softcap: bool = False,
    ) -> "GemmaEncoder":
        """Load an encoder.

        Args:
            folder: of transformers' files.
            device: of the weights.
            dtype: of the weights.
            softcap: cap attention scores as Gemma-2 was trained to. The official pipeline runs a version of
                transformers that drops the cap, so False equals it (section b.3).

        Raises:
            FileNotFoundError: which names the command that fetches it.
            ValueError: for files that do not fit.
            ImportError: without transformers.
        """
        with needing("Prompts need transformers", "official"):
            from transformers import AutoModel, AutoTokenizer
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"There is no text encoder in {folder}; get it with: sanawm fetch streaming --parts text"
            )
        cap = {} if softcap else {"attn_logit_softcapping": None}
        with explaining(
            f"The text encoder in {folder} cannot be loaded", (OSError, ValueError, RuntimeError, KeyError)
        ):
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=dtype, attn_implementation="eager", **cap
            )
        return GemmaEncoder(model.to(device), tokenizer)

    @torch.no_grad()
    def encode(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Features (1, 300, C) and mask (1, 300), 1 = valid, of a prompt behind the instruction. Prompts of more
        than about 298 tokens are cut."""
        text = instruction()
        longest = len(self.tokenizer.encode(text)) + TEXT_LEN - 2
        features, mask = self._run(text + prompt, longest)
        seen = [0, *range(longest - TEXT_LEN + 1, longest)]
        return features[:, seen], mask[:, seen]

    @torch.no_grad()
    def encode_negative(self, prompt: str = "") -> tuple[Tensor, Tensor]:
        """Features and mask of a negative prompt for guidance, without the instruction."""
        return self._run(prompt, TEXT_LEN)

    def _run(self, text: str, length: int) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        return self.model(ids, attention_mask=mask)[0], mask
