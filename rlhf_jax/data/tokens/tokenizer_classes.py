"""Which class of transformers reads the tokenizer of a folder.

`AutoTokenizer` knows them all, and imports what models are made of, with torch where that is installed: seconds of
every start. A folder that names the plain class, as those that this package writes do, needs none of it.
"""

import json
from pathlib import Path
from typing import Any

_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")


def reader_for(folder: Path) -> Any:
    """The class whose `from_pretrained` reads this folder, or hub name, as `AutoTokenizer` would."""
    if names_plain_class(folder):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def names_plain_class(folder: Path) -> bool:
    """Whether `AutoTokenizer` would take the plain class, by what the folder says alone.

    Of models it holds none, or a Llama: for other kinds `AutoTokenizer` may know better than the folder.
    """
    own, model = (_object(folder / name) for name in ("tokenizer_config.json", "config.json"))
    kind = model.get("model_type", "llama")
    return own.get("tokenizer_class") in _PLAIN and "auto_map" not in own and kind == "llama"


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none, or none that can be read: its reader says what is wrong."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
