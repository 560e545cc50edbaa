"""Tokenizers that lie in folders: read and checked, or written with a PAD token."""

import os
from pathlib import Path
from typing import Any

from rlhf_jax.data.tables import is_hub_name
from rlhf_jax.errors import UserError
from rlhf_jax.json_files import read_object

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "spiece.model",
)
# Of them, and beside them, those that are JSON objects.
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


def _read_tokenizer(path: str | Path, made_by: str) -> Any:
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(f"tokenizer: {path} holds no tokenizer (no tokenizer.json); {_made_by(made_by)}")
    if not folder.exists() and not is_hub_name(str(path)):
        raise UserError(f"tokenizer: {path} does not exist; {_made_by(made_by)}")
    # transformers would ask for torch, which we never use
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        # Never a stranger's code; asked for it, transformers would wait for an answer on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        tokenizer("a \u2603")  # Some files are read, and fail only when they are used.
        return tokenizer
    except Exception as e:  # transformers raises many kinds, down to bare Exception from its Rust core
        for name in _SIDE_FILES:
            if (folder / name).is_file():
                read_object(folder / name)  # Where it is this file that cannot be read, it is named.
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"tokenizer: {path} could not be loaded ({reason}); {_made_by(made_by)}") from e


def _made_by(made_by: str) -> str:
    return f"make it with: {made_by}" if made_by else "give a folder saved with save_pretrained"
