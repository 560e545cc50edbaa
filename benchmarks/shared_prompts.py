"""What it saves to compute a prompt once: a train step of DPO and of a reward model, and best of 16, both ways.

    python benchmarks/shared_prompts.py [--rounds 9] [--only 256]
    python benchmarks/shared_prompts.py --only "best of 16"

Both programs are compiled, then take turns in one process, so that whatever else the machine does falls on both.
Printed for each shape: floating-point operations of the step's matrix products as counted in its program (beside it
XLA's own analysis, which counts a layer once however many there are), the median of the rounds' ratios of time, and how
far loss and gradient norm of the first step are apart: a form that computed less than was asked would show there.

Best of 16 samples 16 responses to each prompt, without the scoring: `apart` takes every prompt 16 times, as a sampler
that knows no samples must, `shared` once, and the cache is copied to its 16 rows. Both draw with the same keys, so the
tokens are the same. A response runs to its full length, so the ratio is that of prompts to such responses.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.linen import meta

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from lengths import in_turns

from rlhf_jax.data.batches import Pairs, Sequences, alternating, bucket, flattened
from rlhf_jax.data.shared_prompts import pad_shared, shared_rows
from rlhf_jax.methods.dpo import dpo_loss_fn
from rlhf_jax.methods.reward_model import reward_model_loss_fn
from rlhf_jax.models import decoder
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import Generation, generate
from rlhf_jax.training.loop.program_costs import matrix_flops
from rlhf_jax.training.loop.state import create
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.optimizers.optimizer import make_optimizer
from rlhf_jax.training.run.encoded_rows import array_sizes, pad_pairs


class Shape(NamedTuple):
    """A model, and pairs of it: tokens of prompts and responses, from the fewest to the most."""

    name: str
    model: ModelConfig
    pairs: int
    prompts: tuple[int, int]
    responses: tuple[int, int]


def llama(vocab: int, width: int, layers: int, heads: int, ff: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=width // heads,
        ff=ff,
    )


# Those of the embedded world have its lengths: 24 and 12 tokens in the mean, 56 at most.
SHAPES = (
    Shape("embedded world", llama(879, 128, 3, 4, 344), 32, (12, 36), (5, 20)),
    Shape("256 + 2 x 128", llama(4096, 512, 2, 8, 1376), 4, (256, 256), (128, 128)),
    Shape("512 + 2 x 64", llama(4096, 512, 2, 8, 1376), 4, (512, 512), (64, 64)),
    Shape("64 + 2 x 256", llama(4096, 512, 2, 8, 1376), 4, (64, 64), (256, 256)),
)


# Best of n: of 4 prompts, tokens of each and of every response.
SAMPLES, PROMPTS = 16, 4
SAMPLED = ((64, 64), (256, 64), (512, 64), (256, 256))


def drawn(shape: Shape) -> Pairs:
    rng, rows, lengths = np.random.default_rng(0), ([], []), []
    for _ in range(shape.pairs):
        prompt = rng.integers(3, shape.model.vocab_size, rng.integers(*shape.prompts, endpoint=True))
        for side in rows:
            response = rng.integers(3, shape.model.vocab_size, rng.integers(*shape.responses, endpoint=True))
            side.append(np.concatenate([prompt, response]).astype(np.int32))
        lengths.append(len(prompt))
    return Pairs(*(Sequences(*flattened(side), np.array(lengths, np.int32)) for side in rows))


class Form(NamedTuple):
    """A compiled step on a batch, and what it costs."""

    step: Any
    state: Any
    batch: dict
    flops: int
    by_xla: float
    tokens: int


def form(shape: Shape, job: str, batch: dict, R: int) -> Form:
    scalar = job == "reward model"
    params = meta.unbox(decoder.init(shape.model, jax.random.key(0), scalar=scalar))
    if scalar:
        loss_fn = reward_model_loss_fn(shape.model)
    else:
        zeros = np.zeros(shape.pairs, np.float32)
        batch = batch | {"ref_chosen": zeros, "ref_rejected": zeros}
        loss_fn = dpo_loss_fn(shape.model, R, 128, beta=0.1)
    tx = make_optimizer(learning_rate=1e-6, total_steps=1000, schedule="constant")
    step, state, batch = make_train_step(loss_fn, tx), create(params, tx, seed=0), jax.device_put(batch)
    traced = step.trace(state, batch)
    compiled = traced.lower().compile()
    step.use(compiled, batch)
    analysis = compiled.cost_analysis()
    tokens = sum(x.size for name, x in batch.items() if name.endswith("tokens"))
    return Form(step, state, batch, matrix_flops(traced.jaxpr), analysis["flops"], tokens)


def compare(shape: Shape, job: str, rounds: int) -> None:
    found = drawn(shape)
    T, R = array_sizes(*found)
    everything = np.arange(shape.pairs)
    laid_out = shared_rows(alternating(found), np.arange(0, 2 * shape.pairs + 1, 2))
    sizes = (bucket(laid_out.lengths.max(), 8), laid_out.most_targets, 2)
    forms = [
        form(shape, job, pad_pairs(found, everything, T, 0, slice(None)), R),
        form(shape, job, pad_shared(laid_out, everything, sizes, 0), sizes[1]),
    ]
    states, seconds, first = [x.state for x in forms], ([], []), []
    for turn in range(rounds + 1):
        for i, one in enumerate(forms):
            began = time.perf_counter()
            states[i], metrics = jax.block_until_ready(one.step(states[i], one.batch))
            if turn:  # The first touches memory that the others find mapped.
                seconds[i].append(time.perf_counter() - began)
            else:
                first.append(np.array([metrics["loss"], metrics["grad_norm"]]))
    apart = np.max(np.abs(first[1] / first[0] - 1))
    plain, shared = forms
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    print(
        f"{shape.name}, {job}: {plain.tokens:,} -> {shared.tokens:,} tokens, "
        f"{plain.flops / 1e9:.2f} -> {shared.flops / 1e9:.2f} GFLOP ({shared.flops / plain.flops:.0%}; "
        f"XLA's analysis {shared.by_xla / plain.by_xla:.0%}), {1e3 * statistics.median(seconds[0]):.0f} -> "
        f"{1e3 * statistics.median(seconds[1]):.0f} ms, time {ratio:.0%}; loss and gradient norm {apart:.0e} apart",
        flush=True,
    )


def samples(model: ModelConfig, prompts: int, P: int, R: int) -> dict[str, Callable[[], Generation]]:
    """Both ways to sample SAMPLES responses to each prompt, compiled."""
    rng, params = np.random.default_rng(0), meta.unbox(decoder.init(model, jax.random.key(0)))
    tokens_BP = rng.integers(3, model.vocab_size, (prompts, P)).astype(np.int32)
    ways = {}
    for name, times in (("apart", SAMPLES), ("shared", 1)):
        B = prompts * times
        rows = (np.repeat(tokens_BP, times, axis=0), np.full(B, P, np.int32), np.arange(B, dtype=np.int32))
        given = (params, *rows, jax.random.key(1), Sampling(), np.array([-1], np.int32), 0)
        program = generate.lower(model, *given, max_new_tokens=R, samples=SAMPLES // times).compile()
        ways[name] = partial(program, *given)
    return ways


def best_of(P: int, R: int, rounds: int) -> None:
    ways = samples(llama(4096, 512, 2, 8, 1376), PROMPTS, P, R)
    apart, shared = (jax.block_until_ready(way()) for way in ways.values())
    same = np.mean(np.asarray(apart.tokens_BR) == np.asarray(shared.tokens_BR))
    gap = float(np.abs(apart.logprobs_BR - shared.logprobs_BR).max())
    print(
        f"best of {SAMPLES}, {PROMPTS} prompts of {P} and responses of {R}: {in_turns(ways, rounds)} as fast with the "
        f"prompt shared; {same:.2%} of the tokens are the same, log-probs within {gap:.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="shapes whose name begins so")
    options = parser.parse_args()
    for shape in SHAPES:
        if shape.name.startswith(options.only):
            for job in ("DPO", "reward model"):
                compare(shape, job, options.rounds)
    if f"best of {SAMPLES}".startswith(options.only):
        for P, R in SAMPLED:
            best_of(P, R, options.rounds)


if __name__ == "__main__":
    main()
