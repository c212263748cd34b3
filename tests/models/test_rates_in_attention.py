"""Attention of libraries that reads a rate: fused and written out, it has equal masks and gradients."""

import pytest
import torch
import torch.nn.functional as F

import ray_deltastn as rd
from ray_deltastn.response.trees import called
from tests.models.checked import require
from tests.oracles import assert_all_close, randomise

BATCH = 4


def timm_vit(fused):
    require("timm")
    import timm

    options = {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 8, "num_heads": 2, "attn_drop_rate": 0.2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **options)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model, torch.randn(BATCH, 3, 16, 16, dtype=torch.float64), lambda out: out


def hf(kind, causal, **options):
    def make(fused):
        require("transformers")
        import transformers

        sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = getattr(transformers, f"{kind}Config")(**sizes, intermediate_size=8, **options)
        config._attn_implementation = "sdpa" if fused else "eager"
        model = getattr(transformers, f"{kind}For{'CausalLM' if causal else 'SequenceClassification'}")(config)
        mask = torch.ones(BATCH, 6, dtype=torch.long)
        mask[:2, 4:] = 0
        x = {"input_ids": torch.randint(0, 20, (BATCH, 6)), "attention_mask": mask}
        return model, x, lambda out: out.logits.flatten(1)

    return make


#: Network, attributes that hold a rate, and relative tolerance: Llama's attention has its softmax in float32.
MODELS = {
    "timm-vit": (timm_vit, (), 1e-12),
    "bert": (hf("Bert", False, num_labels=3), (), 1e-12),
    "llama": (hf("Llama", True, num_key_value_heads=1, attention_dropout=0.2), ("attention_dropout",), 1e-6),
}


def gradients(make, attributes, fused):
    """The loss of Θ's pass on one minibatch, and its gradients in Θ."""
    torch.manual_seed(0)
    model, x, scores = make(fused)
    found = rd.tune_dropouts(model.double(), attributes=attributes)
    with torch.no_grad():
        y = torch.randn_like(scores(called(model.eval(), x)))
    task = rd.Task(rd.HyperSpace(**found), model, lambda out, y: F.mse_loss(scores(out), y), (x, y), (x, y))
    tuner = rd.SelfTuner(task, epochs=1, batch_size=BATCH, graph="off")
    assert tuner.objective.reads_rates or not fused
    randomise(tuner.response)
    tuner.generator.manual_seed(1)
    model.train().requires_grad_(False)
    eps = torch.linspace(-1, 1, BATCH, dtype=torch.float64)[:, None]
    loss = tuner.objective.train_loss(x, y, eps)
    learned = list(tuner.response.parameters())
    return [loss, *torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("name", MODELS)
def test_fused_attention_has_the_gradients_of_attention_written_out(name):
    make, attributes, tolerance = MODELS[name]
    fused, written = (gradients(make, attributes, fused) for fused in (True, False))
    assert fused[1].norm() > 1e-9
    assert_all_close(fused, written, rtol=tolerance)
