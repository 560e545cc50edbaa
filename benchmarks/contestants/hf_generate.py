"""transformers' own `generate` with its static cache."""

from __future__ import annotations

import setting
import torch
from session import Job, Session
from setting import GREEDY, PAD
from transformers import LlamaForCausalLM

from contestants.lean_sampling import left_pad


def run(job: Job, session: Session) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(job.policy).eval()
    tokens, lengths = left_pad(setting.prompts(job.size, job.size.generated, job.ragged))
    mask = torch.arange(tokens.shape[1]) >= (tokens.shape[1] - lengths)[:, None]
    model.generation_config.eos_token_id = None
    common = {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "pad_token_id": PAD,
        "cache_implementation": "static",
        "return_dict_in_generate": True,
    }
    greedy = model.generate(**common, do_sample=False, max_new_tokens=GREEDY, output_logits=True)
    made = greedy.sequences[:, tokens.shape[1] :]
    logprobs = torch.stack(greedy.logits, 1).log_softmax(-1).gather(-1, made[..., None])
    R = job.size.response
    while True:
        session.turn()
        model.generate(**common, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=R, min_new_tokens=R)
        session.note(loss=-logprobs.mean())
