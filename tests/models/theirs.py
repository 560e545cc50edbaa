"""The same tiny models through transformers and torch, in float32 with plain attention."""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def load(folder, *, scalar=False):
    """A model of transformers; every tensor of the folder must be one that it wants."""
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model, found = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    wrong = {what: list(names) for what, names in found.items() if names}
    assert not wrong, wrong
    return model.eval()


@torch.no_grad()
def logits(model, tokens_BP, lengths_B):
    P = tokens_BP.shape[1]
    mask_BP = torch.from_numpy((np.arange(P) >= (P - lengths_B)[:, None]).astype(np.int64))
    positions_BP = (mask_BP.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=torch.from_numpy(tokens_BP).long(), attention_mask=mask_BP, position_ids=positions_BP
    )
    return out.logits.numpy()


@torch.no_grad()
def greedy(model, tokens_BP, lengths_B, R):
    """(tokens [B, R], log-probs [B, R]); no token ends a row."""
    P = tokens_BP.shape[1]
    mask_BP = torch.from_numpy((np.arange(P) >= (P - lengths_B)[:, None]).astype(np.int64))
    model.generation_config.eos_token_id = None
    out = model.generate(
        torch.from_numpy(tokens_BP).long(),
        attention_mask=mask_BP,
        do_sample=False,
        max_new_tokens=R,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens_BR = out.sequences[:, P:]
    logprobs_BRV = torch.stack(out.logits, 1).float().log_softmax(-1)
    return tokens_BR.numpy(), logprobs_BRV.gather(2, tokens_BR[..., None])[..., 0].numpy()


@torch.no_grad()
def scores(model, tokens_BT, lengths_B):
    mask_BT = torch.from_numpy((np.arange(tokens_BT.shape[1]) < lengths_B[:, None]).astype(np.int64))
    return model(input_ids=torch.from_numpy(tokens_BT).long(), attention_mask=mask_BT).logits[:, 0].numpy()
