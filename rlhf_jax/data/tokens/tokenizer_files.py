"""Reads tokenizers from folders and checks them, writes them with a PAD token, and trains small ones."""

import copy
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from rlhf_jax.data.files.tables import is_hub_name
from rlhf_jax.data.tokens.tokenizer_classes import reader_for
from rlhf_jax.errors import UserError, read_object

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)

# Those of a tokenizer's files that must be JSON objects.
_SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load_tokenizer(path: str | Path, *, made_by: str = "") -> Any:
    """Loads a Hugging Face tokenizer from a folder (or a hub name) and checks that it can be trained with.

    It must have an EOS token. It need not have a PAD token, and that may be EOS: masks come from lengths. Nothing
    is added silently. made_by: the command that makes a missing folder. Raises UserError.
    """
    tokenizer = _read_tokenizer(path, made_by)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer: {path} has no EOS token, so responses could not end; set tokenizer.eos_token and "
            "save it to a new folder with save_pretrained"
        )
    check_prefix(tokenizer, path)
    return tokenizer


def add_pad(source: str | Path, token: str, folder: Path, *, made_by: str = "") -> bool:
    """Writes the tokenizer of `source` with the PAD token `token` to `folder`; False when it has a PAD already.

    A PAD that is the EOS token counts as none. The other tokens keep their ids. Errors as `load_tokenizer`.
    """
    tokenizer = _read_tokenizer(source, made_by)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return False
    tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.save_pretrained(str(folder))
    return True


def add_markers(
    source: str | Path, tokens: Sequence[str], prefix: str, folder: Path, *, made_by: str = ""
) -> None:
    """Writes the tokenizer of `source` with these control tokens, and with `prefix` in front of every prompt.

    Tokens that it has keep their ids, and so do all others. The folder is replaced whole. Errors as `load_tokenizer`.
    """
    tokenizer = _read_tokenizer(source, made_by)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    with_prefix(tokenizer, prefix).save_pretrained(str(part))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _read_tokenizer(path: str | Path, made_by: str) -> Any:
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"tokenizer: {path} holds no tokenizer (no tokenizer.json); {_made_by(made_by)}")
    if not folder.exists() and not is_hub_name(str(path)):
        raise UserError(f"tokenizer: {path} does not exist; {_made_by(made_by)}")
    # Without it transformers advises to install torch, which this package does not use.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        # Never a stranger's code; without a value transformers
        # would ask on the terminal and wait for an answer.
        tokenizer = reader_for(folder).from_pretrained(str(path), trust_remote_code=False)
        # Some broken files can be loaded, and fail only when the tokenizer is used.
        tokenizer("a \u2603")
        return tokenizer
    # transformers raises many kinds of exceptions, down to bare Exception from its Rust core.
    except Exception as e:
        for name in _SIDE_FILES:
            if (folder / name).is_file():
                # Names the file in its own error, where this is the one that cannot be read.
                read_object(folder / name)
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"tokenizer: {path} could not be loaded ({reason}); {_made_by(made_by)}") from e


def _made_by(made_by: str) -> str:
    return f"make it with: {made_by}" if made_by else "give a folder saved with save_pretrained"


# A byte-level BPE tokenizer trained on the world's own text, saved the way Hugging Face loads it.
#
# Words carry their leading space, runs of newlines are one piece, and every byte has a token, so decoding
# what was encoded gives back any text exactly. No token is added at either end: that is up to the caller.

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
# In the order of their ids, 0, 1 and 2.
SPECIALS: tuple[str, str, str] = (PAD, BOS, EOS)
MIN_VOCAB_SIZE = len(SPECIALS) + 256
# A word or number (up to three digits) with its space, a run of other signs, a run of newlines, other space.
_PIECES = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|\s"


def train_tokenizer(texts: Iterable[str], directory: str | os.PathLike[str], vocab_size: int = 1024) -> Path:
    """Train on `texts` and write tokenizer.json and tokenizer_config.json into `directory`, each atomically.

    Args:
      vocab_size: tokens at most, the three special ones and the 256 bytes included; fewer come out when the
        texts have too few different words (`len(tokenizer)` tells).

    Returns:
      The directory, ready for `AutoTokenizer.from_pretrained`.

    Raises:
      UserError: when `vocab_size` cannot hold the bytes, or the directory cannot be written.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size: {vocab_size} cannot hold 256 bytes and 3 specials; use at least {MIN_VOCAB_SIZE}"
        )
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            # use_regex=False: the text is split by the pattern above, and not again by that of GPT-2.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        # All 256 bytes, also those that the texts lack, so that any text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _save(tokenizer.to_str(), Path(directory))


def _save(tokenizer_json: str, directory: Path) -> Path:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        # Otherwise transformers removes the space before "?" when it decodes.
        "clean_up_tokenization_spaces": False,
        # Far above any limit of ours, which a page sets, so that transformers never warns.
        "model_max_length": 1_000_000,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("tokenizer.json", tokenizer_json),
            ("tokenizer_config.json", json.dumps(config, indent=2)),
        ):
            part = directory / f".{name}.{os.getpid()}.part"
            part.write_text(text, encoding="utf-8")
            os.replace(part, directory / name)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot write the tokenizer ({error.strerror}); choose a folder that can be written"
        ) from None
    return directory


# What a model's maker had in front of every prompt, such as a control token: kept with the tokenizer, which says so.
#
#     "prompt_prefix": {"text": "<|chosen|>", "ids": [4096]}          in tokenizer_config.json
#
# A model that was trained behind such a text answers otherwise without it, so nobody should have to remember it: all
# that encodes prompts puts it in front (see `heads`), for sampling and for further training alike. Other programs than
# ours have to be told.

PREFIX = "prompt_prefix"
_TOKENIZER_CONFIG = "tokenizer_config.json"


def prefix_text(tokenizer: Any) -> str:
    """What a tokenizer says stands in front of every prompt; "" where it says nothing."""
    return _prefix(tokenizer).get("text", "")


def prefix_ids(tokenizer: Any) -> Int32[np.ndarray, " F"]:
    """The same as token ids, none where it says nothing."""
    return np.array(_prefix(tokenizer).get("ids", ()), np.int32)


def heads(tokenizer: Any) -> tuple[int, ...]:
    """The ids that every prompt begins with: BOS, where the tokenizer has one, and the prefix.

    Where BOS is what opens every turn of a chat (SmolLM 2: <|im_start|>), the prefix comes before it.
    """
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    prefix = tuple(_prefix(tokenizer).get("ids", ()))
    # Between such a BOS and what follows it the prefix would be part of the first speaker's name.
    if prefix and bos and _opens_turns(tokenizer, str(tokenizer.chat_template)):
        return (*prefix, *bos)
    return (*bos, *prefix)


@lru_cache(maxsize=16)
def _opens_turns(tokenizer: Any, templates: str) -> bool:
    """Whether a chat template of the tokenizer has the assistant speak with BOS; templates: the key of the cache."""
    named = tokenizer.chat_template
    for template in named.values() if isinstance(named, dict) else filter(None, [named]):
        asked = [{"role": "user", "content": "x"}]
        options = {"tokenize": False, "chat_template": template}
        # Templates raise what they like; one that takes no plain conversation is refused where chats are read.
        with suppress(Exception):
            before = tokenizer.apply_chat_template(asked, **options)
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options)
            if prompt.count(tokenizer.bos_token) > before.count(tokenizer.bos_token):
                return True
    return False


def with_prefix(tokenizer: Any, text: str) -> Any:
    """The same tokenizer with another text in front of every prompt. A token that was added to it counts as one."""
    found = copy.copy(tokenizer)
    # The copy shares its vocabulary with the original, and must not share what it says.
    found.init_kwargs = {**tokenizer.init_kwargs, PREFIX: {"text": text, "ids": _prefix_ids(tokenizer, text)}}
    return found


def check_prefix(tokenizer: Any, path: str | Path) -> None:
    """Raises UserError where a tokenizer's folder asks for a prefix that its vocabulary does not make of that text."""
    found = getattr(tokenizer, "init_kwargs", {}).get(PREFIX)
    if found is None:
        return
    where, again = (
        f"tokenizer: {Path(path) / _TOKENIZER_CONFIG}: {PREFIX}",
        "copy the folder again as it was exported",
    )
    if not isinstance(found, dict) or not isinstance(found.get("text"), str) or not found.get("ids"):
        raise UserError(f'{where}: {found!r} is not {{"text": TEXT, "ids": [ID, ...]}}; {again}')
    ids = _prefix_ids(tokenizer, found["text"])
    if ids != found["ids"]:
        raise UserError(
            f"{where}: {found['text']!r} was {found['ids']} when the model was trained, and is {ids} for the tokenizer "
            f"beside it; {again}"
        )


def highest_id(folder: Path) -> int:
    """The highest id of the prefix that a folder's tokenizer asks for; -1 where it asks for none."""
    path = folder / _TOKENIZER_CONFIG
    found = read_object(path).get(PREFIX) if path.is_file() else None
    return max(found["ids"]) if isinstance(found, dict) and found.get("ids") else -1


def _prefix(tokenizer: Any) -> dict[str, Any]:
    return getattr(tokenizer, "init_kwargs", {}).get(PREFIX) or {}


def _prefix_ids(tokenizer: Any, text: str) -> list[int]:
    added = tokenizer.get_added_vocab()
    if text in added:
        return [added[text]]
    return list(tokenizer([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0])
