"""What a page reads, stood in for: model folders without weights, a tokenizer of words, rows as long as they may be.

A plan is the run itself up to its first program, and a run looks at all of these before that. So they are there, in a
folder of their own, and small: of a model its config.json and the header of a file of weights that holds nothing.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

from rlhf_jax.data.records.records import write_jsonl
from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.huggingface import export_folder, import_folder
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.name_map import file_name, places
from rlhf_jax.training.run import missing_inputs as inputs
from rlhf_jax.training.run.missing_inputs import Needs

# So many words around the longest row: what a template writes itself must be fewer.
_AROUND = 400
_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
# The kinds of records that methods read, one file each; which one a method takes is found by trying.
KINDS = ("instructions", "pairs", "candidates", "ratings")
_CHAT = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


@lru_cache
def named_shapes() -> dict[str, dict[str, Any]]:
    """The models that are known by name: {name: {paths, config}}."""
    return yaml.safe_load((Path(__file__).parent / "shapes.yaml").read_text())


def shapes_asked(text: str) -> dict[str, str]:
    """Parses --plan_model: {field of the page, or "" for all: a name or folder}."""
    found: dict[str, str] = {}
    for part in filter(None, (x.strip() for x in text.split(","))):
        field, _, what = (x.strip() for x in part.rpartition("="))
        if not what or field in found:
            problem = f"{part!r} names no shape" if not what else f"{field or 'all models'} is named twice"
            raise UserError(f"--plan_model: {problem}; write for example llama_7b, or model.policy=llama_7b")
        found[field] = what
    return found


def check_asked(asked: Mapping[str, str], needs: Needs, page: Mapping[str, Any]) -> None:
    """Raises UserError for a shape that --plan_model gives to no model of the page: it would be passed over."""
    kinds = (inputs.MODEL, inputs.WITHIN)
    read = sorted({row.field for row, *_ in inputs.inputs_of(needs, page) if row.kind in kinds})
    for field in asked:
        if not read:
            named = ", ".join(row.field for row in needs.reads if row.kind in kinds)
            raise UserError(f"--plan_model: the page reads no model; name one in {named}, or leave it out")
        if field and field not in read:
            raise UserError(f"--plan_model: the page reads no model {field!r}; use {', '.join(read)}")


def model_json(field: str, path: str, asked: Mapping[str, str]) -> dict[str, Any]:
    """The config.json that a plan takes for a page's model: what was asked for, the folder's own, or a known name's.

    Raises UserError that says how to name one.
    """
    wanted = asked.get(field, asked.get("", ""))
    if wanted in named_shapes():
        return named_shapes()[wanted]["config"]
    for place in filter(None, (wanted, path)):
        folder = Path(place)
        file = folder if folder.name == "config.json" else folder / "config.json"
        # A trainer's workdir says what its checkpoints are in a folder of its own.
        for found in (file, folder / "model" / "config.json"):
            if found.is_file():
                return read_object(found)
        if wanted:
            raise UserError(
                f"--plan_model: {wanted}: no such shape or config.json; use a folder that has one, or "
                f"{', '.join(named_shapes())}"
            )
    for shape in named_shapes().values():
        if any(fnmatchcase(path, pattern) for pattern in shape["paths"]):
            return shape["config"]
    problem = "has no config.json" if Path(path).exists() else "is not there"
    raise UserError(
        f"{field}: {path} {problem}, and a plan needs its shape; give --plan_model=FOLDER (with a config.json), or "
        f"one of {', '.join(named_shapes())}"
    )


def write_tokenizer(folder: Path, tokens: int, *, pad: bool) -> Path:
    """Writes a tokenizer of so many tokens: every word is one, whatever its letters; with a PAD or without."""
    names = [name for name in _SPECIAL if pad or name != "<pad>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    vocabulary |= {f"w{i}": i for i in range(len(names), tokens)}
    special = [
        {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for name, i in vocabulary.items()
        if name in names
    ]
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    about |= {"eos_token": "</s>", "chat_template": _CHAT} | ({"pad_token": "<pad>"} if pad else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


def write_model(folder: Path, raw: Mapping[str, Any], *, scalar: bool, pad: bool) -> ModelConfig:
    """Writes a model folder of this config.json, whose file of weights has a header and, on disk, nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(raw)))
    config = import_folder.read_config(folder)[0]
    tokenizer = write_tokenizer(folder.with_name(f"{folder.name}.tokenizer"), config.vocab_size, pad=pad)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    export_folder.save_shape(folder, config, scalar=scalar, token_ids=ids, tokenizer_from=tokenizer)
    header, end = {}, 0
    for place in places(config, scalar=scalar):
        begin, end = end, end + 2 * math.prod(place.shape)
        name = file_name(FAMILIES[config.family], place.name)
        header[name] = {"dtype": "BF16", "shape": list(place.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        # A file with a hole: as long as the header says, and no block of it is on the disk.
        file.truncate(8 + len(text) + end)
    return config


def write_rows(path: Path, kind: str, longest: int, *, prompts: bool, packed: bool) -> Path:
    """Writes records of one of KINDS of which some just reach `longest` tokens, whatever the template adds.

    prompts: whether that is the length of prompts; else that of prompt and response. packed: rows of all lengths.
    """
    first = 1 if packed else max(1, longest - _AROUND)
    counts = sorted(
        {int(x) for x in range(first, longest + 1, max(1, (longest - first) // _AROUND))} | {longest}
    )
    rows = []
    for i, count in enumerate(counts):
        said = " ".join(["w7"] * count)
        # Prompts differ, because what is held out must share none with training.
        row = {"instruction": f"w{i + 9} {said}" if prompts else f"w{i + 9}", "input": ""}
        answer, other = ("w5", "w6") if prompts else (f"w5 {said}", f"w6 {said}")
        row |= {
            "instructions": {"output": answer},
            "pairs": {"output_1": answer, "output_2": other, "preference": 1},
            "candidates": {"responses": [answer, other, answer, other], "scores": [1.0, 0.0, 0.5, 0.2]},
            "ratings": {"output": answer, "rating": 1 + i % 5},
        }[kind]
        rows.append(row)
    write_jsonl(path, rows)
    return path


def stood_in(page: ConfigDict, needs: Needs, asked: Mapping[str, str], folder: Path, kind: str) -> ConfigDict:
    """A copy of the page that reads stand-ins, written into `folder`, in the place of all files, models and tokenizers.

    kind: of the training rows, one of KINDS. Raises UserError for a model whose shape nobody knows.
    """
    page = ConfigDict(page.to_dict())
    given, changes = page.to_dict(), {"distributed": "off"}
    online = "rollout" in given
    longest = given["data"].get("max_prompt_length" if online else "max_length", 0)
    packing = given["data"].get("packing")
    # The most that a step may be where short rows decide: none is short enough to share its array's row.
    changes |= {"data.packing": "off"} if packing == "auto" else {}
    about = {"prompts": online, "packed": packing == "on"}
    table = write_rows(folder / f"{kind}.jsonl", kind, longest, **about)
    # A PAD that the page adds to the tokenizer makes the model one row larger, as it will in the run.
    pad = not given["model"].get("pad_token", "")
    for number, (row, _, path) in enumerate(inputs.inputs_of(needs, given)):
        there = str(folder / f"model_{number}")
        if row.kind in (inputs.MODEL, inputs.WITHIN):
            scalar = row.kind == inputs.WITHIN or "reward" in row.field
            raw = model_json(row.field, path, asked)
            try:
                write_model(Path(there), raw, scalar=scalar, pad=pad or scalar)
            except UserError as error:
                # The stand-in's folder is gone when this is read; what is wrong stands where its shape is from.
                whose = asked.get(row.field, asked.get("", "")) or path
                said = str(error).removeprefix(f"{there}/")
                raise UserError(f"{row.field}: {whose}: {said}") from error
            before = changes.get(row.field, inputs.value_at(given, row.field))
            changes[row.field] = before.replace(path, there) if row.kind == inputs.WITHIN else there
        elif row.kind == inputs.TOKENIZER:
            write_tokenizer(Path(there), given["model"].get("vocab_size", 4096), pad=True)
            changes[row.field] = there
        elif row.kind in (inputs.TABLE, inputs.TABLES):
            own = row.field.startswith("data.")
            demonstrations = table if own else folder / "instructions.jsonl"
            if not own:
                write_rows(demonstrations, "instructions", longest, **about)
            changes[row.field] = str(demonstrations)
        elif row.kind == inputs.NAMED_TABLES:
            before = changes.get(row.field, inputs.value_at(given, row.field))
            changes[row.field] = before.replace(path, str(table))
    changes["data.eval"] = str(table)
    if (
        not given["model"].get("init", True)
        and "tokenizer" in given["model"]
        and not given["model"]["tokenizer"]
    ):
        changes["model.tokenizer"] = str(
            write_tokenizer(folder / "words", given["model"]["vocab_size"], pad=True)
        )
    if "epochs" in given and not online:
        changes["epochs"] = 1e4  # Few rows make few steps, fewer than a warm-up may ask for.
    page.update_from_flattened_dict(changes)
    return page
