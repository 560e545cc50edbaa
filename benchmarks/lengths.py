"""What ragged lengths cost, before and after: SFT and DPO with packing, decoding with compaction, scoring by length.

    python benchmarks/lengths.py [--size tiny] [--repetitions 7]

Both ways run in turns in one process, on the rows of `setting.py` (lengths from a quarter to the full one); when
decoding, responses end at random, after a quarter of the longest in the mean. Times are ratios, before over after;
`places` are array places for each real token, and losses and samples of both ways must agree.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import setting  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from rlhf_jax.data.batches import (  # noqa: E402
    Pairs,
    Sequences,
    batches_by_length,
    bucket,
    flattened,
    pad,
    row_indices,
)
from rlhf_jax.data.tokenization import SIDES  # noqa: E402
from rlhf_jax.methods import dpo, sft  # noqa: E402
from rlhf_jax.models import decoder  # noqa: E402
from rlhf_jax.models.config import ModelConfig  # noqa: E402
from rlhf_jax.models.responses import plain_row_logprobs  # noqa: E402
from rlhf_jax.parallel.mesh import make_mesh, to_global  # noqa: E402
from rlhf_jax.sampling import compaction  # noqa: E402
from rlhf_jax.sampling.choose import Sampling  # noqa: E402
from rlhf_jax.sampling.decode import generate  # noqa: E402
from rlhf_jax.training.loop.state import create  # noqa: E402
from rlhf_jax.training.loop.step import LossFn, make_train_step  # noqa: E402
from rlhf_jax.training.optimizers.optimizer import make_optimizer  # noqa: E402
from rlhf_jax.training.rows.shared_prompt_rows import pair_rows  # noqa: E402
from rlhf_jax.training.run.encoded_rows import Rows, Split, rows_of  # noqa: E402

CHUNK = 128


def in_turns(ways: dict[str, Callable[[], Any]], repetitions: int) -> str:
    """Seconds of the first way over those of the second: median of the rounds' ratios, and of the fastest ones."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repetitions):
        for name in list(ways)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(ways[name]())
            took[name].append(time.perf_counter() - began)
    before, after = took.values()
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    return f"{statistics.median(ratios):.2f}x (fastest {min(before) / min(after):.2f}x)"


def packing(size: setting.Size, config: ModelConfig, params: Any, repetitions: int) -> str:
    rows = setting.demonstrations(size, ragged=True)
    whole = [np.array(row["prompt"] + row["response"], np.int32) for row in rows]
    found, steps = Sequences(*flattened(whole), np.array([len(row["prompt"]) for row in rows], np.int32)), {}
    for how in ("off", "auto"):
        page = page_of(len(rows), packing=how)
        train, _, R = rows_of(Split(found, found, []), page.data, 0, 0, auto=(page, config))
        steps[how] = sft.sft_loss_fn(config, R, CHUNK), train
    return learning(steps, found.lengths.sum(), params, repetitions)


def pairs(size: setting.Size, config: ModelConfig, params: Any, repetitions: int) -> str:
    """DPO, whose two sides have rows of their own, then their prompt in common and array rows with other pairs."""
    rows = setting.pairs(size, ragged=True)
    heads = np.array([len(row["prompt"]) for row in rows], np.int32)
    whole = ([np.array(row["prompt"] + row[side], np.int32) for row in rows] for side in SIDES)
    found, steps = Pairs(*(Sequences(*flattened(side), heads) for side in whole)), {}
    for how in ("off", "auto"):
        page = page_of(len(rows), packing=how, share_prompts=how, max_length=size.prompt + size.response)
        train, _, R = pair_rows(Split(found, found, []), page.data, 0, 0, config, auto=page)
        zeros = {f"ref_{side}": np.zeros(len(rows), np.float32) for side in SIDES}
        steps[how] = dpo.dpo_loss_fn(config, R, CHUNK, beta=0.1), train.with_columns(zeros)
    # What has to be computed: the prompt of a pair once.
    return learning(steps, sum(side.lengths.sum() for side in found) - heads.sum(), params, repetitions)


def page_of(batch_size: int, **data: Any) -> ConfigDict:
    return ConfigDict({"batch_size": batch_size, "epochs": 1.0, "microbatches": 1, "seed": 0, "data": data})


def learning(steps: dict[str, tuple[LossFn, Rows]], real: int, params: Any, repetitions: int) -> str:
    """Steps of two ways to lay out the same rows, in turns; real: tokens that both have to compute."""
    ways, said = {}, []
    for how, (loss_fn, rows) in steps.items():
        batch = to_global(rows.make(row_indices(0, rows.count, rows.count, 0), slice(0, rows.count)))
        optimizer = make_optimizer(learning_rate=1e-5, total_steps=repetitions + 1)
        step = make_train_step(loss_fn, optimizer)
        state, metrics = step(create(jax.tree.map(jnp.copy, params), optimizer, 0), batch)
        held = [jax.block_until_ready(state)]

        def one(step: Any = step, batch: Any = batch, held: list = held) -> Any:
            held[0], _ = step(held[0], batch)
            return held[0]

        ways[how] = one
        places = sum(x.size for name, x in batch.items() if name.endswith("tokens")) / real
        said.append(f"{places:.2f} places, loss {metrics['loss']:.6f}, gradient {metrics['grad_norm']:.6f}")
    return f"{in_turns(ways, repetitions)}; {'; then '.join(said)}"


def decoding(size: setting.Size, config: ModelConfig, params: Any, repetitions: int) -> str:
    B, P, R = 4 * size.generated, size.prompt, size.response
    tokens_BP = jnp.asarray(np.random.default_rng(0).integers(3, size.vocab, (B, P)), jnp.int32)
    # A fresh model takes all tokens as about equally likely.
    ends_E = jnp.arange(3, 3 + size.vocab * 4 // R)
    given = (params, tokens_BP, jnp.full(B, P), jnp.arange(B), jax.random.key(0), Sampling(), ends_E, 0)
    ways, results, stages = {}, {}, compaction.stages
    for how, rule in (("whole", lambda B, R, groups, layers: (B,)), ("compacted", stages)):
        compaction.stages = rule
        jax.clear_caches()
        program = generate.lower(config, *given, max_new_tokens=R).compile()
        results[how] = jax.block_until_ready(program(*given))
        ways[how] = lambda program=program: program(*given)
    before, after = results.values()
    same = float((before.tokens_BR == after.tokens_BR).mean())
    gap = float(jnp.abs(before.logprobs_BR - after.logprobs_BR).max())
    lengths_B = np.asarray(after.lengths_B)
    about = f"{B} rows of {lengths_B.mean():.0f} tokens, the longest {lengths_B.max()}"
    return f"{in_turns(ways, repetitions)}; {about}; {same:.2%} same tokens, log-probs within {gap:.0e}"


def scoring(size: setting.Size, config: ModelConfig, params: Any, repetitions: int) -> str:
    rng, B = np.random.default_rng(0), size.rows
    most = size.prompt + size.response
    whole = [
        rng.integers(3, size.vocab, n).astype(np.int32) for n in rng.integers(most // 4, most + 1, 32 * B)
    ]
    found = Sequences(*flattened(whole), np.array([len(x) // 4 for x in whole], np.int32))
    score = jax.jit(
        lambda params, x: plain_row_logprobs(config, params, x, x["tokens"].shape[1], CHUNK)[0].sum()
    )
    T = bucket(int(found.lengths.max()), 8)
    batches = {
        "in order": [(np.arange(i, i + B), T) for i in range(0, len(found), B)],
        "by length": [(index_B, T) for index_B, _, T in batches_by_length(found.lengths, B)],
    }

    def all_of(name: str) -> list[jax.Array]:
        return [score(params, to_global(pad(found, index_B, T, 0))) for index_B, T in batches[name]]

    ways = {name: lambda name=name: all_of(name) for name in batches}
    for way in ways.values():
        jax.block_until_ready(way())
    places = [B * sum(T for _, T in x) / found.lengths.sum() for x in batches.values()]
    lengths = len({T for _, T in batches["by length"]})
    return f"{in_turns(ways, repetitions)}; {places[0]:.2f}, then {places[1]:.2f} places in {lengths} lengths"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=setting.SIZES, default="tiny")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", choices=("packing", "pairs", "decoding", "scoring"))
    args = parser.parse_args()
    size = setting.SIZES[args.size]
    make_mesh(1, 1, 1, devices=jax.devices()[:1])
    config = ModelConfig(
        vocab_size=size.vocab,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        kv_heads=size.heads,
        head_dim=size.head_dim,
        ff=size.ff,
    )
    params = nn.unbox(decoder.init(config, jax.random.key(0)))
    for one in (packing, pairs, decoding, scoring):
        if args.only in (None, one.__name__):
            print(f"{args.size} {one.__name__}: {one(size, config, params, args.repetitions)}", flush=True)


if __name__ == "__main__":
    main()
