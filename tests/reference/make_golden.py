"""Writes data/golden: inputs and results of operations, stages, blocks, models and optimisers.

  make_golden.py [--out data/golden]      needs torch, numpy, safetensors, transformers and timm

Every case is a safetensors file of
  in.NAME      inputs: weights, data, noise and masks, as float64 values that float32 holds exactly;
               dropout is mask.embedding, mask.I.attention, .hidden, .output: x mask / (1 - dropout)
  out.NAME     results in float64, gradients as grad.NAME; whole numbers as int32
  out32.NAME   the same, computed in float32
and its metadata say which operation with which settings it is. manifest.json names all cases with
their settings, shapes, sources and sha256, and says how far their float32 may be off. The results
come from widenet_torch.py or, where the source says so, from public code that really ran here; then
widenet_torch.py must agree with it, or nothing is written.
"""
import argparse
import contextlib
import hashlib
import itertools
import json
import math
import pathlib
import platform
import warnings

import numpy
import safetensors
import safetensors.numpy
import timm
import timm.optim
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from transformers.models.albert.modeling_albert import AlbertConfig, AlbertLayer, AlbertModel
from transformers.models.mixtral import modeling_mixtral
from transformers.models.switch_transformers import modeling_switch_transformers
from transformers.models.vit.modeling_vit import ViTConfig, ViTLayer

import widenet_torch as wide

SEED, STEP = 20107, 2
OURS = "tests/reference/widenet_torch.py"
HUGGING = "transformers " + transformers.__version__
CASES = []
ROUTING = ("logits", "probabilities", "expert", "slot", "gate", "load", "kept", "importance")


def header_uniform(seed, count, purpose="user", block=0, step=0):
    """The first values of a stream of the header's Rng, uniform in (0, 1): its masks of dropout,
    orders and coins become inputs, so that it can run a case that has them.

    Source: Philox4x32-10, Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011"""
    low, i = 0xFFFFFFFF, numpy.arange((count + 3) // 4, dtype=numpy.uint64)
    x = [i] + [numpy.full_like(i, c) for c in (block << 16, step, PURPOSES.index(purpose) << 24)]
    key = [seed & low, seed >> 32]
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [b >> 32 ^ x[1] ^ key[0], b & low, a >> 32 ^ x[3] ^ key[1], a & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return (numpy.stack(x, 1).reshape(-1)[:count] + 0.5) * 2.0**-32


PURPOSES = ("user", "initial_weight", "shuffle", "router_noise", "priority", "embedding_dropout",
            "attention_dropout", "hidden_dropout", "output_dropout")


def dropout_masks(c, B, T, embedding):
    """Masks of one step of training, for embeddings of a width and all blocks of an encoder: 0 with
    probability c["dropout"], else 1. Those of experts belong to choices (n, k)."""
    def mask(purpose, block, *shape):
        drawn = header_uniform(SEED, math.prod(shape), purpose, block, STEP)
        return torch.from_numpy((drawn >= c["dropout"]).astype(numpy.int64)).reshape(shape)
    D, K = c["width"], c["top_k"]
    num_moe = 0 if c["experts"] == 0 else c["blocks"] if c["moe_blocks"] < 0 else c["moe_blocks"]
    masks = {"mask.embedding": mask("embedding_dropout", 0, B, T, embedding)}
    for i in range(c["blocks"]):
        is_dense = i < c["blocks"] - num_moe
        rows = (B, T) if is_dense else (B * T, K)
        hidden = c["dense_hidden" if is_dense else "expert_hidden"]
        masks[f"mask.{i}.attention"] = mask("attention_dropout", i, B, T, D)
        masks[f"mask.{i}.hidden"] = mask("hidden_dropout", i, *rows, hidden)
        masks[f"mask.{i}.output"] = mask("output_dropout", i, *rows, D)
    return masks


class Draw:
    """Random inputs of one case, as a function of its name."""

    def __init__(self, name):
        digest = hashlib.sha256(f"{SEED} {name}".encode()).digest()
        bits = numpy.random.PCG64(int.from_bytes(digest[:8], "big"))
        self.generator = numpy.random.Generator(bits)

    def __call__(self, *shape, scale=1.0):
        values = self.generator.standard_normal(shape) * scale
        return torch.from_numpy(values.astype(numpy.float32).astype(numpy.float64))

    def eighths(self, *shape):  # so few bits that sums of products are exact, whatever their order
        return torch.from_numpy(self.generator.integers(-12, 13, shape) / 8.0)

    def integers(self, low, high, *shape):
        return torch.from_numpy(self.generator.integers(low, high, shape))

    def keep(self, fraction, *shape):  # a mask of dropout: 0 or 1 / (1 - fraction)
        kept = self.generator.random(shape) >= fraction
        return torch.from_numpy((kept / (1 - fraction)).astype(numpy.float32).astype(numpy.float64))

    def weights(self, shapes, scale=0.5):
        w = {name: self(*shape, scale=scale) for name, shape in shapes.items()}
        return {name: x + 1 if "norm" in name and name.endswith("weight") else x
                for name, x in w.items()}


def evaluate(compute, inputs, constant, dtype):
    """The results of compute(inputs) and the gradients of results["loss"] in one precision."""
    x = {name: value.to(dtype).clone() if value.is_floating_point() else value
         for name, value in inputs.items()}
    leaves = [n for n, v in x.items() if v.is_floating_point() and n not in constant]
    for name in leaves:
        x[name].requires_grad_()
    results = compute(x)
    if "loss" in results and leaves:
        results["loss"].backward()
        for name in leaves:
            g = x[name].grad
            results["grad." + name] = torch.zeros_like(x[name]) if g is None else g
    return {name: value.detach() for name, value in results.items()}


def agree(ours, theirs, tolerance, where):
    for name, value in theirs.items():
        largest = float(value.abs().max()) if value.numel() else 0.0
        error = float((ours[name] - value).abs().max()) if value.numel() else 0.0
        assert error <= tolerance * largest + 1e-14, f"{where}: {name}: {error} of {largest}"


def float32_errors(name, compute, inputs, constant, exact):
    """How far float32 may be from the exact results: the largest error of each over runs with the
    inputs and with inputs moved by at most half a unit in their last place. One run alone may be
    right by luck. Runs in which a choice flips do not count."""
    d, errors = Draw(name + " float32"), {}
    for run in range(33):
        moved = {n: x.float() * (1 + (run > 0) * torch.from_numpy(
                     d.generator.uniform(-0.5, 0.5, tuple(x.shape)) * 2.0**-23)).float()
                 if x.is_floating_point() else x for n, x in inputs.items()}
        out = evaluate(compute, moved, constant, torch.float32)
        if any(not torch.equal(out[n], x) for n, x in exact.items() if not x.is_floating_point()):
            continue
        for n, x in exact.items():
            if x.is_floating_point() and x.numel() > 0:
                errors[n] = max(errors.get(n, 0.0), float((out[n].double() - x).abs().max()))
    return errors


def case(name, op, compute, inputs, settings=None, constant=(), zero=(), source=OURS, check=None):
    """One file. `constant` inputs get no gradient; results in `zero` are 0 but for rounding;
    `check` computes the same in another way, and must agree in float64."""
    constant = set(constant) | {n for n in inputs if n.startswith(("d_", "noise", "jitter",
                                                                    "coins"))}
    inputs = {n: x.float().double() if x.is_floating_point() else x for n, x in inputs.items()}
    out = evaluate(compute, inputs, constant, torch.float64)
    out32 = evaluate(compute, inputs, constant, torch.float32)
    if check:
        agree(evaluate(check, inputs, constant, torch.float64), out, 1e-12, name)
    tensors = {}
    for key, value in inputs.items():
        tensors["in." + key] = value
    for key, value in out.items():
        assert not value.is_floating_point() or torch.isfinite(value).all(), f"{name}: {key}"
        tensors["out." + key] = value
        if value.is_floating_point():
            tensors["out32." + key] = out32[key]
        else:
            assert torch.equal(value, out32[key]), f"{name}: {key} depends on the precision"
    arrays = {key: value.to(torch.int32).numpy() if not value.is_floating_point() else value.numpy()
              for key, value in tensors.items()}
    CASES.append(dict(name=name, op=op, settings=settings or {}, zero=sorted(zero), source=source,
                      arrays={k: numpy.ascontiguousarray(v).reshape(v.shape)
                              for k, v in arrays.items()},
                      error32=float32_errors(name, compute, inputs, constant, out)))


# OPERATIONS ---------------------------------------------------------------------------------------

def operation(name, op, f, inputs, settings=None, **rest):
    """y = f(inputs), with the gradients of sum(y d_y)."""
    d = Draw(name)
    y = f(inputs)
    dy = d(*y.shape)

    def compute(x):
        y = f(x)
        return dict(y=y, loss=(y * x["d_y"]).sum())
    case(name, op, compute, dict(inputs, d_y=dy), settings, **rest)


def operations():
    d = Draw("operations")
    x = d(7, 5)
    operation("linear", "linear", lambda i: wide.linear(i["x"], i["w"], i["b"]),
              dict(x=x, w=d(5, 11), b=d(11)))
    operation("linear_without_bias", "linear", lambda i: wide.linear(i["x"], i["w"]),
              dict(x=x, w=d(5, 3)))
    operation("tied_decoder", "tied_decoder", lambda i: i["x"] @ i["w"].T + i["b"],
              dict(x=x, w=d(13, 5), b=d(13)))
    for name, eps, scale in (("layer_norm", 1e-6, 1.0), ("layer_norm_of_little", 1e-12, 1e-4),
                             ("layer_norm_wide_eps", 0.5, 1.0)):
        operation(name, "layer_norm",
                  lambda i, e=eps: wide.layer_norm(i["x"], i["gamma"], i["beta"], e),
                  dict(x=d(7, 37, scale=scale), gamma=d(37), beta=d(37)), dict(eps=eps))
    def by_torch(i):
        y = torch.nn.functional.rms_norm(i["x"], (37,), i["gamma"], 1e-5)
        return dict(y=y, loss=(y * i["d_y"]).sum())
    e = Draw("inputs of rms_norm")
    operation("rms_norm", "rms_norm", lambda i: wide.rms_norm(i["x"], i["gamma"], 1e-5),
              dict(x=e(7, 37), gamma=e(37)), dict(eps=1e-5), check=by_torch)
    wide_range = torch.cat([d(40), d(40, scale=6.0)])
    for form in ("tanh", "erf"):
        operation("gelu_" + form, "gelu", lambda i, f=form: wide.gelu(i["x"], f),
                  dict(x=wide_range), dict(gelu=form))
    operation("relu", "relu", lambda i: torch.relu(i["x"]), dict(x=d(41)))
    operation("tanh", "tanh", lambda i: torch.tanh(i["x"]), dict(x=d(41, scale=3.0)))
    operation("softmax", "softmax", lambda i: wide.softmax(i["x"]), dict(x=d(7, 37)))
    extreme = d(6, 5)
    extreme[1] *= 1e4
    extreme[2] = torch.tensor([1e30, 1e30, -1e30, 0, 1e30])
    operation("softmax_extreme", "softmax", lambda i: wide.softmax(i["x"]), dict(x=extreme))
    operation("dropout", "multiply", lambda i: i["x"] * i["mask"],
              dict(x=x, mask=d.keep(0.3, 7, 5)), constant=["mask"])
    operation("embedding", "embedding", lambda i: i["table"][i["id"]],
              dict(table=d(6, 5), id=torch.tensor([3, 0, 3, 5, 3, 1, 1])))
    operation("add_to_sequences", "add_to_sequences", lambda i: i["x"] + i["block"],
              dict(x=d(3, 7, 5), block=d(7, 5)))
    operation("prepend_token", "prepend_token",
              lambda i: torch.cat([i["token"].expand(3, 1, 5), i["x"]], 1),
              dict(x=d(3, 7, 5), token=d(5)))
    operation("slice_tokens", "slice_tokens", lambda i: i["x"][:, 2:5], dict(x=d(3, 7, 5)),
              dict(first=2, count=3))
    operation("mean_tokens", "mean_tokens", lambda i: i["x"].mean(1), dict(x=d(3, 7, 5)))
    operation("extract_patches", "extract_patches", lambda i: wide.patches_of(i["x"], 2),
              dict(x=d(2, 3, 6, 4)), dict(patch=2), constant=["x"])
    qkv = lambda: dict(q=d(2, 7, 12), k=d(2, 7, 12), v=d(2, 7, 12))
    operation("attention", "attention", lambda i: wide.attention(i["q"], i["k"], i["v"], 3), qkv(),
              dict(heads=3))
    mask = torch.tensor([1] * 7 + [1, 1, 1, 1, 0, 0, 0])
    operation("attention_masked", "attention",
              lambda i: wide.attention(i["q"], i["k"], i["v"], 3, i["key_mask"]),
              dict(qkv(), key_mask=mask), dict(heads=3))
    operation("attention_sharp", "attention",
              lambda i: wide.attention(i["q"], i["k"], i["v"], 3),
              {n: v * 30 for n, v in qkv().items()}, dict(heads=3))
    labels = d.integers(0, 11, 7)
    for name, smoothing in (("cross_entropy", 0.0), ("cross_entropy_smoothed", 0.125)):
        case(name, "cross_entropy",
             lambda i, s=smoothing: dict(loss=wide.cross_entropy(i["x"], i["labels"], s)),
             dict(x=d(7, 11, scale=3.0), labels=labels), dict(smoothing=smoothing),
             check=lambda i, s=smoothing: dict(loss=torch.nn.functional.cross_entropy(
                 i["x"], i["labels"], label_smoothing=s)))


# MIXTURE OF EXPERTS -------------------------------------------------------------------------------

ENCODER = dict(width=12, heads=3, blocks=3, experts=4, top_k=2, expert_hidden=10, dense_hidden=14,
               moe_blocks=-1, routing_groups=-1, capacity_factor=(6, 5),
               evaluation_capacity_factor=(0, 1), share_attention=True, share_router=True,
               share_experts=True, share_layer_norm=False, is_pre_norm=True, has_final_norm=True,
               layer_norm_eps=1e-6, dropout=0.0, gelu="tanh", gelu_at_output=False,
               conventions=wide.conventions())


def as_settings(c):
    """A configuration as the C++ library writes it: one flat JSON object."""
    flat = {k: v for k, v in c.items() if k not in ("encoder", "conventions")}
    if "encoder" in c:
        return {**flat, **as_settings(c["encoder"])}
    flat["capacity_numerator"], flat["capacity_denominator"] = flat.pop("capacity_factor")
    evaluation = flat.pop("evaluation_capacity_factor")
    flat["capacity_evaluation_numerator"], flat["capacity_evaluation_denominator"] = evaluation
    return {**flat, **c["conventions"]}


def whole(r):
    """What a routing holds, without the noise."""
    return {name: r[name] for name in ROUTING}


def mixture_weights(d, c):
    D, E, F, name = c["width"], c["experts"], c["expert_hidden"], "shared.moe.experts.{}."
    shapes = {"shared.moe.router.weight": (D, E), name + "fc1.weight": (E, D, F),
              name + "fc1.bias": (E, F), name + "fc2.weight": (E, F, D), name + "fc2.bias": (E, D)}
    if c["conventions"]["router_bias"]:
        shapes["shared.moe.router.bias"] = (E,)
    return d.weights(shapes)


BIASES = ("shared.moe.experts.{}.fc1.bias", "shared.moe.experts.{}.fc2.bias")


def mixture(name, rules, B=2, T=8, noise=None, change=None, source=OURS, zero=(), constant=(),
            replace=None, settings=None, **config):
    """One mixture of experts, stage by stage. `noise` is its deviation, any number under jitter;
    `replace` gives results of public code that take the place of ours."""
    d = Draw(name)
    c = {**ENCODER, **config, "conventions": rules}
    inputs = dict(x=d(B * T, c["width"]), d_y=d(B * T, c["width"]), **mixture_weights(d, c))
    if noise is not None and rules["router_noise"].startswith("jitter"):
        inputs["jitter"] = (1 + 0.01 * (2 * torch.rand(
            B * T, c["width"], generator=torch.Generator().manual_seed(SEED),
            dtype=torch.float64) - 1))
    elif noise is not None:
        inputs["noise"] = d(B * T, c["experts"], scale=noise)
    if change:
        change(inputs, d)

    def compute(x):
        r, seen = wide.routed(x["x"], x, "shared.moe.router", c, B,
                              *map(x.get, ("noise", "jitter", "order", "coins")))
        trace = whole(r)
        y = wide.mixture(seen, x, "shared.moe.experts", c, r, trace)
        trace["balance_loss"] = wide.balance_loss([r], rules["balance"])
        trace["loss"] = (y * x["d_y"]).sum() + trace["balance_loss"]
        return trace

    r = evaluate(compute, inputs, set(inputs), torch.float64)
    case(name, "mixture", (lambda x: {**compute(x), **replace(x, c, B)}) if replace else compute,
         inputs, dict(as_settings(c), batch=B, **(settings or {})), constant=constant,
         source=source, zero=zero, check=compute if replace else None)
    return r


def mixtures():
    rules = wide.conventions
    mixture("moe_paper", rules(), noise=1 / 4)
    mixture("moe_evaluation", rules())
    mixture("moe_one_choice", rules(), noise=1 / 4, top_k=1)
    mixture("moe_all_experts", rules(), noise=1 / 4, top_k=4)
    mixture("moe_one_token", rules(), B=1, T=1)
    mixture("moe_one_expert", rules(), experts=1, top_k=1,
            zero=["grad.shared.moe.router.weight"])
    mixture("moe_many_experts", rules(), noise=1 / 37, experts=37, top_k=3, expert_hidden=3)
    mixture("moe_erf", rules(), gelu="erf")
    r = mixture("moe_overflow", rules(), noise=1 / 4, capacity_factor=(1, 2))
    assert int(r["kept"].sum()) < 0.6 * 32

    def empty(i, d):
        i["x"][:, 0] = 1
        i["shared.moe.router.weight"][0, 3] = -60
    r = mixture("moe_empty_expert", rules(), change=empty)
    assert int(r["load"][3]) == 0

    def ties(i, d):  # experts 0 and 2 alike, and token 5 indifferent to all
        i["x"] = d.eighths(*i["x"].shape)
        i["x"][5] = 0
        i["shared.moe.router.weight"] = d.eighths(12, 4)
        i["shared.moe.router.weight"][:, 2] = i["shared.moe.router.weight"][:, 0]
    for name, priority in (("moe_ties", "token_major"), ("moe_ties_by_gate", "highest_gate")):
        r = mixture(name, rules(priority=priority), change=ties)
        assert torch.equal(r["logits"][:, 0], r["logits"][:, 2])
        assert r["expert"][5].tolist() == [0, 1]

    def extreme(i, d):  # one expert has it all, however small a difference looks
        i["x"], i["shared.moe.router.weight"] = d.eighths(16, 12), d.eighths(12, 4) * 2.0**24
    r = mixture("moe_extreme_logits", rules(), change=extreme, top_k=2)
    assert set(r["probabilities"].reshape(-1).tolist()) <= {0.0, 0.25, 1 / 3, 0.5, 1.0}

    for preset in ("author_tf", "colossal", "tutel"):
        mixture("moe_" + preset, rules(preset), noise=1 / 4,
                gelu_at_output=preset == "author_tf", capacity_factor=(3, 4),
                gelu="erf" if preset == "colossal" else "tanh")
    mixture("moe_vmoe", rules("vmoe"), B=16, T=3, noise=1 / 4, capacity_factor=(21, 20))
    mixture("moe_mesh_top2", rules("mesh_top2"), B=2, T=16)
    mixture("moe_deepspeed_top2", rules("deepspeed_top2"), noise=1.0, capacity_factor=(1, 2), T=16)
    mixture("moe_mixtral", rules("mixtral"))
    mixture("moe_hf_switch", rules("hf_switch", capacity_slots=2), noise=0, top_k=1)
    mixture("moe_batch_priority", rules(priority="batch_priority"), noise=1 / 4,
            capacity_factor=(3, 4))
    mixture("moe_highest_gate", rules(priority="highest_gate"), noise=1 / 4, capacity_factor=(3, 4))
    def in_random_order(i, d):  # 16 tokens, two choices: by keys that float32 tells apart
        keys = header_uniform(SEED, 32).astype(numpy.float32)
        assert len(set(keys)) == 32
        i["order"] = torch.from_numpy(numpy.argsort(-keys))
    mixture("moe_random_priority", rules(priority="random"), noise=1 / 4, capacity_factor=(3, 4),
            change=in_random_order, settings=dict(seed=SEED))

    def with_coins(i, d):  # the header draws those of N K = 64 choices behind an order of priority
        i["coins"] = torch.from_numpy(header_uniform(SEED, 128)[64:].reshape(32, 2))
    r = mixture("moe_refused_choices", rules("mesh_top2", second_choice_threshold=0.75), T=16,
                capacity_factor=(3, 1), change=with_coins, settings=dict(seed=SEED))
    dropped = (r["slot"] < 0).sum(0)
    assert dropped[0] == 0 and 8 <= dropped[1] <= 24, dropped  # first and second choices, of 32
    mixture("moe_gated_input", rules(dropped="gated_input"), noise=1 / 4, capacity_factor=(1, 2))
    mixture("moe_router_bias", rules(router_bias=True), noise=1 / 4)
    mixture("moe_clean_gate", rules(gate_sees_noise=False, balance_sees_noise=False), noise=1 / 2)
    mixture("moe_tokens_first", rules(capacity_rule="tokens_first"), T=9, B=3)
    for rule in ("switch_top1", "after_drop", "after_drop_both", "importance",
                 "importance_unbiased", "load", "z_loss"):
        mixture("balance_" + rule, rules(balance=rule), noise=1 / 4, capacity_factor=(3, 4))
    mixture("balance_load_of_groups", rules(balance="load", capacity_sequences=2), B=4, noise=1 / 4)
    switch(), mixtral()


@contextlib.contextmanager
def without_casts():
    """Inside, x.float() leaves x as it is: public code that computes router probabilities in
    float32 whatever the model's precision then runs in that of the model."""
    cast = torch.Tensor.float
    torch.Tensor.float = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        torch.Tensor.float = cast


def load_weights(module, weights):
    """Replaces the parameters of a module by given tensors, so that gradients reach these."""
    return lambda *args, **kwargs: torch.func.functional_call(module, weights, args, kwargs)


def watch(layer, block, trace, places):
    """From now on every pass through a layer leaves what enters or leaves some of its parts as
    results block.I.NAME, I = block and, where the layer is shared, block + 1 and so on."""
    for name, (part, end) in places.items():
        def leave(_, inputs, output, name=name, end=end, passes=itertools.count(block)):
            i, value = next(passes), output if end == "out" else inputs[0]
            names = "qkv" if name == "qkv" else [name]
            for n, x in zip(names, value.chunk(len(names), -1)):
                trace[f"block.{i}.{n}"] = x
        layer.get_submodule(part).register_forward_hook(leave)


def switch():
    """SwitchTransformersSparseMLP: top-1, capacity per sequence. Its experts have no biases."""
    def without_biases(i, d):
        for n in i:
            if n.endswith("bias"):
                i[n] = torch.zeros_like(i[n])

    def theirs(x, c, B):
        hf = modeling_switch_transformers
        E, D = c["experts"], c["width"]
        config = transformers.SwitchTransformersConfig(
            d_model=D, d_ff=c["expert_hidden"], num_experts=E, expert_capacity=2,
            dense_act_fn="gelu_new", router_jitter_noise=0.0, dropout_rate=0.0)
        weights = {"router.classifier.weight": x["shared.moe.router.weight"].T}
        for e in range(E):
            weights[f"experts.expert_{e}.wi.weight"] = x["shared.moe.experts.{}.fc1.weight"][e].T
            weights[f"experts.expert_{e}.wo.weight"] = x["shared.moe.experts.{}.fc2.weight"][e].T
        block = hf.SwitchTransformersSparseMLP(config).to(x["x"].dtype)
        block.router.dtype = x["x"].dtype  # they have float32 in mind
        three = x["x"].reshape(B, -1, D)
        kept, probability, logits = load_weights(
            block.router, {"classifier.weight": weights["router.classifier.weight"]})(three)
        y = load_weights(block, weights)(three).reshape(-1, D)
        p = torch.softmax(logits, -1)
        balance = hf.load_balancing_loss_func(p, torch.argmax(p, -1))
        return dict(y=y, logits=logits.reshape(-1, E), gate=probability.reshape(-1, 1),
                    kept=kept.reshape(-1, E).sum(0), balance_loss=balance,
                    loss=(y * x["d_y"]).sum() + balance)
    mixture("moe_hf_switch_run", wide.conventions("hf_switch", capacity_slots=2), top_k=1, B=3,
            change=without_biases, replace=theirs, constant=BIASES,
            source=HUGGING + ", SwitchTransformersSparseMLP")


def mixtral():
    """MixtralSparseMoeBlock: its experts are w2 (gelu(w1 x) * w3 x); here feature 0 of x is 1 and
    w3 picks it, so that the factor is 1."""
    def with_one(i, d):
        i["x"][:, 0] = 1
        for n in i:
            if n.endswith("bias"):
                i[n] = torch.zeros_like(i[n])

    def theirs(x, c, B):
        E, D, F = c["experts"], c["width"], c["expert_hidden"]
        config = transformers.MixtralConfig(
            hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=2,
            hidden_act="gelu_new", router_jitter_noise=0.0)
        config._experts_implementation = "eager"
        one = torch.zeros(E, F, D, dtype=x["x"].dtype)
        one[:, :, 0] = 1
        w1 = x["shared.moe.experts.{}.fc1.weight"].transpose(1, 2)
        weights = {"gate.weight": x["shared.moe.router.weight"].T,
                   "experts.gate_up_proj": torch.cat([w1, one], 1),
                   "experts.down_proj": x["shared.moe.experts.{}.fc2.weight"].transpose(1, 2)}
        block = modeling_mixtral.MixtralSparseMoeBlock(config).to(x["x"].dtype)
        with without_casts():
            y = load_weights(block, weights)(x["x"].reshape(B, -1, D)).reshape(-1, D)
            logits = x["x"] @ x["shared.moe.router.weight"]
            balance = modeling_mixtral.load_balancing_loss_func((logits,), E, 2)
        return dict(y=y, balance_loss=balance, loss=(y * x["d_y"]).sum() + balance)
    # Their gradient of x has a part through w3 x, so x counts as a constant.
    mixture("moe_hf_mixtral_run", wide.conventions("mixtral"), change=with_one, replace=theirs,
            constant=("x",) + BIASES, source=HUGGING + ", MixtralSparseMoeBlock")


# BLOCKS AND MODELS --------------------------------------------------------------------------------

def block(name, **config):
    """One pre-norm block with a mixture of experts, every intermediate."""
    d, B, T = Draw(name), 2, 7
    c = {**ENCODER, **config, "blocks": 1, "has_final_norm": False}
    inputs = dict(x=d(B, T, c["width"]), d_y=d(B, T, c["width"]), noise=d(B * T, 4, scale=0.25),
                  **d.weights(wide.shapes_of(c)))

    def compute(w):
        norm = lambda x, n: wide.normed(x, w, "blocks.0." + n, c)
        h1 = norm(w["x"], "norm1")
        q, k, v = (wide.linear(h1, w[f"shared.attn.{n}.weight"], w[f"shared.attn.{n}.bias"])
                   for n in "qkv")
        heads = wide.attention(q, k, v, c["heads"])
        attended = wide.linear(heads, w["shared.attn.o.weight"], w["shared.attn.o.bias"])
        middle = w["x"] + attended
        h2 = norm(middle, "norm2")
        tokens = h2.reshape(-1, c["width"])
        r, _ = wide.routed(tokens, w, "shared.moe.router", c, B, w["noise"])
        trace = dict(norm1=h1, q=q, k=k, v=v, attention=heads, o=attended, middle=middle, norm2=h2,
                     **whole(r))
        y = wide.mixture(tokens, w, "shared.moe.experts", c, r, trace)
        trace["balance_loss"] = wide.balance_loss([r], c["conventions"]["balance"])
        trace["tokens"] = middle + y.reshape(middle.shape)
        trace["loss"] = (trace["tokens"] * w["d_y"]).sum() + trace["balance_loss"]
        return trace
    case(name, "block", compute, inputs, as_settings(c), zero=["grad.shared.attn.k.bias"])


def models_output(tokens, routings, losses, total):
    out = {} if tokens is None else dict(tokens=tokens)
    for t, r in enumerate(routings):
        out |= {f"routing.{t}.{key}": value for key, value in whole(r).items()}
        out[f"balance_losses.{t}"] = losses[t]
    return dict(out, balance_loss=total)


def key_biases(weights):
    return ["grad." + n for n in weights if n.endswith("attn.k.bias")]


def masks_of(inputs):
    return {n[5:]: x for n, x in inputs.items() if n.startswith("mask.")}


def noise_of(inputs):
    noise = [inputs[n] for n in sorted(inputs) if n.startswith("noise.")]
    return noise or None


def encoder(name, num_noise=0, theirs=None, source=OURS, scale=0.5, **config):
    d, B, T = Draw(name), 2, 7
    c = {**ENCODER, **config}
    weights = d.weights(wide.shapes_of(c), scale)
    inputs = dict(x=d(B, T, c["width"]), d_y=d(B, T, c["width"]), **weights)
    for t in range(num_noise):
        inputs[f"noise.{t}"] = d(B * T, c["experts"], scale=1 / c["experts"])

    def compute(w):
        trace = {}
        trace |= models_output(*wide.encoder(w["x"], w, c, noise_of(w), trace=trace))
        return dict(trace, loss=(trace["tokens"] * w["d_y"]).sum() + trace["balance_loss"])
    def replaced(w):
        trace = {}
        y = theirs(w, trace)
        return dict(trace, tokens=y, loss=(y * w["d_y"]).sum())
    case(name, "encoder", replaced if theirs else compute, inputs, as_settings(c), source=source,
         zero=key_biases(weights), check=compute if theirs else None)


ALBERT_PLACES = dict(
    q=("attention.query", "out"), k=("attention.key", "out"), v=("attention.value", "out"),
    attention=("attention.dense", "in"), o=("attention.dense", "out"),
    middle=("attention.LayerNorm", "in"), norm1=("attention.LayerNorm", "out"),
    y=("ffn_output", "out"), norm2=("full_layer_layer_norm", "out"))
VIT_PLACES = dict(
    norm1=("layernorm_before", "out"), q=("attention.q_proj", "out"), k=("attention.k_proj", "out"),
    v=("attention.v_proj", "out"), attention=("attention.o_proj", "in"),
    o=("attention.o_proj", "out"), middle=("layernorm_after", "in"),
    norm2=("layernorm_after", "out"), y=("mlp.fc2", "out"))
TIMM_PLACES = dict(
    norm1=("norm1", "out"), qkv=("attn.qkv", "out"), attention=("attn.proj", "in"),
    o=("attn.proj", "out"), middle=("norm2", "in"), norm2=("norm2", "out"), y=("mlp", "out"))
DENSE = dict(experts=0, blocks=1, share_attention=False, share_experts=False, has_final_norm=False)


def encoders():
    encoder("encoder_widenet", num_noise=3)
    encoder("encoder_evaluation")
    encoder("encoder_post_norm", num_noise=3, is_pre_norm=False, layer_norm_eps=1e-12)
    encoder("encoder_unshared", num_noise=3, share_attention=False, share_router=False,
            share_experts=False)
    encoder("encoder_shared_norm", share_layer_norm=True, blocks=2)
    encoder("encoder_routing_groups", num_noise=2, blocks=4, routing_groups=2)
    encoder("encoder_last_blocks", num_noise=1, moe_blocks=1)
    encoder("encoder_mean_balance", conventions=wide.conventions(balance_reduction="mean"))
    encoder("encoder_mixtral", conventions=wide.conventions("mixtral"), share_router=False)

    def albert(w, trace):
        config = AlbertConfig(hidden_size=12, num_attention_heads=3, intermediate_size=14,
                              hidden_act="gelu_new", hidden_dropout_prob=0.0,
                              attention_probs_dropout_prob=0.0, attn_implementation="eager")
        weights = {}
        for ours, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "dense")):
            weights[f"attention.{name}.weight"] = w[f"blocks.0.attn.{ours}.weight"].T
            weights[f"attention.{name}.bias"] = w[f"blocks.0.attn.{ours}.bias"]
        for ours, name in (("norm1", "attention.LayerNorm"), ("norm2", "full_layer_layer_norm")):
            weights[name + ".weight"] = w[f"blocks.0.{ours}.weight"]
            weights[name + ".bias"] = w[f"blocks.0.{ours}.bias"]
        for ours, name in (("fc1", "ffn"), ("fc2", "ffn_output")):
            weights[name + ".weight"] = w[f"blocks.0.ffn.{ours}.weight"].T
            weights[name + ".bias"] = w[f"blocks.0.ffn.{ours}.bias"]
        layer = AlbertLayer(config).to(w["x"].dtype)
        watch(layer, 0, trace, ALBERT_PLACES)
        return load_weights(layer, weights)(w["x"])
    encoder("albert_layer_run", theirs=albert, source=HUGGING + ", AlbertLayer", **DENSE,
            is_pre_norm=False, layer_norm_eps=1e-12)

    def vit(w, trace):
        config = ViTConfig(hidden_size=12, num_attention_heads=3, intermediate_size=14,
                           hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                           attn_implementation="sdpa")  # "eager" computes softmax in float32
        weights = {}
        for n in "qkvo":
            weights[f"attention.{n}_proj.weight"] = w[f"blocks.0.attn.{n}.weight"].T
            weights[f"attention.{n}_proj.bias"] = w[f"blocks.0.attn.{n}.bias"]
        for ours, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            weights[name + ".weight"] = w[f"blocks.0.{ours}.weight"]
            weights[name + ".bias"] = w[f"blocks.0.{ours}.bias"]
        for n in ("fc1", "fc2"):
            weights[f"mlp.{n}.weight"] = w[f"blocks.0.ffn.{n}.weight"].T
            weights[f"mlp.{n}.bias"] = w[f"blocks.0.ffn.{n}.bias"]
        layer = ViTLayer(config).to(w["x"].dtype)
        watch(layer, 0, trace, VIT_PLACES)
        return load_weights(layer, weights)(w["x"])
    encoder("vit_layer_run", theirs=vit, source=HUGGING + ", ViTLayer", **DENSE,
            layer_norm_eps=1e-12, gelu="erf")


VISION = dict(image_height=6, image_width=4, channels=3, patch=2, classes=5, class_token="zero",
              pooling="mean", has_pre_logits=False)


def vision_shapes(c):
    e, P, T = c["encoder"], c["patch"], 1 + c["image_height"] * c["image_width"] // c["patch"]**2
    D = e["width"]
    shapes = {"patch_embed.proj.weight": (P * P * c["channels"], D), "patch_embed.proj.bias": (D,)}
    if c["class_token"] == "trained":
        shapes["cls_token"] = (D,)
    shapes |= {"pos_embed": (T, D), **wide.shapes_of(e)}
    if c["has_pre_logits"]:
        shapes |= {"pre_logits.weight": (D, D), "pre_logits.bias": (D,)}
    return shapes | {"head.weight": (D, c["classes"]), "head.bias": (c["classes"],)}


def vision_loss(w, c):
    trace = {}
    logits, *rest = wide.vision_model(w["images"], w, c, noise_of(w), masks_of(w), trace)
    out = dict(trace, logits=logits, **models_output(None, *rest))
    main = wide.cross_entropy(logits, w["labels"])
    return dict(out, main_loss=main, loss=main + 0.01 * out["balance_loss"])


def vision(name, num_noise=0, theirs=None, source=OURS, encoder=None, **config):
    d, B = Draw(name), 3
    c = {**VISION, **config, "encoder": {**ENCODER, **(encoder or {})}}
    T = 1 + c["image_height"] * c["image_width"] // c["patch"]**2
    weights = d.weights(vision_shapes(c))
    inputs = dict(images=d(B, c["channels"], c["image_height"], c["image_width"]),
                  labels=d.integers(0, c["classes"], B), **weights)
    for t in range(num_noise):
        inputs[f"noise.{t}"] = d(B * T, 4, scale=0.25)
    settings = as_settings(c)
    if c["encoder"]["dropout"] > 0:
        inputs |= dropout_masks(c["encoder"], B, T, c["encoder"]["width"])
        settings |= dict(seed=SEED, step=STEP)

    def replaced(w):
        trace = {}
        logits = theirs(w, c, trace)
        main = torch.nn.functional.cross_entropy(logits, w["labels"])
        return dict(trace, logits=logits, main_loss=main, loss=main)
    case(name, "vision", (lambda w: replaced(w)) if theirs else lambda w: vision_loss(w, c), inputs,
         settings, constant=["images"], source=source, zero=key_biases(weights),
         check=(lambda w: vision_loss(w, c)) if theirs else None)


def timm_model(w, c, trace):
    e = c["encoder"]
    model = VisionTransformer(
        img_size=(c["image_height"], c["image_width"]), patch_size=c["patch"],
        in_chans=c["channels"], num_classes=c["classes"], embed_dim=e["width"],
        depth=e["blocks"], num_heads=e["heads"], mlp_ratio=e["dense_hidden"] / e["width"])
    P, D, weights = c["patch"], e["width"], {}
    for key in model.state_dict():
        ours = key.replace("mlp.", "ffn.").replace("attn.proj", "attn.o")
        if key.startswith("patch_embed"):  # (P, P, channels, D) -> (D, channels, P, P)
            value = w[key]
            if key.endswith("weight"):
                value = value.reshape(P, P, c["channels"], D).permute(3, 2, 0, 1)
        elif "qkv" in key:
            value = torch.cat([w[ours.replace("qkv", n)] for n in "qkv"], -1)
            value = value.T if value.dim() == 2 else value
        elif key == "cls_token":
            value = w[key].reshape(1, 1, D)
        elif key == "pos_embed":
            value = w[key][None]
        else:
            value = w[ours].T if w[ours].dim() == 2 else w[ours]
        weights[key] = value
    model.to(w["images"].dtype)
    for i, layer in enumerate(model.blocks):
        watch(layer, i, trace, TIMM_PLACES)
    model.blocks[0].register_forward_hook(lambda _, x, y: trace.update(embedding=x[0]))
    return load_weights(model, weights)(w["images"])


LANGUAGE = dict(vocabulary=19, max_tokens=9, types=2, embedding=5, classes=3)


def language_shapes(c):
    e, V, W = c["encoder"], c["vocabulary"], c["embedding"]
    D = e["width"]
    return {"embeddings.word.weight": (V, W), "embeddings.position.weight": (c["max_tokens"], W),
            "embeddings.type.weight": (c["types"], W), "embeddings.norm.weight": (W,),
            "embeddings.norm.bias": (W,), "embeddings.projection.weight": (W, D),
            "embeddings.projection.bias": (D,), **wide.shapes_of(e), "pooler.weight": (D, D),
            "pooler.bias": (D,), "mlm.transform.weight": (D, W), "mlm.transform.bias": (W,),
            "mlm.norm.weight": (W,), "mlm.norm.bias": (W,), "mlm.bias": (V,),
            "order.weight": (D, 2), "order.bias": (2,), "classifier.weight": (D, c["classes"]),
            "classifier.bias": (c["classes"],), "span.weight": (D, 2), "span.bias": (2,)}


def language(name, num_noise=0, theirs=None, source=OURS, encoder=None):
    d, B, T = Draw(name), 2, 7
    c = {**LANGUAGE, "encoder": {**ENCODER, "layer_norm_eps": 1e-12, **(encoder or {})}}
    weights = d.weights(language_shapes(c))
    inputs = dict(token=d.integers(0, c["vocabulary"], B, T), type=d.integers(0, 2, B, T),
                  mask=torch.tensor([[1] * 7, [1] * 5 + [0] * 2]), places=torch.tensor([1, 4, 9]),
                  labels=d.integers(0, c["vocabulary"], 3), order=d.integers(0, 2, B),
                  answer=d.integers(0, T, B), **weights)
    for t in range(num_noise):
        inputs[f"noise.{t}"] = d(B * T, 4, scale=0.25)
    settings = as_settings(c)
    if c["encoder"]["dropout"] > 0:
        inputs |= dropout_masks(c["encoder"], B, T, c["embedding"])
        settings |= dict(seed=SEED, step=STEP)

    def heads(w, tokens):
        masked, first = wide.masked_logits(tokens, w["places"], w, c), wide.pooled(tokens, w)
        order = wide.linear(first, w["order.weight"], w["order.bias"])
        classes = wide.linear(first, w["classifier.weight"], w["classifier.bias"])
        span = wide.linear(tokens, w["span.weight"], w["span.bias"])
        # Masked words, the order of segments, a class, and the first token of an answer.
        main = (wide.cross_entropy(masked, w["labels"]) + wide.cross_entropy(order, w["order"]) +
                wide.cross_entropy(classes, w["order"]) +
                wide.cross_entropy(span[:, :, 0], w["answer"]))
        return dict(masked_logits=masked, pooled=first, order_logits=order, class_logits=classes,
                    span_logits=span, main_loss=main)

    def compute(w):
        out = {}
        out |= models_output(*wide.language_model(w["token"], w["type"], w, c, noise_of(w),
                                                  w["mask"], masks_of(w), out))
        out |= heads(w, out["tokens"])
        return dict(out, loss=out["main_loss"] + 0.01 * out["balance_loss"])
    def replaced(w):
        trace = {}
        tokens, first = theirs(w, c, trace)
        out = dict(trace, **heads(w, tokens))
        out |= dict(tokens=tokens, pooled=first)
        return dict(out, loss=out["main_loss"])
    case(name, "language", replaced if theirs else compute, inputs, settings, source=source,
         zero=key_biases(weights) + ["grad.span.bias"], check=compute if theirs else None)


def albert_model(w, c, trace):
    e = c["encoder"]
    model = AlbertModel(AlbertConfig(
        vocab_size=c["vocabulary"], embedding_size=c["embedding"], hidden_size=e["width"],
        num_hidden_layers=e["blocks"], num_attention_heads=e["heads"],
        intermediate_size=e["dense_hidden"], hidden_act="gelu_new", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=c["max_tokens"],
        type_vocab_size=c["types"], pad_token_id=None, attn_implementation="eager"))
    layer = "encoder.albert_layer_groups.0.albert_layers.0."
    names = {"embeddings.word_embeddings": "embeddings.word",
             "embeddings.position_embeddings": "embeddings.position",
             "embeddings.token_type_embeddings": "embeddings.type",
             "embeddings.LayerNorm": "embeddings.norm",
             "encoder.embedding_hidden_mapping_in": "embeddings.projection", "pooler": "pooler",
             layer + "attention.LayerNorm": "shared.norm1",
             layer + "full_layer_layer_norm": "shared.norm2",
             layer + "ffn": "shared.ffn.fc1", layer + "ffn_output": "shared.ffn.fc2"}
    for ours, n in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "dense")):
        names[f"{layer}attention.{n}"] = "shared.attn." + ours
    weights = {}
    for key in dict(model.named_parameters()):
        name, part = key.rsplit(".", 1)
        value = w[f"{names[name]}.{part}"]
        weights[key] = value.T if value.dim() == 2 and "_embeddings" not in key else value
    model.to(w["pooler.bias"].dtype)
    watch(model.get_submodule(layer.rstrip(".")), 0, trace, ALBERT_PLACES)
    model.encoder.embedding_hidden_mapping_in.register_forward_hook(
        lambda _, x, y: trace.update(embedding=y))
    out = load_weights(model, weights)(
        input_ids=w["token"].long(), token_type_ids=w["type"].long(), attention_mask=w["mask"])
    return out.last_hidden_state, out.pooler_output


def models():
    vision("vision_widenet", num_noise=3)
    vision("vision_class_token", class_token="trained", pooling="class_token", has_pre_logits=True)
    vision("vision_patch_mean", pooling="patch_mean", encoder=dict(blocks=2))
    vision("vision_author_tf", num_noise=3,
           encoder=dict(conventions=wide.conventions("author_tf"), gelu_at_output=True))
    vision("vision_dropout", num_noise=2, encoder=dict(dropout=0.2, moe_blocks=2))
    vision("vision_timm_run", theirs=timm_model, class_token="trained", pooling="class_token",
           source="timm " + timm.__version__ + ", VisionTransformer",
           encoder=dict(experts=0, blocks=2, dense_hidden=24, gelu="erf", share_attention=False,
                        share_experts=False))
    language("language_widenet", num_noise=3)
    language("language_evaluation", encoder=dict(top_k=1))
    language("language_dropout", num_noise=3,
             encoder=dict(dropout=0.2, is_pre_norm=False, gelu_at_output=True))
    language("language_albert_run", theirs=albert_model, source=HUGGING + ", AlbertModel",
             encoder=dict(experts=0, is_pre_norm=False, share_layer_norm=True))


# OPTIMISERS ---------------------------------------------------------------------------------------

RULES = {"sgd": (wide.sgd_step, ["m"], dict(rate=0.03, momentum=0.9, decay=0.01)),
         "adamw": (wide.adamw_step, ["m", "v"],
                   dict(rate=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.1)),
         "lamb": (wide.lamb_step, ["m", "v"],
                  dict(rate=1e-2, beta1=0.9, beta2=0.999, eps=1e-6, decay=0.1))}


def ten_steps(rule, w, gradient_of):
    """Ten steps; returns the weights after the first, and weights and states after the last."""
    step, state_names, settings = RULES[rule]
    w = {n: v.clone() for n, v in w.items()}
    states = {n: {s: torch.zeros_like(v) for s in state_names} for n, v in w.items()}
    out = {}
    for t in range(1, 11):
        gradients = gradient_of(w, t)
        for n in w:
            if "{}" not in n:
                step(w[n], gradients[n], states[n], t, **settings)
                continue
            for j, expert in enumerate(w[n]):  # a stack holds one tensor for each expert
                state = {s: x[j] for s, x in states[n].items()}
                step(expert, gradients[n][j], state, t, **settings)
        if t == 1:
            out |= {"first." + n: v.clone() for n, v in w.items()}
    out |= {"last." + n: v for n, v in w.items()}
    out |= {f"{rule}.{s}.{n}": states[n][s] for n in w for s in state_names}
    return out


def optimisers():
    pairs = dict(a=(7, 5), b=(11,), c=(2, 3, 4))
    for rule in RULES:
        d = Draw("optimiser_" + rule)
        inputs = {"w." + n: d(*s) for n, s in pairs.items()}
        for t in range(1, 11):
            inputs |= {f"g{t}.{n}": d(*s, scale=10.0**(t % 3 - 1)) for n, s in pairs.items()}

        def compute(x, rule=rule):
            return ten_steps(rule, {n: x["w." + n] for n in pairs},
                             lambda w, t: {n: x[f"g{t}.{n}"] for n in pairs})

        def theirs(x, rule=rule):
            """By torch.optim, and by timm, whose LAMB clips gradients unless told not to."""
            options = dict(RULES[rule][2])
            rate, decay = options.pop("rate"), options.pop("decay")
            if rule != "sgd":
                options = dict(betas=(options["beta1"], options["beta2"]), eps=options["eps"])
            if rule == "lamb":
                options |= dict(max_grad_norm=None)
            w = {n: x["w." + n].clone().requires_grad_() for n in pairs}
            make = dict(sgd=torch.optim.SGD, adamw=torch.optim.AdamW, lamb=timm.optim.Lamb)[rule]
            optimiser = make(w.values(), lr=rate, weight_decay=decay, **options)
            names = dict(m="momentum_buffer" if rule == "sgd" else "exp_avg", v="exp_avg_sq")
            out = {}
            for t in range(1, 11):
                for n in pairs:
                    w[n].grad = x[f"g{t}.{n}"].clone()
                optimiser.step()
                if t == 1:
                    out |= {"first." + n: v.detach().clone() for n, v in w.items()}
            out |= {"last." + n: v for n, v in w.items()}
            return out | {f"{rule}.{s}.{n}": optimiser.state[w[n]][names[s]]
                          for n in pairs for s in RULES[rule][1]}
        case("optimiser_" + rule, "optimiser", compute, inputs, dict(RULES[rule][2], rule=rule),
             constant=list(inputs), check=theirs)

    for rule in RULES:  # ten steps of a whole model
        d, B = Draw("training_" + rule), 3
        c = {**VISION, "encoder": {**ENCODER, "blocks": 2}}
        weights = d.weights(vision_shapes(c))
        inputs = dict(images=d(B, 3, 6, 4), labels=d.integers(0, 5, B), **weights)

        def compute(x, rule=rule, c=c, names=list(weights)):
            losses = []

            def gradient_of(w, t):
                leaves = {n: v.detach().clone().requires_grad_() for n, v in w.items()}
                loss = vision_loss(dict(leaves, images=x["images"], labels=x["labels"]), c)["loss"]
                loss.backward()
                losses.append(loss.detach())
                return {n: v.grad for n, v in leaves.items()}
            out = ten_steps(rule, {n: x[n] for n in names}, gradient_of)
            # The gradient of the key bias is 0 but for rounding. Adam divides it by its size: what
            # becomes of this bias is noise. Nothing else depends on it.
            noise = [n for n in out if rule != "sgd" and n.endswith("attn.k.bias")]
            return dict({n: v for n, v in out.items() if n not in noise and "first." not in n},
                        losses=torch.stack(losses))
        case("training_" + rule, "training", compute, inputs,
             dict(as_settings(c), **{k: v for k, v in RULES[rule][2].items()}, rule=rule),
             constant=list(inputs))


# THE FOLDER ---------------------------------------------------------------------------------------

def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    entries, total = [], 0
    for c in CASES:
        path = folder / (c["name"] + ".safetensors")
        about = json.dumps({key: c[key] for key in ("name", "op", "settings", "zero")})
        data = safetensors.numpy.save(c["arrays"], metadata={"case": about})
        path.write_bytes(data)
        total += len(data)
        entries.append(dict(
            name=c["name"], op=c["op"], source=c["source"], settings=c["settings"], zero=c["zero"],
            error32={n: float(f"{e:.3g}") for n, e in c["error32"].items()},
            shapes={k: list(v.shape) for k, v in sorted(c["arrays"].items())
                    if not k.startswith("out32.")},
            sha256=hashlib.sha256(data).hexdigest()))
    manifest = dict(format="widenet golden data 1", seed=SEED,
                    versions=dict(python=platform.python_version(), torch=torch.__version__,
                                  numpy=numpy.__version__, safetensors=safetensors.__version__,
                                  transformers=transformers.__version__, timm=timm.__version__))
    lines = ",\n".join(json.dumps(e, separators=(",", ":")) for e in entries)
    text = json.dumps(manifest)[:-1] + ', "cases": [\n' + lines + "\n]}\n"
    (folder / "manifest.json").write_text(text)
    total += len(text)
    assert total <= 8 << 20, f"{total} bytes"
    print(f"make_golden: {len(entries)} cases, {total} bytes in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="data/golden")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    operations()
    mixtures()
    block("block")
    block("block_mixtral", conventions=wide.conventions("mixtral"), norm="rms_norm",
          layer_norm_eps=1e-5)
    block("block_author_tf", conventions=wide.conventions("author_tf"), gelu_at_output=True)
    encoders()
    models()
    optimisers()
    write(pathlib.Path(arguments.out))
