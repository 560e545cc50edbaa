"""The win rate of a method that trains on fixed rows: at its evaluations its policy samples, and a judge compares.

Loading this file is what makes `win_rate.judges` work for these methods, and `programs.load_program` loads it for a
page that sets it. Methods do not: a run that asks nobody should not load what asking takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.data.batches import bucket, eval_batches
from rlhf_jax.data.chat.chat_encoding import CHAT
from rlhf_jax.data.records.records import read_prompts
from rlhf_jax.data.templates import handling_of
from rlhf_jax.data.tokenization import decode, encode_prompts
from rlhf_jax.data.tokens.special_ids import fill_id, without_end
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.feedback_needs import check_judge
from rlhf_jax.feedback.judged_evaluation import FIELD, judged_evaluation
from rlhf_jax.models.decoder import Params
from rlhf_jax.parallel import startup
from rlhf_jax.parallel.mesh import gather, host_rows, to_global
from rlhf_jax.rollout.rollout_shapes import RolloutShapes
from rlhf_jax.sampling.choose import Sampling
from rlhf_jax.sampling.decode import check_finite
from rlhf_jax.sampling.decode_generator import DecodeGenerator
from rlhf_jax.training.checkpoints.workdir import write_samples
from rlhf_jax.training.run import encoded_rows, offline
from rlhf_jax.training.run.memory_check import Phase
from rlhf_jax.training.run.missing_inputs import made_by
from rlhf_jax.training.run.online import EVALUATION, PromptRows, key_of
from rlhf_jax.training.run.session import Network, Session


class SampledWinRate:
    """Samples the same prompts with the same noise at every evaluation, and has the responses judged."""

    def __init__(self, session: Session, network: Network) -> None:
        config, page = session.config, session.config.win_rate.to_dict()
        # Before any prompt is read: a key that is missing is cheaper to find.
        check_judge(page["judges"], page, session.workdir, FIELD, "win_rate")
        self._session, self._network = session, network
        self._prompts = _prompts(session, page["max_instructions"])
        self._judged = judged_evaluation(config, session.workdir, list(self._prompts.records))
        self._R, self._sampling = page["max_new_tokens"], Sampling(page["temperature"])
        self._generator = DecodeGenerator(
            network.config,
            session.mesh,
            max_new_tokens=self._R,
            sampling=self._sampling,
            end_ids=session.ends,
            pad_id=self._prompts.pad_id,
            dtype=config.model.dtype,
        )
        self.files = (page["prompts"], page["baseline"])

    def phase(self, config: ConfigDict, mesh: Mesh, alive: int) -> Phase:
        """The sampling program for the memory plan; alive: bytes per device of what is there beside it."""
        prompts = self._prompts
        shapes = RolloutShapes(
            mesh, config.batch_size, prompts.P, self._R, self._sampling.temperature, prompts.pad_id
        )
        return Phase(
            "sampling", lambda: shapes.trace_sampling(self._network.config, config.model.dtype), alive
        )

    def measure(self, params: Params, step: int) -> dict[str, float]:
        """win_rate, win_rate_unjudged and judge_usd of a policy; writes its responses to samples/<step>.jsonl."""
        records, found = self._prompts.records, list(self._sampled(params))
        said = [text for text, _ in found]
        table = (
            {**row, "output": text, "ended": ended}
            for row, (text, ended) in zip(records if found else (), found, strict=True)
        )
        write_samples(self._session.workdir, step, table)
        return self._judged(said, step)

    def _sampled(self, params: Params) -> Iterator[tuple[str, bool]]:
        """Yields (text, whether it ended) of the response to each prompt, on process 0; on the others nothing."""
        session, prompts = self._session, self._prompts
        self._generator.load(params)
        # Of the seed and not of the state: evaluations then differ by the policy and not by their noise.
        key = key_of(jax.random.key(session.config.seed), EVALUATION, 0)
        for index_B, weight_B in eval_batches(len(prompts.prompts), session.config.batch_size):
            batch = prompts.batch(index_B, session.mesh)
            # By their number in the file, so that the size of a batch changes no response.
            mine = host_rows(len(index_B), session.mesh)
            rows_B = to_global({"rows": index_B[mine].astype(np.int32)}, session.mesh)["rows"]
            sampled = self._generator.generate(batch["tokens"], batch["lengths"], rows_B, key)
            *found, logprobs_BR = gather(
                (sampled.tokens_BR, sampled.lengths_B, sampled.ended_B, sampled.logprobs_BR)
            )
            check_finite(logprobs_BR, "the policy")
            real = int((weight_B > 0).sum()) if startup.is_main() else 0
            for tokens_R, length, ended in zip(*(x[:real] for x in found), strict=True):
                yield decode(session.tokenizer, without_end(tokens_R[:length], ended)), bool(ended)
        # Freed before training goes on, which has its own use for the memory.
        self._generator.close()


def _prompts(session: Session, most: int) -> PromptRows:
    """The prompts that are sampled, the first `most` of the file's; 0 takes all."""
    config, tokenizer = session.config, session.tokenizer
    data, page = config.data, config.win_rate
    rows, skipped = read_prompts(
        page.prompts, made_by=made_by("make_data", "data"), chat=data.template == CHAT
    )
    encoded_rows.say(f"win_rate.prompts: {len(rows)} rows read from {page.prompts}", skipped)
    # What the page says of too long rows is meant for those that are trained on.
    how = dataclasses.replace(handling_of(data), too_long="drop")
    rows = rows[: most or None]
    try:
        prompts, dropped, kept = encode_prompts(rows, tokenizer, data.template, page.max_prompt_length, how)
    except UserError as error:
        field = "win_rate." if str(error).startswith("max_prompt_length") else "win_rate.prompts: "
        raise UserError(f"{field}{error}") from None
    encoded_rows.say(f"win_rate.prompts: {len(prompts)} prompts", dropped)
    records = tuple(rows[i] for i in kept)
    return PromptRows(prompts, records, bucket(int(prompts.lengths.max()), 8), fill_id(tokenizer))


def open_sampled(session: Session, network: Network) -> offline.SampledEvaluation:
    """Opens the win rate of a run's evaluations; UserError for a judge, a baseline or prompts that cannot be used."""
    found = SampledWinRate(session, network)
    return offline.SampledEvaluation(found.files, found.phase, found.measure)


offline.open_win_rate.append(open_sampled)
