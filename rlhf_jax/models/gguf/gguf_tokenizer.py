"""Translates the tokenizer of a GGUF file into tokenizer.json, tokenizer_config.json and generation_config.json.

A file does not contain the rule by which text is split before byte-pair merging, only its name
(`tokenizer.ggml.pre`). The known rules are listed here, as the makers' own tokenizer.json files have them; a file with
another one is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.models.gguf.gguf_config import gguf_token_ids

if TYPE_CHECKING:
    from rlhf_jax.models.gguf.gguf_files import Contents

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # kinds of tokens, as SentencePiece numbers them
_KINDS = {"gpt2": "merges", "llama": "scores"}  # byte-level BPE and SentencePiece, and what each must have
_ENDS = ("eos", "eot", "eom")  # end of text, of a turn, of a message: sampling stops at each

# The alternatives of Llama 3 and Qwen 2, which differ only in how many digits go together. _WORDS:
# English contractions; letters with at most one other character (mostly the space) before them.
# _OTHERS: punctuation with the line breaks behind it; line breaks with the spaces before them; spaces
# up to the last one, which the next word takes.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Cutting(NamedTuple):
    """How a tokenizer splits text into pieces before byte-pair merging (its pre-tokenizer).

    Attributes:
      steps: pre-tokenizers of tokenizer.json.
      normalizer: its normalizer.
      whole_words: a piece that is a token stays whole, whatever the merges say.
      begins: texts begin with BOS unless the file says otherwise.
    """

    steps: list[dict[str, Any]]
    normalizer: dict[str, Any] | None = None
    whole_words: bool = False
    begins: bool = False


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[dict[str, Any]]:
    # The pattern has split already, so the byte mapping must not split again by GPT-2's expression.
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _bytes(use_regex=False)]


# GPT-2's expression is built into tokenizers as use_regex. SmolLM splits off each digit first; Llama 3 groups
# digits by three, Qwen 2 leaves them single.
_GPT2 = Cutting([_bytes(use_regex=True)])
_SMOLLM = Cutting([{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)])
_LLAMA3 = Cutting(_split(_WORDS + r"\p{N}{1,3}" + _OTHERS), whole_words=True, begins=True)
_QWEN2 = Cutting(_split(_WORDS + r"\p{N}" + _OTHERS), normalizer={"type": "NFC"})
_CUTTINGS = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def files(found: Contents) -> dict[str, dict[str, Any]]:
    """The contents of the tokenizer's files by name; UserError for a kind that is not supported or lacks a part."""
    kind = found.fields.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise UserError(
            f"{found.path}: tokenizer.ggml.model is {kind!r}; only {' and '.join(map(repr, _KINDS))} are supported; "
            "take the model as a Hugging Face folder"
        )
    for name in ("tokens", "token_type", _KINDS[kind]):
        if not found.fields.get(f"tokenizer.ggml.{name}"):
            raise UserError(f"{found.path}: no tokenizer.ggml.{name}; its tokenizer is not whole")
    # First, since it checks the special ids that the parts below look up.
    settings = _tokenizer_config(found)
    if kind == "gpt2":
        cutting = _cutting(found)
        parts, begins = _byte_level(found, cutting), cutting.begins
    else:
        parts, begins = sentencepiece_parts(found), True
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(found),
            **parts,
            "post_processor": _post_processor(found, begins),
        },
        "tokenizer_config.json": settings,
        "generation_config.json": _generation_config(found),
    }


def _cutting(found: Contents) -> Cutting:
    pre = found.fields.get("tokenizer.ggml.pre")
    if pre not in _CUTTINGS:
        raise UserError(
            f"{found.path}: tokenizer.ggml.pre is {pre!r}; use a file with one of {', '.join(_CUTTINGS)}, "
            "or take the model as a Hugging Face folder"
        )
    return _CUTTINGS[pre]


def _added(found: Contents) -> list[dict[str, Any]]:
    """The added tokens: those that are found in a text before it is split."""
    kinds = zip(found.fields["tokenizer.ggml.tokens"], found.fields["tokenizer.ggml.token_type"], strict=True)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": text, **plain, "special": kind != _USER_DEFINED}
        for i, (text, kind) in enumerate(kinds)
        # User-defined tokens are text; the others are special and left out when decoding.
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _byte_level(found: Contents, cutting: Cutting) -> dict[str, Any]:
    """The parts of a tokenizer.json of byte-level BPE, as GPT-2's."""
    fields = found.fields
    kinds = list(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    return {
        "normalizer": cutting.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cutting.steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cutting.whole_words,
            # Unused ids are left out: their placeholder texts must never be produced from a prompt.
            "vocab": {text: i for i, (text, kind) in enumerate(kinds) if kind != _UNUSED},
            # A space can separate the halves: byte-level pieces write theirs as another character.
            "merges": [merge.split(" ", 1) for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _post_processor(found: Contents, begins: bool) -> dict[str, Any] | None:
    """The step that adds BOS and EOS to a text, where the file asks for it; `begins`: BOS where it says nothing."""
    fields, around = found.fields, {}
    for name, default in (("bos", begins), ("eos", False)):
        token = fields.get(f"tokenizer.ggml.{name}_token_id")
        if fields.get(f"tokenizer.ggml.add_{name}_token", default) and token is not None:
            around[name] = token
    if not around:
        return None
    texts = {name: fields["tokenizer.ggml.tokens"][i] for name, i in around.items()}
    single = [{"Sequence": {"id": "A", "type_id": 0}}]
    if "bos" in texts:
        single.insert(0, {"SpecialToken": {"id": texts["bos"], "type_id": 0}})
    if "eos" in texts:
        single.append({"SpecialToken": {"id": texts["eos"], "type_id": 0}})
    second = [{kind: {**what, "type_id": 1}} for piece in single for kind, what in piece.items()]
    second = [x if "SpecialToken" in x else {"Sequence": {"id": "B", "type_id": 1}} for x in second]
    specials = {text: {"id": text, "ids": [around[name]], "tokens": [text]} for name, text in texts.items()}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single + second,
        "special_tokens": specials,
    }


def _tokenizer_config(found: Contents) -> dict[str, Any]:
    fields = found.fields
    tokens = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields.get(f"{fields['general.architecture']}.context_length"),
    }
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    for name, theirs in names.items():
        i = fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if i is None:
            continue
        if not 0 <= i < len(tokens):
            raise UserError(
                f"{found.path}: tokenizer.ggml.{theirs}_token_id is {i}, but there are {len(tokens)} tokens"
            )
        config[name] = tokens[i]
    return config | _templates(fields)


def _templates(fields: dict[str, Any]) -> dict[str, Any]:
    """The chat template, or all of them by name where the file has several (one for tools, one for retrieval)."""
    key = "tokenizer.chat_template"
    named = [
        {"name": name.removeprefix(f"{key}."), "template": text}
        for name, text in fields.items()
        if name.startswith(f"{key}.")
    ]
    if key not in fields:
        return {"chat_template": named} if named else {}
    default = fields[key]
    return {"chat_template": [{"name": "default", "template": default}, *named] if named else default}


def _generation_config(found: Contents) -> dict[str, Any]:
    ends = [found.fields.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    ids = gguf_token_ids(found)
    return {**ids, "eos_token_id": ends if len(ends) > 1 else ids["eos_token_id"]}


# SentencePiece's tokenizer of a GGUF file (Llama 1 and 2, Mistral, TinyLlama) as the parts of a tokenizer.json.
#
# A file holds pieces and their scores. SentencePiece merges the two neighbours whose joined piece has the best score.
# The BPE of Hugging Face's tokenizers merges by a list of pairs instead, so the list is made here: every split of every
# piece into two other pieces, the best pieces first.

_NORMAL, _BYTE = 1, 6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def sentencepiece_parts(found: Contents) -> dict[str, Any]:
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
    # SentencePiece puts a space before the text, so that its first word
    # is merged as any other; decoding takes it off.
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
    # The sort is stable: of equal scores the lower id merges first, as in SentencePiece.
    for text in sorted(plain, key=plain.get, reverse=True):
        cuts = ((text[:i], text[i:]) for i in range(1, len(text)))
        found += [[left, right] for left, right in cuts if left in plain and right in plain]
    return found


def _sequence(name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: list(steps)}


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}
