"""The floor of an iteration of PPO or GRPO, and how near it we are: floating-point operations of matrix products.

    python benchmarks/ppo_floor.py [--only microfarm,small,alpaca_farm]
    python benchmarks/ppo_floor.py --config configs/grpo.py:rloo --lengths 24,12

`floor` is what the algorithm needs, counted by hand: real tokens alone, each seeing only what stands before it; a
prompt once for all of its responses; no network on a token that nothing is read from; and what an update computes
anyway, the log-probs and values of its rows before it moves, is not read beforehand, too. `ours` is what we run, by
hand: arrays as wide as the longest row may be, causal attention in blocks, logits made again going backward. `programs`
are the same parts as the run would compile them, counted as --plan and MFU count. Nothing is compiled, no weight read.

--lengths are tokens of prompts and responses in the mean; without them all are as long as they may be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
# A fused kernel of an accelerator is one opaque operation to a count of products.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ml_collections import ConfigDict  # noqa: E402
from setting import SIZES, Size  # noqa: E402

from rlhf_jax.models.attention.attend import block_size  # noqa: E402
from rlhf_jax.models.config import ModelConfig  # noqa: E402
from rlhf_jax.planning import stand_ins  # noqa: E402
from rlhf_jax.planning.page_programs import programs_of  # noqa: E402
from rlhf_jax.programs import load_program  # noqa: E402
from rlhf_jax.sampling import compaction  # noqa: E402
from rlhf_jax.settings import load_page  # noqa: E402
from rlhf_jax.training.loop.program_costs import matrix_flops  # noqa: E402
from rlhf_jax.training.run import memory_check, online  # noqa: E402


class Iteration(NamedTuple):
    """What decides the work of an iteration.

    Attributes:
      policy, value, rewards: settings of the models; value is None where there is none.
      prompts, samples: of a rollout, and responses of each prompt.
      P, R: columns of prompts and of responses.
      minibatches, epochs: of the rollout.
      adapters: whether only low-rank adapters are trained.
      remat: as the page has it.
      anchored: whether what is learned depends on the reference.
      reads: whether policy and value model read a rollout before its first update.
    """

    policy: ModelConfig
    value: ModelConfig | None
    rewards: tuple[ModelConfig, ...]
    prompts: int
    samples: int
    P: int
    R: int
    minibatches: int
    epochs: int
    adapters: bool
    remat: str
    anchored: bool
    reads: bool

    @property
    def rows(self) -> int:
        return self.prompts * self.samples


class Work(NamedTuple):
    """Positions that a pass computes: through the layers, pairs of them in attention, and with the language head."""

    tokens: float
    pairs: float
    heads: float = 0.0

    def times(self, count: float) -> Work:
        return Work(*(count * x for x in self))

    def flops(self, c: ModelConfig, layers: float = 1.0, attention: float = 1.0, head: float = 1.0) -> float:
        """2 per weight and position, 4 per feature and pair; each of the three as often as is said."""
        made = layers * self.tokens * 2 * weights(c)
        seen = attention * self.pairs * 4 * c.layers * c.heads * c.head_dim
        return made + seen + head * self.heads * 2 * c.width * c.vocab_size


def weights(c: ModelConfig) -> int:
    """Weights of all layers that a position is multiplied with."""
    attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads)
    return c.layers * (attention + feed_forward(c) * (3 if c.gated else 2))


def feed_forward(c: ModelConfig) -> int:
    return c.width * c.ff * max(1, c.experts)


def floor(x: Iteration, prompt: float, response: float) -> dict[str, float]:
    """FLOPs by part that the algorithm needs on prompts and responses of these lengths."""
    # The last token of a response is sampled and predicted, and only the reward model reads it.
    behind = response - 1
    pairs = lambda n: prompt * n + n * (n + 1) / 2  # noqa: E731 (of n tokens behind the prompt)
    asked, said = Work(prompt, prompt * (prompt + 1) / 2, 1), Work(behind, pairs(behind), behind)
    whole = Work(response, pairs(response))
    group, scored = (
        Work(*(a + x.samples * b for a, b in zip(asked, each, strict=True))).times(x.prompts)
        for each in (said, whole)
    )
    # What the first update computes of its own rows is not read; those of later ones are older than their parameters.
    read = (x.minibatches - 1) / x.minibatches
    passes = 1 + (1 if x.adapters else 2)
    values = group._replace(heads=0)
    return {
        "prefill": asked.times(x.prompts).flops(x.policy),
        "decoding": said.times(x.rows).flops(x.policy),
        "reading: policy": read * group.flops(x.policy),
        "reading: reference": group.flops(x.policy) if x.anchored else 0.0,
        "reading: value": read * values.flops(x.value) if x.value else 0.0,
        "scoring": sum(scored._replace(heads=0).flops(c) for c in x.rewards),
        "updates: policy": x.epochs * group.flops(x.policy, passes, 3, passes),
        "updates: value": x.epochs * values.flops(x.value, passes, 3) if x.value else 0.0,
    }


def ours(x: Iteration) -> dict[str, float]:
    """FLOPs by part that we do."""
    T = x.P + x.R
    block = block_size(T)
    pairs = sum((min(start + block, T) - start) * min(start + block, T) for start in range(0, T, block))
    row, scored = Work(T, pairs, x.R).times(x.rows), Work(T, pairs).times(x.rows)
    values = row._replace(heads=0)

    def updates(work: Work, c: ModelConfig) -> float:
        # Causal attention's backward pass has five products for the forward's two.
        layers, attention = 2 + (0 if x.adapters else 1), 3.5
        if x.remat != "none":
            attention += 1
        # The last product of a layer need not be made again, as nothing of the backward pass reads its result.
        last = c.layers * feed_forward(c) / weights(c)
        layers += 1 - last if x.remat == "full" else 0
        return x.epochs * work.flops(c, layers, attention, 3 if x.adapters else 4)

    return {
        "prefill": Work(x.P, x.P**2, 1).times(x.prompts).flops(x.policy),
        "decoding": Work(x.R, x.R * T, x.R).times(x.rows).flops(x.policy),
        "reading: policy": x.reads * row.flops(x.policy),
        "reading: reference": row.flops(x.policy),
        "reading: value": x.reads * values.flops(x.value) if x.value else 0.0,
        "scoring": sum(scored.flops(c) for c in x.rewards),
        "updates: policy": updates(row, x.policy),
        "updates: value": updates(values, x.value) if x.value else 0.0,
    }


def programs(page: ConfigDict, asked: dict[str, str]) -> tuple[Iteration, dict[str, float]]:
    """(what decides the work of a page's iteration, FLOPs of its programs as they are called in one)."""
    page = ConfigDict(page.to_dict())
    # Over all devices the work is the same whatever the mesh; here there may be one.
    page.mesh.data = page.mesh.fsdp = page.mesh.tensor = 1
    page.win_rate.judges = ""
    method = load_program(page)
    with tempfile.TemporaryDirectory() as folder, memory_check.stopped_at_plan():
        stood = stand_ins.stood_in(page, method.NEEDS, asked, Path(folder), stand_ins.KINDS[0])
        try:
            # What a run says of its rows would be of stand-ins.
            with contextlib.redirect_stdout(io.StringIO()):
                method.run(stood, str(Path(folder) / "workdir"))
        except memory_check.StoppedAtPlanError as stopped:
            return _counted(stopped)
    raise AssertionError(f"{page.job} did not come to its plan")


def _counted(stopped: memory_check.StoppedAtPlanError) -> tuple[Iteration, dict[str, float]]:
    page, (models, P, *_) = stopped.config, stopped.plan_of.args
    rows, updates = online.rows_of_experience(page), online.updates_per_iteration(page)
    found = Iteration(
        models.policy,
        models.scalar.get("value"),
        tuple(x.model.config for x in models.scorers),
        page.rollout.batch_size,
        page.rollout.samples,
        P,
        page.rollout.max_new_tokens,
        rows // page.minibatch_size,
        online.epochs_of(page),
        page.lora.rank > 0,
        page.model.remat,
        page.kl_coef > 0 or page.adaptive_kl,
        not online.one_minibatch(page),
    )
    counts, stages = {}, compaction.stages
    # No row ends early in the formula, so no later stage of decoding runs.
    compaction.stages = lambda B, R, groups, layers: (B,)
    try:
        for phase in programs_of(stopped.plan_of(page, stopped.mesh)):
            often = updates if phase.name == memory_check.STEP else 1
            counts[phase.name] = often * float(matrix_flops(phase.trace().jaxpr))
    finally:
        compaction.stages = stages
    return found, counts


def table(name: str, x: Iteration, counts: dict[str, float], lengths: tuple[float, float]) -> str:
    """The parts of an iteration, and how near its programs are to the floor."""
    least, done = floor(x, *lengths), ours(x)
    total, all_ours, counted = sum(least.values()), sum(done.values()), sum(counts.values())
    said = f"{x.rows} rows of {lengths[0]:g} + {lengths[1]:g} tokens in {x.P} + {x.R} columns"
    lines = [
        f"{name}: {said}, {x.epochs} epochs of {x.minibatches} minibatches",
        "",
        "| GFLOP | floor | ours | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {part} | {least[part] / 1e9:,.4g} | {done[part] / 1e9:,.4g} | |" for part in least]
    parts = ", ".join(f"{part} {x / 1e9:,.4g}" for part, x in counts.items())
    lines += [
        f"| sum | {total / 1e9:,.5g} | {all_ours / 1e9:,.5g} | |",
        "",
        f"programs: {counted / 1e9:,.5g} GFLOP ({parts}); the floor is {total / counted:.1%} of them",
    ]
    return "\n".join(lines)


def page_of_size(size: Size, folder: Path, job: str = "ppo") -> tuple[ConfigDict, dict[str, str]]:
    """(the page of run.py's PPO of a size, where its models' shape is written)."""
    shape = {"model_type": "llama", "vocab_size": size.vocab, "hidden_size": size.width}
    shape |= {"num_hidden_layers": size.layers, "num_attention_heads": size.heads, "hidden_act": "silu"}
    shape |= {"num_key_value_heads": size.heads, "intermediate_size": size.ff, "rms_norm_eps": 1e-5}
    shape |= {"tie_word_embeddings": False, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(shape))
    page = load_page(str(ROOT / f"configs/{job}.py"))
    page.data.max_prompt_length, page.rollout.max_new_tokens = size.prompt, size.response
    page.rollout.batch_size = page.minibatch_size = size.ppo_prompts
    page.kl_horizon = 10.0 * size.ppo_prompts
    return page, {"": str(folder)}


# Of the embedded world's prompts and of its policies' responses in the mean; of the others nothing is known here.
PAGES: dict[str, tuple[str, tuple[float, float] | None]] = {
    "microfarm": ("configs/ppo.py", (24, 12)),
    "alpaca_farm": ("configs/papers/alpaca_farm/ppo.py", None),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="microfarm,small,alpaca_farm")
    parser.add_argument("--config", default="", help="a page of PPO or GRPO, in place of those")
    parser.add_argument("--lengths", default="", help="tokens of a prompt and of a response in the mean")
    args = parser.parse_args(argv)
    given: Any = tuple(float(x) for x in args.lengths.split(",")) if args.lengths else None
    for name in [args.config] if args.config else args.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            lengths = given
            if name in SIZES:
                page, asked = page_of_size(SIZES[name], Path(folder))
            else:
                path, known = PAGES.get(name, (name, None))
                page, asked, lengths = load_page(str(ROOT / path)), {}, given or known
            found, counts = programs(page, asked)
        print(table(name, found, counts, lengths or (found.P, found.R)), "\n", flush=True)


if __name__ == "__main__":
    main()
