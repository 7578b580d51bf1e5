"""Scores of labelled tokens alone are those of TRL's fused head, which scores all positions, with their gradients."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from cisterna.training.token_scores import score_labelled_only
from tiny import backbone

FIELDS = ("log_probs", "entropy", "is_top1", "label_mask")


@pytest.mark.parametrize("softcapping", [None, 2.0])
def test_scores_and_gradients_are_those_of_trl(softcapping):
    architecture = backbone()["architecture"] | {"vocab_size": 50}
    if softcapping:
        architecture |= {"model_type": "gemma2", "final_logit_softcapping": softcapping}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**architecture)).train()
    ids = torch.randint(0, 50, (4, 12))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    labels[2] = -100  # an example without a label
    add_fused_lm_head(model, temperature=0.7, outputs=FIELDS[:3])
    arguments = SimpleNamespace(device=torch.device("cpu"))
    results = []
    for changed in (False, True):
        if changed:
            whole = model.forward
            score_labelled_only(SimpleNamespace(model=model, args=arguments), temperature=0.7)
            assert model.forward != whole
        model.zero_grad()
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        (output.log_probs.square().sum() + 0.1 * output.entropy.sum()).backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        results.append(({name: output[name] for name in FIELDS}, gradients))
    assert results[0][0]["label_mask"].any()
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    assert model(input_ids=ids, attention_mask=mask).logits.shape == (4, 12, 50)
