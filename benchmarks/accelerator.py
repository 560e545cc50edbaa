"""One accelerator: training steps and decoding of a Llama of 1.2 billion parameters, ours and transformers'.

    python benchmarks/accelerator.py [--size 1b] [--batch 8] [--length 2048] [--sides ours,transformers]

Each side runs in a process of its own on the first device it finds, on random weights and tokens: AdamW steps on full
rows in bfloat16 over float32 weights (transformers: torch's autocast), then decoding with bfloat16 weights from
prompts of --prompt tokens, with no end token. Beside each number stands its floor: model FLOPs over the card's peak
(MFU), and the bytes a decoding step must read (weights and the cache so far) over the card's bandwidth. Peaks are the
vendors' for dense bfloat16. `--size tiny` runs anywhere, to see that it does. transformers needs torch with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "transformers")
WARM_UP = 2


class Shape(NamedTuple):
    """A Llama with tied embeddings."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int

    @property
    def matrices(self) -> int:
        """Weights that a token is multiplied with, the head among them."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.ff) + self.width * self.vocab

    def training_flops(self, rows: int, length: int) -> float:
        """Forward and backward: 6 per weight and token, and causal attention's two products."""
        per_token = 6 * self.matrices + 6 * self.layers * self.heads * self.head_dim * length
        return float(per_token * rows * length)

    def decoding_bytes(self, rows: int, length: float) -> float:
        """What one decoding step reads with `length` tokens in the cache, in bfloat16."""
        return 2.0 * (self.matrices + 2 * rows * length * self.layers * self.kv_heads * self.head_dim)


SIZES = {
    "1b": Shape(128256, 2048, 16, 32, 8, 64, 8192),  # Llama 3.2 1B
    "tiny": Shape(512, 64, 2, 4, 2, 16, 128),
}


def ours(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    import jax
    import numpy as np

    from rlhf_jax.methods import sft
    from rlhf_jax.models.config import ModelConfig
    from rlhf_jax.models.placement import init_sharded, rollout_copier
    from rlhf_jax.parallel.mesh import make_mesh, to_global
    from rlhf_jax.sampling.choose import Sampling
    from rlhf_jax.sampling.decode import generate
    from rlhf_jax.training.loop.state import create
    from rlhf_jax.training.loop.step import make_train_step
    from rlhf_jax.training.optimizers.optimizer import make_optimizer

    device, rng = jax.devices()[0], np.random.default_rng(0)
    mesh = make_mesh(1, 1, 1, devices=[device])
    config = ModelConfig(
        vocab_size=shape.vocab,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        ff=shape.ff,
        tie_embeddings=True,
        dtype="bfloat16",
        remat=args.remat,
    )
    T = args.length
    tokens_BT = rng.integers(3, shape.vocab, (args.batch, T)).astype(np.int32)
    ones_B = np.ones(args.batch, np.int32)
    batch = to_global({"tokens": tokens_BT, "lengths": ones_B * T, "prompt_lengths": ones_B}, mesh)
    optimizer = make_optimizer(learning_rate=1e-5, total_steps=100)
    step = make_train_step(sft.sft_loss_fn(config, T - 1, 256), optimizer)
    state = create(init_sharded(config, mesh, 0), optimizer, 0)

    def train() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics["loss"])

    seconds = timed(train, args.steps)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    params = rollout_copier(config, mesh, "bfloat16")(state.params)
    del state
    N, P = args.prompts, args.prompt
    prompts = {
        "tokens": rng.integers(3, shape.vocab, (N, P)).astype(np.int32),
        "lengths": np.full(N, P, np.int32),
    }
    no_end = np.array([-1], np.int32)
    given = to_global(prompts | {"rows": np.arange(N, dtype=np.int32)}, mesh)
    arguments = (given["tokens"], given["lengths"], given["rows"], jax.random.key(0), Sampling(), no_end, 0)

    def decode() -> None:
        jax.block_until_ready(generate(config, params, *arguments, max_new_tokens=args.response))

    return {"device": device.device_kind, "train_s": seconds, "peak": peak, "decode_s": timed(decode, 2)}


def transformers(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=max(args.length, args.prompt + args.response),
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
        tokens = torch.randint(3, shape.vocab, (args.batch, args.length))
        prompts = torch.randint(3, shape.vocab, (args.prompts, args.prompt))
    if args.remat != "none":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()

    model.train()
    seconds = timed(train, args.steps)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    model.eval().to(torch.bfloat16)

    @torch.inference_mode()
    def decode() -> None:
        lengths = {"max_new_tokens": args.response, "min_new_tokens": args.response}
        model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, **lengths)
        wait()

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "train_s": seconds, "peak": peak, "decode_s": timed(decode, 2)}


def timed(work: Callable[[], None], times: int) -> float:
    """Seconds of one call, after the first ones, which compile."""
    for _ in range(WARM_UP):
        work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def line(side: str, found: dict[str, Any], shape: Shape, args: argparse.Namespace) -> str:
    """A row of the table."""
    sys.path.insert(0, str(ROOT))
    from rlhf_jax.training.loop.program_costs import (
        chip_of,  # what the run's own perf/mfu is measured against
    )

    chip = chip_of(found["device"])
    flops, bandwidth = (chip.flops["bfloat16"], chip.bandwidth) if chip else (None, None)
    mfu = shape.training_flops(args.batch, args.length) / found["train_s"] / flops if flops else None
    middle = args.prompt + args.response / 2
    floor = args.response * shape.decoding_bytes(args.prompts, middle) / bandwidth if bandwidth else None
    cells = (
        f"{found['train_s'] * 1e3:.1f} ms",
        f"{args.batch * args.length / found['train_s']:,.0f}",
        "-" if mfu is None else f"{mfu:.1%}",
        "-" if found["peak"] is None else f"{found['peak'] / 2**30:.1f} GiB",
        f"{args.prompts * args.response / found['decode_s']:,.0f}",
        "-" if floor is None else f"{floor / found['decode_s']:.1%}",
        found["device"],
    )
    return f"| {side} | {' | '.join(cells)} |"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--batch", type=int, default=8, help="rows of a training step")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps")
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), default="full", help="what backward recomputes"
    )
    parser.add_argument("--prompts", type=int, default=32, help="rows that are decoded together")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=256, help="tokens decoded")
    parser.add_argument("--run", choices=SIDES, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args(argv)
    shape = SIZES[args.size]
    if args.run:
        print(json.dumps({"ours": ours, "transformers": transformers}[args.run](shape, args)))
        return
    print(
        "| side | training step | tokens/s | MFU | peak memory | decoded tokens/s | of the bandwidth | device |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for side in args.sides.split(","):
        if side not in SIDES:
            parser.error(f"--sides: {side!r}; use some of {','.join(SIDES)}")
        command = [sys.executable, __file__, *argv, "--run", side]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        if done.returncode:
            print(f"| {side} | failed, see above | | | | | | |", flush=True)
            continue
        print(line(side, json.loads(done.stdout.splitlines()[-1]), shape, args), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
