"""Writes data/foreign: tiny models as transformers and timm write them, and what they compute.

  make_foreign.py [--out data/foreign]    needs torch, numpy, safetensors, transformers and timm

Every model is a folder of
  config.json, model.safetensors   as the library itself wrote them, with random weights of
                                   float32, or of 16 bits
  run.safetensors                  in.NAME, and its outputs: out.NAME in float64, out32.NAME in
                                   float32; whole numbers as int32
manifest.json names the folders with their sources and the sha256 of their files, and says how far
their float32 may be off.
"""
import argparse
import hashlib
import json
import pathlib
import platform
import shutil

import numpy
import safetensors.numpy
import safetensors.torch
import timm
import torch
import transformers
from timm.models._hub import save_for_hf

from make_golden import Draw

HUGGING = "transformers " + transformers.__version__


def randomize(name, model):
    """Weights, biases and LayerNorms that no output is blind to."""
    d = Draw("foreign " + name)
    with torch.no_grad():
        for key, value in model.named_parameters():
            drawn = d(*value.shape, scale=0.5)
            value.copy_(drawn + 1 if "norm" in key.lower() and key.endswith("weight") else drawn)
    return model.eval(), d


def run(folder, name, model, inputs, compute):
    """The outputs of the same weights in both precisions."""
    tensors = {"in." + k: v for k, v in inputs.items()}
    with torch.no_grad():
        for prefix, dtype in (("out32.", torch.float32), ("out.", torch.float64)):
            out = compute(model.to(dtype), {k: v.to(dtype) if v.is_floating_point() else v
                                            for k, v in inputs.items()})
            for key, value in out.items():
                if value.is_floating_point() or prefix == "out.":
                    tensors[prefix + key] = value
    arrays = {k: v.to(torch.int32).numpy() if not v.is_floating_point() else v.numpy()
              for k, v in tensors.items()}
    safetensors.numpy.save_file({k: numpy.ascontiguousarray(v) for k, v in arrays.items()},
                                folder / name / "run.safetensors")
    return float32_errors(name, model.float(), inputs, compute, tensors)


def float32_errors(name, model, inputs, compute, exact):
    """How far float32 may be from the exact outputs: the largest error of each over runs with the
    weights and with weights moved by at most half a unit in their last place. One run alone may be
    right by luck. Runs in which a choice flips do not count."""
    d, errors = Draw(name + " float32"), {}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    for moved in range(33):
        model.load_state_dict({k: v * (1 + (moved > 0) * torch.from_numpy(
            d.generator.uniform(-0.5, 0.5, tuple(v.shape)) * 2.0**-23)).float()
            for k, v in weights.items()})
        with torch.no_grad():
            out = compute(model, inputs)
        if any(not torch.equal(x, exact["out." + k]) for k, x in out.items()
               if not x.is_floating_point()):
            continue
        for k, x in out.items():
            if x.is_floating_point():
                error = float((x.double() - exact["out." + k]).abs().max())
                errors[k] = max(errors.get(k, 0.0), error)
    return {k: float(f"{e:.3g}") for k, e in errors.items()}


def hf_albert(folder):
    model, d = randomize("hf_albert", transformers.AlbertForPreTraining(transformers.AlbertConfig(
        vocab_size=19, embedding_size=5, hidden_size=12, num_hidden_layers=2, num_hidden_groups=1,
        num_attention_heads=3, intermediate_size=14, hidden_act="gelu_new",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=9,
        type_vocab_size=2, attn_implementation="sdpa")))
    model.save_pretrained(folder / "hf_albert")
    inputs = dict(token=d.integers(0, 19, 2, 7), type=d.integers(0, 2, 2, 7),
                  mask=torch.tensor([[1] * 7, [1] * 5 + [0] * 2]))

    def compute(m, x):
        body = m.albert(x["token"], token_type_ids=x["type"], attention_mask=x["mask"])
        heads = m(x["token"], token_type_ids=x["type"], attention_mask=x["mask"])
        return dict(tokens=body.last_hidden_state, pooled=body.pooler_output,
                    masked_logits=heads.prediction_logits.reshape(14, 19),
                    order_logits=heads.sop_logits)
    errors = run(folder, "hf_albert", model, inputs, compute)
    return HUGGING + ", AlbertForPreTraining.save_pretrained", errors


VIT = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=14,
           hidden_act="gelu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
           image_size=(6, 4), patch_size=2, num_channels=3, attn_implementation="sdpa")


def hf_vit(folder):
    """The names of files on the hub, which save_pretrained writes."""
    model, d = randomize("hf_vit", transformers.ViTForImageClassification(
        transformers.ViTConfig(**VIT, num_labels=5)))
    model.save_pretrained(folder / "hf_vit")
    errors = run(folder, "hf_vit", model, dict(images=d(3, 3, 6, 4).float()), lambda m, x: dict(
        tokens=m.vit(x["images"]).last_hidden_state, logits=m(x["images"]).logits))
    return HUGGING + ", ViTForImageClassification.save_pretrained", errors


def hf_vit_5(folder):
    """The names that transformers 5 has in memory, of a model without a classifier."""
    model, d = randomize("hf_vit_5", transformers.ViTModel(transformers.ViTConfig(
        **dict(VIT, layer_norm_eps=1e-5, hidden_act="gelu_new"))))
    model.config.save_pretrained(folder / "hf_vit_5")
    safetensors.torch.save_file(model.state_dict(), folder / "hf_vit_5" / "model.safetensors")

    def compute(m, x):
        out = m(x["images"])
        return dict(tokens=out.last_hidden_state, logits=out.pooler_output)
    errors = run(folder, "hf_vit_5", model, dict(images=d(3, 3, 6, 4).float()), compute)
    return HUGGING + ", ViTModel.state_dict", errors


def timm_vit(folder):
    model, d = randomize("timm_vit", timm.create_model(
        "vit_tiny_patch16_224", img_size=(6, 4), patch_size=2, in_chans=3, embed_dim=12, depth=2,
        num_heads=3, mlp_ratio=1.25, num_classes=5))
    save_for_hf(model, folder / "timm_vit", safe_serialization=True)
    errors = run(folder, "timm_vit", model, dict(images=d(3, 3, 6, 4).float()), lambda m, x: dict(
        tokens=m.forward_features(x["images"]), logits=m(x["images"])))
    return "timm " + timm.__version__ + ", save_for_hf", errors


def hf_albert_bf16(folder):
    """A group of layers for each block, a classifier, and weights of bfloat16."""
    model, d = randomize("hf_albert_bf16", transformers.AlbertForSequenceClassification(
        transformers.AlbertConfig(
            vocab_size=17, embedding_size=5, hidden_size=12, num_hidden_layers=2,
            num_hidden_groups=2, num_attention_heads=2, intermediate_size=10, hidden_act="gelu",
            hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.0, max_position_embeddings=8,
            type_vocab_size=2, layer_norm_eps=1e-5, num_labels=3, attn_implementation="sdpa")))
    model.to(torch.bfloat16).save_pretrained(folder / "hf_albert_bf16")
    inputs = dict(token=d.integers(0, 17, 2, 7), type=d.integers(0, 2, 2, 7),
                  mask=torch.tensor([[1] * 6 + [0], [1] * 7]))

    def compute(m, x):
        body = m.albert(x["token"], token_type_ids=x["type"], attention_mask=x["mask"])
        heads = m(x["token"], token_type_ids=x["type"], attention_mask=x["mask"])
        return dict(tokens=body.last_hidden_state, pooled=body.pooler_output,
                    class_logits=heads.logits)
    errors = run(folder, "hf_albert_bf16", model, inputs, compute)
    return HUGGING + ", AlbertForSequenceClassification.save_pretrained", errors


def timm_vit_f16(folder):
    """Patches are averaged after the last LayerNorm; weights of float16."""
    model, d = randomize("timm_vit_f16", timm.create_model(
        "vit_tiny_patch16_224", img_size=(4, 6), patch_size=2, in_chans=2, embed_dim=12, depth=2,
        num_heads=2, mlp_ratio=1.25, num_classes=4, global_pool="avg", fc_norm=False))
    save_for_hf(model.half(), folder / "timm_vit_f16", safe_serialization=True)
    errors = run(folder, "timm_vit_f16", model, dict(images=d(3, 2, 4, 6).float()),
                 lambda m, x: dict(tokens=m.forward_features(x["images"]), logits=m(x["images"])))
    return "timm " + timm.__version__ + ", save_for_hf", errors


def hf_switch(folder):
    """An encoder whose second block is sparse; what is run is its mixture of experts."""
    model, d = randomize("hf_switch", transformers.SwitchTransformersEncoderModel(
        transformers.SwitchTransformersConfig(
            vocab_size=11, d_model=12, d_kv=4, d_ff=14, num_heads=3, num_layers=2,
            num_sparse_encoder_layers=1, num_decoder_layers=2, num_sparse_decoder_layers=1,
            num_experts=4, expert_capacity=2, router_jitter_noise=0.0, dropout_rate=0.0,
            router_bias=False)))
    model.save_pretrained(folder / "hf_switch")
    mixture = model.encoder.block[1].layer[1].mlp

    def compute(m, x):
        m.router.dtype = x["x"].dtype  # where they have float32 in mind
        kept, probability, logits = m.router(x["x"])
        return dict(y=m(x["x"]), logits=logits.reshape(-1, 4), gate=probability.reshape(-1, 1),
                    kept=kept.reshape(-1, 4).sum(0))
    errors = run(folder, "hf_switch", mixture, dict(x=d(3, 7, 12).float()), compute)
    return HUGGING + ", SwitchTransformersEncoderModel.save_pretrained", errors


def write(folder):
    models, total = [], 0
    shutil.rmtree(folder, ignore_errors=True)
    for make in (hf_albert, hf_vit, hf_vit_5, timm_vit, hf_switch, hf_albert_bf16, timm_vit_f16):
        name = make.__name__
        (folder / name).mkdir(parents=True)
        (source, errors), digests = make(folder), {}
        for path in sorted((folder / name).iterdir()):
            path.chmod(0o644)
            data = path.read_bytes()
            total += len(data)
            digests[path.name] = hashlib.sha256(data).hexdigest()
        assert set(digests) == {"config.json", "model.safetensors", "run.safetensors"}, digests
        models.append(dict(name=name, source=source, error32=errors, sha256=digests))
    manifest = dict(format="widenet foreign models 1",
                    versions=dict(python=platform.python_version(), torch=torch.__version__,
                                  numpy=numpy.__version__, safetensors=safetensors.__version__,
                                  transformers=transformers.__version__, timm=timm.__version__))
    lines = ",\n".join(json.dumps(m, separators=(",", ":")) for m in models)
    (folder / "manifest.json").write_text(json.dumps(manifest)[:-1] + ', "models": [\n' + lines +
                                          "\n]}\n")
    assert total <= 200000, f"{total} bytes"
    print(f"make_foreign: {len(models)} models, {total} bytes in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="data/foreign")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write(pathlib.Path(arguments.out))
