"""A byte-level BPE tokenizer trained on the world's own text, saved the way Hugging Face loads it.

Words carry their leading space, runs of newlines are one piece, and every byte has a token, so decoding what
was encoded gives back any text exactly. No token is added at either end: that is up to the caller.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from rlhf_jax.errors import UserError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SPECIALS: tuple[str, str, str] = (PAD, BOS, EOS)  # ids 0, 1, 2
MIN_VOCAB_SIZE = len(SPECIALS) + 256
# A word or number (up to three digits) with its space, a run of other signs, a run of newlines, other space.
_PIECES = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|\s"


def train(texts: Iterable[str], directory: str | os.PathLike[str], vocab_size: int = 1024) -> Path:
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
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
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
        "clean_up_tokenization_spaces": False,  # or decoding would eat the space before "?"
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
