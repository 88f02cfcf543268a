"""The official weights on the hub: repositories, revisions, sizes and terms, each with its source and date.

We could not download them: this is what others have published about them. `fetch` downloads them.
"""

from dataclasses import dataclass

OWNER = "Efficient-Large-Model"
GATHERED = "2026-11"
REPORTS = f"cache listings and conversion scripts of others who ran the weights, {GATHERED}"
"""Where sizes and pins are from."""


@dataclass(frozen=True)
class Notice:
    """What somebody says about the terms of some weights.

    Attributes:
        terms: in a few words.
        source: who says so.
        date: when it was read there.
    """

    terms: str
    source: str
    date: str = GATHERED

    def __str__(self) -> str:
        return f"{self.terms} ({self.source}, {self.date})"


@dataclass(frozen=True)
class Part:
    """Where one part of a world comes from.

    Attributes:
        repository: on the hub, without its owner.
        patterns: files to download.
        gigabytes: to download.
        notices: on its terms.
        folders: world folder -> folder in the repository; none for a network, which is converted.
        converted: gigabytes of the network after that, in bfloat16.
    """

    repository: str
    patterns: tuple[str, ...]
    gigabytes: float
    notices: tuple[Notice, ...]
    folders: tuple[tuple[str, str], ...] = ()
    converted: float = 0.0


PAPER = Notice("CC BY-NC-SA 4.0", "the SANA-WM paper")
LTX = Notice("derived from Lightricks' LTX-2, whose own licence applies beside the card's", "the model's origin")
GEMMA = Notice("Google's Gemma terms", "the model's origin")
CARD = Notice("Apache-2.0, not gated", "tables of third parties that list the card")
NO_CARD = Notice("card not seen: read it before use", "nobody")
PI3X = Notice("Pi3X (a lens estimator, not fetched here): CC-BY-NC-4.0", "its card, by tables of third parties")

STREAMING, CHUNK_CAUSAL = "SANA-WM_streaming", "SANA-WM_chunk_causal"
BIDIRECTIONAL, PIPELINE = "SANA-WM_bidirectional", "SANA-WM_bidirectional-diffusers"
GEMMA2 = "gemma-2-2b-it"
PINS = {
    STREAMING: "c7694938c854b1fcc29468e9514f1ea2d0c4ba8e",
    BIDIRECTIONAL: "90e0ff3b8f1f9b54a92b4b707edeaa27073aec84",  # a later one: e96271d77398def8ebb9fc595e7c0056dc625ab7
    CHUNK_CAUSAL: "f9178744c096dcf2a2ea773da183e341bcbeb044",
    GEMMA2: "569d9809d0c8b6722d4d31b5a77a2ec7a400650a",
}
"""Revisions that others ran (REPORTS). A repository that is not here is taken as it is on the day."""

NETWORK_GB = 5.32  # 2,661.8 million parameters in bfloat16
CODEC = Part(STREAMING, ("ltx2_causal_vae/*",), 4.9, (LTX, CARD), (("codec", "ltx2_causal_vae"),))
TEXT = Part(
    GEMMA2,
    # the repository holds the weights twice, 10 GB in all: gemma-2-2b-it.safetensors is left there
    ("config.json", "generation_config.json", "model*.safetensors*", "tokenizer*", "special_tokens_map.json"),
    5.2,
    (GEMMA,),
    (("text", "."),),
)
REFINER = Part(
    STREAMING,
    ("refiner_diffusers/*", "gemma3_12b/*"),
    65.0,  # 41 and 24
    (LTX, CARD, GEMMA),
    (
        ("refiner/transformer", "refiner_diffusers/transformer"),
        ("refiner/connectors", "refiner_diffusers/connectors"),
        ("refiner/text", "gemma3_12b"),
    ),
)
WHOLE = (("pipeline", "."),)
OFFICIAL: dict[str, dict[str, Part]] = {
    "streaming": {
        # a training checkpoint: generator, critic and the states of their optimisers, of which the generator is kept
        "dit": Part(STREAMING, ("sana_dit/model.pt",), 32.0, (CARD, PAPER), converted=NETWORK_GB),
        "codec": CODEC,
        "text": TEXT,
        "refiner": REFINER,
    },
    "chunk-causal": {
        "dit": Part(CHUNK_CAUSAL, ("dit/*.safetensors",), 10.6, (NO_CARD, PAPER), converted=NETWORK_GB),
        "codec": Part(BIDIRECTIONAL, ("vae/*",), 2.4, (LTX, CARD), (("codec", "vae"),)),
        "text": TEXT,
        "refiner": REFINER,
    },
    "bidirectional": {
        "dit": Part(PIPELINE, ("transformer/*", "scheduler/*", "model_index.json"), 10.6, (CARD, PAPER), WHOLE),
        "codec": Part(PIPELINE, ("vae/*",), 2.4, (LTX, CARD), WHOLE),
        "text": Part(PIPELINE, ("text_encoder/*", "tokenizer/*"), 5.2, (GEMMA,), WHOLE),
    },
}
OFFLINE = ("bidirectional",)
"""Those that make whole clips and cannot be stepped: diffusers runs them (`sanawm render`)."""
