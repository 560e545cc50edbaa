"""The PAD token of an exported reward model: other programs find the token that is scored by it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax.data.special_ids import with_spare_pad
from rlhf_jax.data.tokenizer_files import load_tokenizer
from rlhf_jax.parallel import startup


@contextmanager
def exported_tokenizer(
    tokenizer: Any, folder: str, ends: tuple[int, ...], vocab_size: int
) -> Iterator[tuple[Any, str]]:
    """The tokenizer to export with a reward model, and its folder.

    transformers scores the last token that is not `pad_token_id`. Where that may be a text's last token (PAD = EOS) it
    would score another one, so the export gets a PAD that never occurs. Without any it gets none, which
    transformers then asks for: rows one at a time are scored right, several at once are refused.
    """
    had = tokenizer.pad_token_id
    if had is not None and had not in ends:
        yield tokenizer, folder
        return
    changed = with_spare_pad(load_tokenizer(folder), ends, vocab_size)
    with tempfile.TemporaryDirectory() as made:
        target = Path(made) / "tokenizer"
        changed, said = (
            (load_tokenizer(folder), "no token is to spare: transformers will take one row at a time")
            if changed is None
            else (changed, f"PAD is {changed.pad_token!r} there, which no text holds")
        )
        if changed.pad_token_id in ends:
            changed.pad_token = None
        if startup.is_main():
            print(f"export: the tokenizer has no PAD token of its own; {said}", flush=True)
        changed.save_pretrained(str(target))
        for settings in Path(folder).glob("generation_config.json"):
            shutil.copyfile(settings, target / settings.name)
        yield changed, str(target)
