"""Trains a small real model on real rows, beside TRL: the same start, the same token rows in the same order.

    bash benchmarks/setup_peers.sh torch
    python benchmarks/real.py --model SmolLM2-135M-Instruct.Q4_1.gguf --instructions alpaca.json --pairs labels.parquet
    python benchmarks/real.py --model FOLDER --instructions alpaca.json --tasks sft --ways lora --rows 16

Models, adapters and rows are written once, to a folder that every contestant reads. `ours` lays rows out as the
methods' pages do: packing, and prompts that a pair's sides share, are decided by `auto`, as in a run of 600 steps.
`trl` pads a batch to its longest row, as TRL does by default; `trl_free` sets its padding_free, where the trainer has
one. A repetition is one pass over all rows, of DPO with the reference's; tokens/s count real tokens. Loss and gradient
norm are the very first step's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
import run
from session import Job
from setting import Size

import jax  # isort: skip
import numpy as np  # isort: skip

from rlhf_jax.data.batches import Sequences
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.records.records import counts_text, read_instructions, read_pairs
from rlhf_jax.data.templates import Handling
from rlhf_jax.data.tokenization import encode_labelled_pairs, encode_sft
from rlhf_jax.data.tokens.special_ids import end_ids, with_spare_pad
from rlhf_jax.data.tokens.tokenizer_files import load_tokenizer
from rlhf_jax.models import peft
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.decoder import reward_from_language
from rlhf_jax.models.huggingface import export_folder, import_folder
from rlhf_jax.models.lora import ALL, Lora, init_adapter, joined
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.run.load_models import resolve_folder

TASKS, WAYS, CONTESTANTS = ("sft", "dpo", "reward_model"), ("full", "lora"), ("ours", "trl", "trl_free")
# Rows that fit are looked for among so many times as many, drawn with seed 0.
DRAWN = 20


def write_models(root: Path, folder: str, template: str, rank: int) -> tuple[ModelConfig, Any]:
    """Writes policy, reward model and an adapter of each; returns the policy's shape and the tokenizer."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    found, params = import_folder.load(folder, mesh)
    config, tokenizer = found.config, load_tokenizer(folder)
    # TRL scores the last token that is not PAD, and would score another one where PAD is the end token.
    tokenizer = with_spare_pad(tokenizer, end_ids(tokenizer, folder, template), config.vocab_size)
    if tokenizer is None:
        sys.exit(f"error: {folder}: its tokenizer has no token that could be PAD and ends nothing")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    settings = Lora(rank, 2.0 * rank, (ALL,))
    adapter = init_adapter(config, settings, mesh, 0)
    adapted = dataclasses.replace(config, adapter_scale=settings.scale)
    for name, whole in (
        ("policy", params),
        ("reward", reward_from_language(config, params, jax.random.key(0))),
    ):
        export_folder.save_folder(root / name, config, whole, token_ids=ids, tokenizer_from=folder)
        tokenizer.save_pretrained(root / name)
        peft.save_adapter(root / f"{name}_adapter", adapted, joined(whole, adapter), base=str(root / name))
    return config, tokenizer


def demonstrations(args: argparse.Namespace, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows of SFT that fit, in the order drawn: {"prompt", "response"}."""
    records, _ = read_instructions(args.instructions, chat=args.template == CHAT)
    found, dropped = encode_sft(_drawn(records, args.rows), tokenizer, args.template, *_limits(args))
    if found.trained is not None:
        sys.exit(
            f"error: {args.instructions}: conversations of several turns; give rows of one response each"
        )
    return _told("demonstrations", list(_rows(response=found)), args.rows, dropped)


def pairs(args: argparse.Namespace, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Rows of DPO and reward model that fit, in the order drawn: {"prompt", "chosen", "rejected"}."""
    where = dict(part.split("=", 1) for part in args.pairs_where.split(",") if part)
    records, _ = read_pairs(args.pairs, where=where, chat=args.template == CHAT)
    drawn = _drawn(records, args.rows // 2)
    found, dropped, _ = encode_labelled_pairs(drawn, tokenizer, args.template, *_limits(args))
    return _told("pairs", list(_rows(**found._asdict())), args.rows // 2, dropped)


def _drawn(records: Sequence[dict], count: int) -> list[dict]:
    return [records[i] for i in np.random.default_rng(0).permutation(len(records))[: DRAWN * count]]


def _limits(args: argparse.Namespace) -> tuple[int, Handling]:
    return args.max_length, Handling(too_long="drop")


def _rows(**sides: Sequences) -> Any:
    """Token rows of one prompt and a response of each side; without those whose sides have different prompts."""
    first = next(iter(sides.values()))
    for i, length in enumerate(first.prompt_lengths):
        prompt = first[i][:length].tolist()
        responses = {name: side[i][length:].tolist() for name, side in sides.items()}
        if all(
            side.prompt_lengths[i] == length and side[i][:length].tolist() == prompt
            for side in sides.values()
        ):
            yield {"prompt": prompt, **responses}


def _told(
    name: str, rows: list[dict[str, list[int]]], count: int, dropped: Any
) -> list[dict[str, list[int]]]:
    if len(rows) < count:
        sys.exit(
            f"error: {len(rows)} {name} of --max-length ({counts_text(dropped)}); raise it, or lower --rows"
        )
    kept = rows[:count]
    means = ", ".join(f"{part} {np.mean([len(row[part]) for row in kept]):.0f}" for part in kept[0])
    print(f"{count} {name}, tokens in the mean: {means}; {counts_text(dropped)} of those drawn", flush=True)
    return kept


def shape_of(config: ModelConfig, max_length: int, batch: int) -> Size:
    names = ("width", "layers", "heads", "kv_heads", "ff")
    shape = {name: getattr(config, name) for name in names}
    return Size(vocab=config.vocab_size, prompt=0, response=max_length, rows=batch, **shape)


def parsed() -> argparse.Namespace:
    parser = run.parser_of(__doc__, CONTESTANTS)
    parser.set_defaults(repetitions=2)
    parser.add_argument("--model", required=True, help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--instructions", help="rows of instruction, input, output; for sft")
    parser.add_argument("--pairs", help="labelled pairs, for dpo and reward_model")
    parser.add_argument(
        "--pairs-where", default="", metavar="COLUMN=VALUE", help="pairs that have these alone"
    )
    parser.add_argument("--tasks", type=run.names(TASKS), default=list(TASKS))
    parser.add_argument("--ways", type=run.names(WAYS), default=list(WAYS))
    parser.add_argument("--rows", type=int, default=64, help="demonstrations; half as many pairs")
    parser.add_argument("--batch", type=int, default=8, help="demonstrations of a step; half as many pairs")
    parser.add_argument("--max-length", type=int, default=256, help="tokens; longer rows are left out")
    parser.add_argument("--template", default=CHAT)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters, on all linear layers")
    args = parser.parse_args()
    if args.batch % 2 or args.rows % args.batch:
        parser.error(f"--batch {args.batch} is odd or does not divide --rows {args.rows}")
    for name, tasks in (("instructions", {"sft"}), ("pairs", {"dpo", "reward_model"})):
        if tasks & set(args.tasks) and not getattr(args, name):
            parser.error(f"--{name} is missing; give its file, or leave out --tasks {','.join(tasks)}")
    return args


def main() -> None:
    args = parsed()
    run.prepare_to_measure(args)
    folder = resolve_folder(args.model)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        config, tokenizer = write_models(root, folder, args.template, args.rank)
        for kind, read in (("demonstrations", demonstrations), ("pairs", pairs)):
            if args.instructions if kind == "demonstrations" else args.pairs:
                (root / f"{kind}.json").write_text(json.dumps(read(args, tokenizer)))
        for way in args.ways:
            for task in args.tasks:
                batch = args.batch if task == "sft" else args.batch // 2
                size = shape_of(config, args.max_length, args.batch)
                job = Job(task, size, True, root, args.repetitions + 1, batch, lora=way == "lora")
                run.measure(job, f"{Path(args.model).stem}, {task}, {way}", args)


if __name__ == "__main__":
    main()
