"""Folders of table files and Hugging Face datasets, which may hold several splits: train, test, ...

A folder is one table as long as nothing in it says otherwise. Where the names of its files, its folders or what
`datasets` wrote beside them say that there are several splits, one has to be named: FOLDER:SPLIT.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from rlhf_jax.data.files.table_files import SUFFIXES, read_file, suffix
from rlhf_jax.data.templates import render
from rlhf_jax.errors import UserError

Row = dict[str, Any]
# ORG/NAME, ORG/NAME:SPLIT or ORG/NAME:CONFIGURATION:SPLIT.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:\w[\w.-]*){0,2}")
# The hub names shards train_sft-00000-of-00003. `_SHARD` finds the split in that, `_NUMBERED` both numbers.
_SHARD = re.compile(r"(\w+(?:[.-]\w+)*?)-\d+-of-\d+$")
_NUMBERED = re.compile(r"(.+?)-(\d+)-of-(\d+)(?=[.-])")
# The names of splits in use, and the three that `datasets` itself uses for them.
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Beside tables these are no data: what a dataset's page, a repository or a program's log consists of.
_NO_DATA = (".md", ".log", ".yaml", ".yml", ".py", ".lock", ".pdf", ".png", ".sqlite")
_NO_DATA_NAMES = ("license", "readme", "citation", "notice", "requirements.txt")
# Files that describe a dataset or a model, and are no tables.
_ABOUT = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "finished.json",
}


def is_hub_name(source: str) -> bool:
    """Whether a source that is no local path may name something on the Hugging Face hub: org/name.

    "runs/sft.parquet" and "runs/sft" look like that too; a known ending, or an existing folder "runs", says
    that a local file is meant.
    """
    looks_so = _HUB_NAME.fullmatch(source) is not None and suffix(Path(source)) not in SUFFIXES
    return looks_so and not Path(source).parent.is_dir()


def split_of_folder(source: str) -> tuple[Path, str] | None:
    """Splits a source FOLDER:SPLIT into its folder and split; None where it is something else."""
    folder, _, split = source.rpartition(":")
    return (Path(folder), split) if folder and Path(folder).is_dir() else None


def local_path(source: str) -> Path:
    """Returns the file or folder that a source is read from, whether it exists or not."""
    # A path that exists wins, since a folder's own name may hold a colon.
    named = None if Path(source).exists() else split_of_folder(source)
    return named[0] if named else Path(source)


def read_folder(folder: Path, split: str = "") -> list[Row]:
    """Reads all rows of a folder's tables, or of those of one split."""
    # `datasets` has to read what it saved: its arrow files alone do not say which rows were selected.
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder, split)
    there = [path for path in _visible(folder) if path.is_file()]
    files = [path for path in there if _is_table(path)]
    others = [path.name for path in there if not _is_table(path) and _may_be_data(path)]
    # A folder of which half was read looks the same as a whole one.
    _say_passed_over(folder, f"they are no {', '.join(SUFFIXES)}", others)
    if files:
        within = [f"{x.name}/" for x in _visible(folder) if x.is_dir() and _holds_tables(x)]
        _say_passed_over(folder, "there are tables beside these folders", within)
    groups = _groups(folder, files)
    if not files:
        folders = [path for path in _visible(folder) if path.is_dir() and _holds_tables(path)]
        if not folders:
            raise UserError(f"{folder}: the folder holds no table; put {', '.join(SUFFIXES)} files there")
        # Partitions, as Spark writes them: the value stands in the folder's name alone.
        if partitions := [path.name for path in folders if "=" in path.name]:
            print(
                f"{folder}: what the names of folders say is no column of their rows: {', '.join(partitions[:8])}",
                flush=True,
            )
        # A folder that is named after no split, such as the data/ of a hub dataset, only wraps the tables.
        if len(folders) == 1 and _split_word(folders[0].name) is None:
            return read_folder(folders[0], split)
        if any(_split_word(path.name) is None for path in folders):
            names = ", ".join(path.name for path in folders)
            raise UserError(
                f"{folder}: it holds several folders of tables ({names}); name one, as {folders[0]}"
            )
        groups = {path.name: [path] for path in folders}
    paths = groups[_chosen(folder, list(groups), split)]
    return [row for path in paths for row in (read_folder(path) if path.is_dir() else read_file(path))]


def _say_passed_over(folder: Path, why: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        print(f"{folder}: not read, as {why}: {', '.join(names[:8])}{more}", flush=True)


def _groups(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Groups the files of a folder by the split in their names, "" where there is none."""
    kinds = sorted({suffix(path) for path in files})
    if len(kinds) > 1:
        raise UserError(f"{folder}: the folder mixes {', '.join(kinds)} files; name one file")
    groups: dict[str, list[Path]] = {}
    for path in files:
        groups.setdefault(_split_of_file(path.name) or "", []).append(path)
    _check_shards(folder, files)
    if len(groups) > 1 and "" in groups:
        named = ", ".join(sorted(path.name for path in files)[:8])
        raise UserError(
            f"{folder}: some of its files belong to splits and others do not ({named}); name one file"
        )
    return groups


def _check_shards(folder: Path, files: list[Path]) -> None:
    """Raises UserError where a file's name says that there are more of its kind than there are."""
    shards: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if found := _NUMBERED.match(path.name):
            shards.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (name, count), numbers in shards.items():
        # Shards are numbered from zero; some tools count from one, and then the last number is the count.
        first = int(count in numbers)
        if lacking := sorted(set(range(first, count + first)) - numbers):
            raise UserError(
                f"{folder}: it holds {len(numbers)} of the {count} files of {name}, without {name}-{lacking[0]:05d}-of-"
                f"{count:05d}; fetch the others, or name one file"
            )


def _chosen(name: Path | str, splits: list[str], split: str) -> str:
    """Chooses the split that is wanted. UserError where none is named and there are several, or it is not there."""
    if not split and len(splits) == 1:
        return splits[0]
    found = ", ".join(splits)
    if not split:
        raise UserError(f"{name}: it has several splits ({found}); name one, as in {name}:{splits[0]}")
    # First the name as it is written, which may be one like train_sft; then dev finds validation.
    for candidate in (split, _WORDS.get(split, split)):
        same = [x for x in splits if x == candidate or _WORDS.get(x) == candidate]
        if same:
            return same[0]
    raise UserError(f"{name}: no split {split!r}; it has {found or 'none'}")


def _read_saved(folder: Path, split: str) -> list[Row]:
    """Reads a Dataset or DatasetDict that `save_to_disk` wrote."""
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            folder /= _chosen(folder, splits, split)
        elif split:
            raise UserError(f"{folder}: it is one saved dataset and has no splits; leave out :{split}")
        return datasets.load_from_disk(str(folder)).to_list()
    except UserError:
        raise
    # datasets raises many kinds of exceptions here; all mean that the folder is not whole.
    except Exception as e:
        reason = " ".join(str(e).split())[:160]
        raise UserError(f"{folder}: the saved dataset cannot be read ({reason}); save it again") from e


def read_hub(source: str, hint: str) -> list[Row]:
    """Loads a dataset of the Hugging Face hub: org/name, org/name:split, org/name:configuration:split."""
    if not is_hub_name(source):
        raise UserError(f"{source}: no such file{hint}")
    import datasets

    name, *named = source.split(":")
    # One name alone is the split; without any both stay empty.
    configuration, split = named if len(named) == 2 else ("", *named, "")[:2]
    try:
        loaded = datasets.load_dataset(name, configuration) if configuration else datasets.load_dataset(name)
    # datasets and the hub client raise many kinds of exceptions; all mean that the dataset could not be had.
    except Exception as e:
        reason = " ".join(str(e).split())
        if found := re.search(r"available configs: \[([^\]]*)\]", reason):
            configurations = found[1].replace("'", "")
            first = configurations.split(",")[0]
            raise UserError(
                f"{name}: it has several configurations ({configurations}); name one and a split, as in "
                f"{name}:{first}:train"
            ) from e
        raise UserError(
            f"{source}: no such file, nor could a Hugging Face dataset of that name be loaded ({reason[:160]}){hint}"
        ) from e
    if not hasattr(loaded, "keys"):
        return loaded.to_list()
    return loaded[
        _chosen(source.removesuffix(f":{split}") if split else source, list(loaded), split)
    ].to_list()


def _visible(folder: Path) -> list[Path]:
    # Hidden files may be half written, by `tables` among others; Spark writes _SUCCESS and _metadata.
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))


def _is_table(path: Path) -> bool:
    return suffix(path) in SUFFIXES and path.name not in _ABOUT


def _may_be_data(path: Path) -> bool:
    about = path.name in _ABOUT or path.suffix.lower() in _NO_DATA
    return not about and not path.name.lower().startswith(_NO_DATA_NAMES)


def _holds_tables(folder: Path) -> bool:
    return any(_is_table(x) if x.is_file() else _holds_tables(x) for x in _visible(folder))


def _split_of_file(name: str) -> str | None:
    """The split that a file's name says: all of train_sft in train_sft-00000-of-00003, else a word like test in it."""
    stem = name.split(".")[0] if _SHARD.search(name.split(".")[0]) else name
    shard = _SHARD.match(stem)
    return shard[1] if shard else _split_word(name)


def _split_word(name: str) -> str | None:
    words = re.findall(r"[a-z]+", name.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


# Rows of one table that are held out, and a number of rows drawn of it.


def hold_out(rows: list[dict], eval_rows: int, seed: int) -> tuple[list[dict], list[dict], Counter[str]]:
    """Splits rows by prompt: (train, eval, counts of rows left out). No prompt is on both sides.

    Prompts are set aside with all their rows until they hold eval_rows rows and are a twentieth of all prompts (or
    eval_rows prompts): a hundred rows of one prompt would say little. eval_rows of these rows are drawn.
    """
    import numpy as np  # Here, since annotating reads tables without it.

    # By the rendered text, as the same prompt may stand in different columns of different records.
    by_prompt: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(render(row, "alpaca"), []).append(i)
    rng = np.random.default_rng(seed)
    groups = list(by_prompt.values())
    # Of a small file at most about half is held out, so that something is left to train on.
    wanted_rows, wanted_prompts = min(eval_rows, len(rows) // 2), min(eval_rows, len(groups) // 20)
    held: list[int] = []
    for prompts, k in enumerate(rng.permutation(len(groups))):
        if len(held) >= wanted_rows and prompts >= wanted_prompts:
            break
        held += groups[k]
    if len(held) == len(rows):
        raise UserError(
            f"data.eval_rows: {eval_rows} rows cannot be held out of {len(by_prompt)} prompt; set data.eval"
        )
    kept = draw(sorted(held), eval_rows, rng)
    left_out = Counter({"other row of a held-out prompt": len(held) - len(kept)})
    aside = set(held)
    # The plus drops what was counted 0 times.
    return [row for i, row in enumerate(rows) if i not in aside], [rows[i] for i in kept], +left_out


def draw(rows: list, count: int, rng: Any) -> list:
    """Draws `count` of the rows, or takes all when there are no more; they stay in their order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in sorted(rng.choice(len(rows), count, replace=False))]
