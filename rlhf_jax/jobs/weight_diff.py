"""Recovers a model from its base and a published difference of weights, or makes such a difference.

What is stored in a difference, and under which names, is known to `models.huggingface.weight_difference`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import ranges
from rlhf_jax.data.tokens.scored_text import LAST
from rlhf_jax.errors import UserError, read_object
from rlhf_jax.models.huggingface import tensor_files, weight_difference
from rlhf_jax.models.huggingface.families import FAMILIES
from rlhf_jax.models.huggingface.tensor_files import Tensors, open_folder
from rlhf_jax.models.huggingface.weight_difference import Checksum, Match
from rlhf_jax.training.checkpoints import lock
from rlhf_jax.training.checkpoints.workdir import write_json
from rlhf_jax.training.progress import Progress
from rlhf_jax.training.run import missing_inputs
from rlhf_jax.training.run.missing_inputs import WEIGHTS, Needs, Read, made_by

# Weights in any format: they are written anew. Everything else in the folder is copied.
_NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth", ".pt")


NEEDS = Needs(reads=tuple(Read(field, WEIGHTS, made_by("sft")) for field in ("base", "diff", "target")))


def run(config: ConfigDict, workdir: str) -> None:
    """Writes WORKDIR/export (the recovered model) or WORKDIR/diff, with model_sum.txt."""
    ranges.check_ranges(config.to_dict())
    if bool(config.diff) == bool(config.target):
        raise UserError(
            "diff, target: set exactly one; diff recovers a model, target makes a difference from it"
        )
    if not config.base:
        raise UserError(
            "base: not set; give a model folder, for example from hf download ... --local-dir=..."
        )
    missing_inputs.check_needs(NEEDS, config, workdir)
    with lock.holding(workdir):
        write_json(Path(workdir) / "config.json", config.to_dict())
        _run(config, workdir)


def _run(config: ConfigDict, workdir: str) -> None:
    base_folder, other_folder = Path(config.base), Path(config.diff or config.target)
    base, other = open_folder(base_folder), open_folder(other_folder)
    matches = weight_difference.match(
        base.shapes, other.shapes, where=str(other_folder), base_where=str(base_folder)
    )
    out = Path(workdir) / ("export" if config.diff else "diff")
    with tensor_files.replacing(out) as new:
        _copy_others(other_folder, new)
        if config.diff:
            _recover(config, base, other, matches, new)
        else:
            _make(config, base, other, matches, new)
    print(f"wrote {out}", flush=True)


def _recover(config: ConfigDict, base: Tensors, diff: Tensors, matches: dict[str, Match], out: Path) -> None:
    classifier = weight_difference.is_classifier(diff.shapes)
    checksum = Checksum()
    progress = Progress(len(diff.shapes), unit="tensors")

    def one(name: str) -> np.ndarray:
        tensor = weight_difference.recovered(base, diff, name, matches[name], config.new_rows)
        checksum.add(tensor)
        progress.update(progress.done + 1)
        return tensor

    # By the name in the recovered model; None stands for tensors that have no place in it.
    names = {weight_difference.target_name(name, classifier=classifier): name for name in diff.shapes}
    written = {new: diff.shapes[name] for new, name in names.items() if new is not None}
    tensor_files.write_shards(out, written, lambda new: one(names[new]), dtype=config.dtype)
    # The published sum is over all tensors, so those that are not written are added up as well.
    for name in diff.shapes:
        if weight_difference.target_name(name, classifier=classifier) is None:
            one(name)
    progress.close()
    # The folder gets its name only when this block is left
    # without an error, so a wrong model is never found there.
    _check(checksum, Path(config.diff), Path(config.base))
    _write_config(config, out, diff, classifier)


def _make(config: ConfigDict, base: Tensors, target: Tensors, matches: dict[str, Match], out: Path) -> None:
    checksum = Checksum()
    progress = Progress(len(target.shapes), unit="tensors")

    def one(name: str) -> np.ndarray:
        tensor = weight_difference.difference(base, target, name, matches[name], config.new_rows)
        # The sum is of what base + difference gives, which may differ from the target in a last bit.
        checksum.add(
            tensor + weight_difference.counterpart(base, matches[name], tensor.shape, config.new_rows)
        )
        progress.update(progress.done + 1)
        return tensor

    # float32, whatever the target has: the difference of two half-precision numbers need not be one itself.
    tensor_files.write_shards(out, target.shapes, one, dtype="float32")
    progress.close()
    (out / weight_difference.SUM_FILE).write_text(f"{checksum.total!r}\n")


def _check(checksum: Checksum, diff: Path, base: Path) -> None:
    expected = weight_difference.expected_sum(diff)
    if expected is None:
        print(
            f"{diff} has no {weight_difference.SUM_FILE}: that {base} is the right base is not checked",
            flush=True,
        )
    # AlpacaFarm publishes the sum for the same check; a
    # difference added to another base gives plausible nonsense.
    elif checksum.agrees(expected):
        print(
            f"the sum of all weights is {checksum.total:.4f}, as {weight_difference.SUM_FILE} says",
            flush=True,
        )
    else:
        raise UserError(
            f"base: {base} is not the base of {diff}: the recovered weights sum to {checksum.total:.4f}, "
            f"{weight_difference.SUM_FILE} says {expected:.4f}; give the model the difference was made from, and the "
            "same new_rows (AlpacaFarm's reward models go on the recovered sft10k)"
        )


def _write_config(config: ConfigDict, out: Path, diff: Tensors, classifier: bool) -> None:
    """Writes config.json: the target's own, or the base's where it is of a kind that only AlpacaFarm's code reads."""
    path = out / "config.json"
    raw = read_object(path) if path.is_file() else {}
    if raw.get("model_type") not in FAMILIES:
        raw = read_object(Path(config.base) / "config.json")
    # The older name of dtype, which could contradict it.
    raw.pop("torch_dtype", None)
    raw["dtype"] = config.dtype
    embed = next((shape for name, shape in diff.shapes.items() if "embed_tokens" in name), None)
    # AlpacaFarm's models have one token more than their base, [PAD].
    if embed is not None:
        raw["vocab_size"] = embed[0]
    if classifier:
        raw["architectures"] = [FAMILIES[raw["model_type"]].classes[1]]
        raw |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        # Readers subtract reward_mean, so a bias that is added
        # to every score goes into it with its sign turned.
        raw["reward_mean"] = raw.get("reward_mean", 0.0) - weight_difference.head_bias(diff)
        # AlpacaFarm's reward models read responses without an end token.
        raw["score_at"] = LAST
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def _copy_others(source: Path, target: Path) -> None:
    """Copies tokenizer, templates and configs: all files but weights and the checksum."""
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(_NOT_COPIED) and file.name != weight_difference.SUM_FILE:
            shutil.copyfile(file, target / file.name)
