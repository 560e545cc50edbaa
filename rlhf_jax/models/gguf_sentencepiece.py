"""SentencePiece's tokenizer of a GGUF file (Llama 1 and 2, Mistral, TinyLlama) as the parts of a tokenizer.json.

A file holds pieces and scores. SentencePiece joins the neighbours whose piece has the best score; tokenizers' BPE
joins by a list of pairs, so the list is every split of every piece into two, the best pieces first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_jax.errors import UserError

if TYPE_CHECKING:
    from rlhf_jax.models.gguf_files import Contents

_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def parts(found: Contents) -> dict[str, Any]:
    """normalizer, pre_tokenizer, decoder and model; UserError for a file with normalisation rules of its own."""
    fields = found.fields
    for name in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if fields.get(f"tokenizer.ggml.{name}"):
            raise UserError(
                f"{found.path}: tokenizer.ggml.{name} is set, which is not supported; "
                "take the model as a Hugging Face folder"
            )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    unknown = [text for text, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN]
    prefixed = fields.get("tokenizer.ggml.add_space_prefix", True)
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    return {
        "normalizer": _sequence("normalizers", *before, _replace(" ", _SPACE)),
        "pre_tokenizer": None,
        "decoder": _sequence(
            "decoders", _replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *strip
        ),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown[0] if unknown else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": _BYTE in kinds,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": _merges(tokens, kinds, fields["tokenizer.ggml.scores"]),
        },
    }


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[list[str]]:
    plain = {text: score for text, kind, score in zip(tokens, kinds, scores, strict=True) if kind == _NORMAL}
    found = []
    for text in sorted(plain, key=plain.get, reverse=True):
        cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
        found += [[left, right] for left, right in cuts if left in plain and right in plain]
    return found


def _sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}
