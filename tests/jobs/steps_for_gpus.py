"""Run by test_compiled_programs.py on 8 devices: training steps lowered for NVIDIA GPUs, with none at hand."""

import jax
import jax.numpy as jnp
import optax
from jax._src.cudnn import fused_attention_stablehlo as library

from rlhf_jax.methods import sft
from rlhf_jax.models.attention import fused
from rlhf_jax.models.config import ModelConfig
from rlhf_jax.models.placement import planned_params
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.training.loop import state
from rlhf_jax.training.loop.step import make_train_step
from rlhf_jax.training.run import memory_check

CONFIG = ModelConfig(
    vocab_size=512,
    width=256,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=32,
    ff=512,
    dtype="bfloat16",
    remat="full",
)
B, T, R = 16, 200, 128


def step_text(config, mesh, *, packed=False):
    """The whole step, as it is handed to the compiler."""
    optimizer = optax.adamw(1e-3)
    step = make_train_step(sft.sft_loss_fn(config, R, 64), optimizer, microbatches=2)
    made = state.planned_state(planned_params(config, mesh), optimizer)

    def ints(*shape):
        return jax.ShapeDtypeStruct((1, *shape), jnp.int32)

    batch = {"tokens": ints(T), "lengths": ints(), "prompt_lengths": ints()}
    if packed:
        batch = {"tokens": ints(T), "segments": ints(T), "positions": ints(T), "documents": ints()}
        batch |= {"targets": ints(R), "owners": ints(R), "lasts": ints(5)}
    return (
        step.trace(made, memory_check.batch_shapes(mesh, B, batch), {})
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )


if __name__ == "__main__":
    # What jax asks of a card before it uses cuDNN, answered for one that is elsewhere.
    library.check_cudnn_version = lambda: 91000
    library.check_compute_capability = lambda _: True
    library.is_cuda_compute_capability_equal = lambda _: False
    fused.here = lambda: ("gpu", (9, 0))
    for sizes in (
        (1, 1, 1),
        (1, 8, 1),
        (2, 2, 2),
        (1, 1, 8),
    ):  # in the last, more devices than key-value heads
        mesh = make_mesh(*sizes, devices=jax.devices()[: sizes[0] * sizes[1] * sizes[2]])
        text = step_text(CONFIG, mesh)
        # Forward, once more in the backward pass (remat), and backward.
        assert text.count("__cudnn$fmhaSoftmax") == 3, sizes
        assert text.count("__cudnn$fmhaSoftmaxBackward") == 1, sizes
        print(sizes, "attention is cuDNN's", flush=True)
    text = step_text(CONFIG, make_mesh(2, 2, 2), packed=True)
    assert "cudnn" not in text
    print("packed rows are XLA's", flush=True)
