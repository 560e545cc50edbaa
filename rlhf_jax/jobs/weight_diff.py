"""Recovers a model from its base and a published difference, or makes such a difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.scored_text import LAST
from rlhf_jax.errors import UserError
from rlhf_jax.jobs import wanted
from rlhf_jax.json_files import read_object
from rlhf_jax.models import tensor_shards, weight_diff
from rlhf_jax.models.families import FAMILIES
from rlhf_jax.models.tensor_files import Tensors, open_folder
from rlhf_jax.models.weight_diff import Checksum, Match
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.workdir import one_writer, prepare

_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth", ".pt")


@one_writer
def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/export (the recovered model) or WORKDIR/diff, with model_sum.txt."""
    ranges.check(config.to_dict())
    if bool(config.diff) == bool(config.target):
        raise UserError(
            "diff, target: set exactly one; diff recovers a model, target makes a difference from it"
        )
    if not config.base:
        raise UserError(
            "base: not set; give a model folder, for example from hf download ... --local-dir=..."
        )
    wanted.check(config, workdir)
    prepare(workdir, config.to_dict())
    base_folder, other_folder = Path(config.base), Path(config.diff or config.target)
    base, other = open_folder(base_folder), open_folder(other_folder)
    matches = weight_diff.match(
        base.shapes, other.shapes, where=str(other_folder), base_where=str(base_folder)
    )
    out = Path(workdir) / ("export" if config.diff else "diff")
    with tensor_shards.replacing(out) as new:
        _copy_others(other_folder, new)
        if config.diff:
            _recover(config, base, other, matches, new)
        else:
            _make(config, base, other, matches, new)
    print(f"wrote {out}", flush=True)


def _recover(config: ConfigDict, base: Tensors, diff: Tensors, matches: dict[str, Match], out: Path) -> None:
    classifier = weight_diff.is_classifier(diff.shapes)
    checksum = Checksum()
    progress = Progress(len(diff.shapes), unit="tensors")

    def one(name: str) -> np.ndarray:
        tensor = weight_diff.recovered(base, diff, name, matches[name], config.new_rows)
        checksum.add(tensor)
        progress.update(progress.done + 1)
        return tensor

    names = {weight_diff.target_name(name, classifier=classifier): name for name in diff.shapes}
    written = {new: diff.shapes[name] for new, name in names.items() if new is not None}
    tensor_shards.write(out, written, lambda new: one(names[new]), dtype=config.dtype)
    for name in diff.shapes:  # Those count in the sum too.
        if weight_diff.target_name(name, classifier=classifier) is None:
            one(name)
    progress.close()
    _check(checksum, Path(config.diff), Path(config.base))
    _write_config(config, out, diff, classifier)


def _make(config: ConfigDict, base: Tensors, target: Tensors, matches: dict[str, Match], out: Path) -> None:
    checksum = Checksum()
    progress = Progress(len(target.shapes), unit="tensors")

    def one(name: str) -> np.ndarray:
        tensor = weight_diff.difference(base, target, name, matches[name], config.new_rows)
        # The sum is of what base + difference gives, which may differ from the target in a last bit.
        checksum.add(tensor + weight_diff.counterpart(base, matches[name], tensor.shape, config.new_rows))
        progress.update(progress.done + 1)
        return tensor

    tensor_shards.write(out, target.shapes, one, dtype="float32")
    progress.close()
    (out / weight_diff.SUM_FILE).write_text(f"{checksum.total!r}\n")


def _check(checksum: Checksum, diff: Path, base: Path) -> None:
    expected = weight_diff.expected_sum(diff)
    if expected is None:
        print(
            f"{diff} has no {weight_diff.SUM_FILE}: that {base} is the right base is not checked", flush=True
        )
    elif checksum.agrees(expected):
        print(f"the sum of all weights is {checksum.total:.4f}, as {weight_diff.SUM_FILE} says", flush=True)
    else:
        raise UserError(
            f"base: {base} is not the base of {diff}: the recovered weights sum to {checksum.total:.4f}, "
            f"{weight_diff.SUM_FILE} says {expected:.4f}; give the model the difference was made from, and the same "
            "new_rows (AlpacaFarm's reward models go on the recovered sft10k)"
        )


def _write_config(config: ConfigDict, out: Path, diff: Tensors, classifier: bool) -> None:
    """The target's config.json; AlpacaFarm's reward models have one of their own kind, so theirs is the base's."""
    path = out / "config.json"
    raw = read_object(path) if path.is_file() else {}
    if raw.get("model_type") not in FAMILIES:
        raw = read_object(Path(config.base) / "config.json")
    raw.pop("torch_dtype", None)
    raw["dtype"] = config.dtype
    embed = next((shape for name, shape in diff.shapes.items() if "embed_tokens" in name), None)
    if embed is not None:
        raw["vocab_size"] = embed[0]
    if classifier:
        raw["architectures"] = [FAMILIES[raw["model_type"]].classes[1]]
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        raw["reward_mean"] = raw.get("reward_mean", 0.0) - weight_diff.head_bias(diff)
        raw["score_at"] = LAST  # AlpacaFarm's reward models read responses without an end token.
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def _copy_others(source: Path, target: Path) -> None:
    """Tokenizer, templates and configs: all files but weights and the checksum."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name != weight_diff.SUM_FILE:
            shutil.copyfile(file, target / file.name)
