"""WideNet in PyTorch, to be read: every function is one equation of the paper or of a public
implementation, in whatever precision its tensors have. It shares no code with the C++ header; the
names of weights and of rules are the same, so that the two can be compared tensor by tensor.

  B sequences   T tokens per sequence   N = B*T   D width   H heads   L blocks
  E experts     K choices per token     C slots per expert           F hidden width
Weights are (in, out). `w` maps names to weights; `trace`, where there is one, gets every result.
What is random is given: noise, jitter, masks of dropout, a random order of priority, coins.
"""
import math

import torch

# The rules of the paper: what the authors of WideNet do where it is silent. Others in `PRESETS`.
PAPER = dict(
    router_bias=False, router_noise="one_over_experts", noise_scale=1.0,
    first_choice_sees_noise=True, gate_sees_noise=True, balance_sees_noise=True,
    gate="raw", gate_eps=0.0, second_choice_threshold=0.0,
    capacity_rule="choices_over_experts", capacity_rounding="floor", capacity_multiple=1,
    capacity_minimum=1, capacity_slots=64, capacity_sequences=0, unusable_slots=0,
    priority="token_major", dropped="zero", balance="khot_over_k", balance_reduction="sum")

PRESETS = dict(
    paper={},
    author_tf=dict(unusable_slots=1),
    colossal=dict(router_noise="one_over_experts_squared", capacity_multiple=2, capacity_minimum=4,
                  priority="choice_major"),
    vmoe=dict(capacity_rounding="ceil", capacity_multiple=4, capacity_sequences=8,
              priority="choice_major", balance="switch_top1"),
    mesh_top2=dict(router_noise="none", gate="renormalized", gate_eps=1e-9,
                   second_choice_threshold=0.2, capacity_rule="tokens_over_experts",
                   capacity_minimum=4, capacity_sequences=1, priority="choice_major",
                   balance="switch_top1"),
    deepspeed_top2=dict(router_noise="gumbel", first_choice_sees_noise=False,
                        gate_sees_noise=False, balance_sees_noise=False,
                        gate="renormalized_after_drop", capacity_rule="single_precision",
                        capacity_minimum=4, priority="choice_major", balance="switch_top1"),
    tutel=dict(gate="renormalized", capacity_rule="shares_first", priority="choice_major",
               balance="switch_top1"),
    mixtral=dict(router_noise="none", gate="renormalized", capacity_rule="dropless",
                 balance="khot_sum", balance_reduction="together"),
    hf_switch=dict(router_noise="jitter_in_place", noise_scale=0.01, capacity_rule="absolute",
                   capacity_sequences=1, balance="switch_top1", balance_reduction="mean"))


# Rules that are computed by name; those of capacity and balance are found, or not, where they are.
KNOWN = dict(
    router_noise=("none", "one_over_experts", "one_over_experts_squared", "uniform", "gumbel",
                  "jitter", "jitter_in_place"),
    gate=("raw", "renormalized", "renormalized_after_drop"), capacity_rounding=("floor", "ceil"),
    priority=("token_major", "choice_major", "batch_priority", "highest_gate", "random"),
    dropped=("zero", "gated_input"), balance_reduction=("sum", "mean", "together"))


def conventions(preset="paper", **changes):
    rules = {**PAPER, **PRESETS[preset], **changes}
    for rule, value in rules.items():
        if rule not in PAPER or value not in KNOWN.get(rule, (value,)):
            raise NotImplementedError(f"{rule}={value}")
    return rules


# LAYERS -------------------------------------------------------------------------------------------

def linear(x, weight, bias=None):
    y = x @ weight
    return y if bias is None else y + bias


def layer_norm(x, gamma, beta, eps):
    """(x - mean) / sqrt(var + eps) * gamma + beta, with the biased variance."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * gamma + beta


def rms_norm(x, gamma, eps):
    """x / sqrt(mean of x^2 + eps) * gamma"""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gamma


def normed(x, w, name, c):
    """The norm of this name, with or without mean and beta."""
    if c.get("norm") == "rms_norm":
        return rms_norm(x, w[name + ".weight"], c["layer_norm_eps"])
    return layer_norm(x, w[name + ".weight"], w[name + ".bias"], c["layer_norm_eps"])


def gelu(x, form):
    if form == "erf":
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = torch.exp(x - x.max(-1, keepdim=True).values)
    return e / e.sum(-1, keepdim=True)


def attention(q, k, v, heads, key_mask=None):
    """softmax(q k^T / sqrt(Dh)) v in every head; masked keys get minus infinity. (B, T, D)"""
    B, T, D = q.shape
    split = lambda x: x.reshape(B, T, heads, D // heads).transpose(1, 2)
    scores = split(q) @ split(k).transpose(2, 3) / math.sqrt(D // heads)
    if key_mask is not None:
        scores = scores.masked_fill(key_mask.reshape(B, 1, 1, T) == 0, -math.inf)
    return (softmax(scores) @ split(v)).transpose(1, 2).reshape(B, T, D)


def self_attention(x, w, name, heads, key_mask=None, trace=None):
    q, k, v = (linear(x, w[f"{name}.{n}.weight"], w[f"{name}.{n}.bias"]) for n in "qkv")
    mixed = attention(q, k, v, heads, key_mask)
    if trace is not None:
        trace.update(q=q, k=k, v=v, attention=mixed)
    return linear(mixed, w[name + ".o.weight"], w[name + ".o.bias"])


def dropout(x, mask, fraction):
    """x / (1 - fraction) where the mask is 1, else 0; without a mask x, as in evaluation."""
    return x if mask is None else x * mask / (1 - fraction)


# MIXTURE OF EXPERTS -------------------------------------------------------------------------------

def capacity(rules, factor, K, N, E):
    """Slots of one expert for N tokens; factor = (numerator, denominator)."""
    a, b = factor
    up = lambda x, y: -(-x // y)
    divide = up if rules["capacity_rounding"] == "ceil" else lambda x, y: x // y
    C = {"choices_over_experts": lambda: divide(a * K * N, b * E),
         "tokens_over_experts": lambda: divide(a * N, b * E),
         "shares_first": lambda: K * divide(a * up(N, E), b),
         "tokens_first": lambda: divide(up(a * N, b) * K, E),
         "single_precision": lambda: math.ceil(float(torch.tensor(N / E, dtype=torch.float32) *
                                                     torch.tensor(a / b * K, dtype=torch.float32))),
         "absolute": lambda: rules["capacity_slots"],
         "dropless": lambda: N}[rules["capacity_rule"]]()
    multiple = rules["capacity_multiple"]
    return max(1, rules["capacity_minimum"], up(C, multiple) * multiple)


def largest(p, K):
    """The indices of the K largest of every row; of equal ones the lowest index first."""
    return torch.sort(p, dim=-1, descending=True, stable=True).indices[:, :K]


def queue(priority, gate, tokens, K, order=None):
    """The choices (n, k) of some tokens in the order in which they are served; a random one has to
    be given, as numbers n K + k of all choices, group after group."""
    if priority == "random":
        if order is None:
            raise NotImplementedError("priority=random without an order")
        return [divmod(int(i), K) for i in order[tokens.start * K:tokens.stop * K]]
    by_gate = lambda pairs: sorted(pairs, key=lambda nk: -float(gate[nk]))
    if priority == "token_major":
        return [(n, k) for n in tokens for k in range(K)]
    if priority == "highest_gate":
        return by_gate([(n, k) for n in tokens for k in range(K)])
    if priority == "batch_priority":
        tokens = [n for n, _ in by_gate([(n, 0) for n in tokens])]
    return [(n, k) for k in range(K) for n in tokens]  # choice_major, too


def asks(rules, gate, coins, n, k):
    """Whether a choice asks for a slot: one after the first does with probability gate / threshold,
    by a coin that is uniform in (0, 1). Without coins, as in evaluation, all ask."""
    threshold = rules["second_choice_threshold"]
    return k == 0 or threshold == 0 or coins is None or bool(coins[n, k] * threshold < gate[n, k])


def route(z, rules, K, factor, noise=None, group=0, order=None, coins=None):
    """Chooses experts and gives out slots, for logits z (N, E) and noise to be added to them."""
    N, E = z.shape
    group = group or N
    p = softmax(z if noise is None else z + noise)
    clean = p if noise is None else softmax(z)
    if rules["first_choice_sees_noise"]:
        expert = largest(p.detach(), K)
    else:  # the best of the clean logits, then the best others of the noisy ones
        first = largest(clean.detach(), 1)
        expert = largest(p.detach().scatter(1, first, 2.0), K)
    gate = (p if rules["gate_sees_noise"] else clean).gather(1, expert)

    served_by = gate.detach()
    if rules["gate"] == "renormalized":
        gate = gate / (gate.sum(1, keepdim=True) + rules["gate_eps"])
    C = capacity(rules, factor, K, group, E)
    usable = max(0, C - rules["unusable_slots"])
    slot = torch.full((N, K), -1)
    filled = [0] * E
    for start in range(0, N, group):
        served = [0] * E
        for n, k in queue(rules["priority"], served_by, range(start, start + group), K, order):
            e = int(expert[n, k])
            if served[e] < usable and asks(rules, gate.detach(), coins, n, k):
                slot[n, k] = filled[e] + served[e]
                served[e] += 1
        filled = [f + s for f, s in zip(filled, served)]

    if rules["gate"] == "renormalized_after_drop":
        kept = gate * (slot >= 0)
        total = kept.sum(1, keepdim=True) + rules["gate_eps"]
        gate = torch.where(slot >= 0, kept / torch.where(total > 0, total, 1.0), 0.0)
    balanced = p if rules["balance_sees_noise"] else clean
    count = lambda experts: torch.bincount(experts.reshape(-1), minlength=E)
    return dict(logits=z, noise=noise, probabilities=p, balance_probabilities=balanced,
                expert=expert, slot=slot, gate=gate, load=count(expert),
                kept=count(expert[slot >= 0]), importance=balanced.sum(0),
                C=min(C, group) * (N // group), group=group, rules=rules)


def noise_deviation(rules, E):
    """Of normal noise."""
    laws = dict(one_over_experts=E, one_over_experts_squared=E * E)
    if rules["router_noise"] not in laws:
        raise NotImplementedError("balance=load with router_noise=" + rules["router_noise"])
    return rules["noise_scale"] / laws[rules["router_noise"]]


def balance_loss(routings, rule):
    """The loss of the tokens of some routings together, the mean over groups of tokens."""
    r = routings[0]
    (N, E), K, group = r["logits"].shape, r["expert"].shape[1], r["group"]
    losses = []
    for start in range(0, N, group):
        part = lambda key: torch.cat([x[key][start:start + group] for x in routings])
        p, z, expert, slot = (part(key) for key in ("balance_probabilities", "logits", "expert",
                                                    "slot"))
        n = p.shape[0]
        chosen = torch.nn.functional.one_hot(expert, E).to(p.dtype)  # (n, K, E)
        kept = (chosen * (slot >= 0)[:, :, None]).sum((0, 1))
        all_kept = max(float(kept.sum()), 1.0)
        spread = lambda I, ddof: ((I - I.mean())**2).sum() / (E - ddof) / I.mean()**2
        if rule == "z_loss":
            loss = (torch.logsumexp(z, 1)**2).mean()
        elif rule == "importance":
            loss = spread(p.sum(0), 0)
        elif rule == "importance_unbiased":
            loss = spread(p.sum(0), 1)
        elif rule == "load":
            deviation = noise_deviation(r["rules"], E)
            noisy = z if r["noise"] is None else z + part("noise")
            threshold = noisy.gather(1, expert[:, -1:])
            loss = spread(torch.special.ndtr((z - threshold) / deviation).sum(0), 0)
        else:
            f, P = {"khot_over_k": lambda: (chosen.sum((0, 1)) / (n * K), p.mean(0)),
                    "khot_sum": lambda: (chosen.sum((0, 1)) / n, p.mean(0)),
                    "switch_top1": lambda: (chosen[:, 0].mean(0), p.mean(0)),
                    "after_drop": lambda: (kept / all_kept, p.mean(0)),
                    "after_drop_both": lambda: (kept / all_kept, p.sum(0) / all_kept)}[rule]()
            loss = E * (f * P).sum()
        losses.append(loss)
    return torch.stack(losses).mean()


def dispatch(x, r):
    """slots[e, c] = x[n] for the choice (n, k) that stands there, else 0: (E, C, D)"""
    n, _ = torch.nonzero(r["slot"] >= 0, as_tuple=True)
    return in_slots(x[n], r)


def in_slots(rows, r):
    """The rows of the choices that have a slot, in their slots, and 0 elsewhere."""
    n, k = torch.nonzero(r["slot"] >= 0, as_tuple=True)
    slots = torch.zeros(r["logits"].shape[1], r["C"], rows.shape[1], dtype=rows.dtype)
    return slots.index_put((r["expert"][n, k], r["slot"][n, k]), rows)


def experts(slots, w, name, r, form, gelu_at_output=False, masks=(None, None), fraction=0.0):
    """Expert e sends the tokens in its slots through its own network; empty slots stay 0. A choice
    (n, k) has its own masks of dropout, (N, K, F) and (N, K, D), whichever slot it has."""
    weight = lambda part: w[f"{name}.{{}}.{part}"]
    of_slots = lambda mask: None if mask is None else in_slots(mask[r["slot"] >= 0], r)
    h = slots @ weight("fc1.weight") + weight("fc1.bias")[:, None]
    h = dropout(gelu(h, form), of_slots(masks[0]), fraction)
    y = h @ weight("fc2.weight") + weight("fc2.bias")[:, None]
    if gelu_at_output:
        y = gelu(y, form)
    y = dropout(y, of_slots(masks[1]), fraction)
    filled = torch.arange(r["C"])[None, :] < r["kept"][:, None]
    return torch.where(filled[:, :, None], y, 0.0)


def combine(slots, r, x):
    """y[n] = sum over k of gate[n, k] slots[e, c]; what a dropped choice adds depends on rules."""
    kept = r["slot"] >= 0
    results = slots[r["expert"], torch.where(kept, r["slot"], 0)]  # (N, K, D)
    dropped = x[:, None] if r["rules"]["dropped"] == "gated_input" else torch.zeros_like(x)[:, None]
    return (r["gate"][:, :, None] * torch.where(kept[:, :, None], results, dropped)).sum(1)


def routed(x, w, name, c, B, noise=None, jitter=None, order=None, coins=None):
    """The routing of x (N, D), and what the experts see."""
    rules = c["conventions"]
    seen = x if jitter is None else x * jitter
    z = linear(seen, w[name + ".weight"], w.get(name + ".bias"))
    group = x.shape[0] // B * min(B, rules["capacity_sequences"])
    r = route(z, rules, c["top_k"], c["capacity_factor"], noise, group, order, coins)
    return r, seen if rules["router_noise"] == "jitter_in_place" else x


def mixture(x, w, name, c, r, trace=None, masks=(None, None)):
    slots = dispatch(x, r)
    results = experts(slots, w, name, r, c["gelu"], c["gelu_at_output"], masks, c["dropout"])
    y = combine(results, r, x)
    if trace is not None:
        trace.update(slots=slots, results=results, y=y)
    return y


# MODELS -------------------------------------------------------------------------------------------

def encoder(x, w, c, noise=None, key_mask=None, masks=None, trace=None):
    """x (B, T, D) -> tokens (B, T, D), routings, balance losses of each and of all. In training
    `masks` has I.attention, I.hidden and I.output of every block I; `trace` gets block.I.NAME."""
    L, B, D = c["blocks"], x.shape[0], c["width"]
    num_moe = 0 if c["experts"] == 0 else L if c["moe_blocks"] < 0 else c["moe_blocks"]
    groups = num_moe if c["routing_groups"] < 0 else c["routing_groups"]
    owner = lambda shared, i: "shared" if c[shared] else f"blocks.{i}"
    mask = lambda i, which: (masks or {}).get(f"{i}.{which}")
    routings = []
    if not c.get("routes_padding", True) or c["evaluation_capacity_factor"][0] != 0:
        raise NotImplementedError("padding that is not routed, an evaluation of other capacity")

    def keep(i, **results):
        if trace is not None:
            trace.update({f"block.{i}.{name}": value for name, value in results.items()})

    def norm(x, i, which):
        y = normed(x, w, f"{owner('share_layer_norm', i)}.{which}", c)
        keep(i, **{which: y})
        return y

    def attend(x, i):
        stages = {}
        name = owner("share_attention", i) + ".attn"
        y = self_attention(x, w, name, c["heads"], key_mask, stages)
        y = dropout(y, mask(i, "attention"), c["dropout"])
        keep(i, **stages, o=y)
        return y

    def dense(x, w, name, i):
        h = gelu(linear(x, w[name + ".ffn.fc1.weight"], w[name + ".ffn.fc1.bias"]), c["gelu"])
        h = dropout(h, mask(i, "hidden"), c["dropout"])
        y = linear(h, w[name + ".ffn.fc2.weight"], w[name + ".ffn.fc2.bias"])
        y = gelu(y, c["gelu"]) if c["gelu_at_output"] else y
        return dropout(y, mask(i, "output"), c["dropout"])

    def feed_forward(x, i):
        name, first = owner("share_experts", i), L - num_moe
        if i < first:
            return dense(x, w, name, i)
        tokens, j = x.reshape(-1, D), i - first
        if j == 0 or j * groups // num_moe != (j - 1) * groups // num_moe:  # first of its group
            t = len(routings)
            r, tokens = routed(tokens, w, owner("share_router", i) + ".moe.router", c, B,
                               None if noise is None else noise[t])
            routings.append(r)
        stages = {}
        y = mixture(tokens, w, name + ".moe.experts", c, routings[-1], stages,
                    (mask(i, "hidden"), mask(i, "output")))
        keep(i, results=stages["results"])
        return y.reshape(x.shape)

    for i in range(L):
        if c["is_pre_norm"]:
            middle = x + attend(norm(x, i, "norm1"), i)
            y = feed_forward(norm(middle, i, "norm2"), i)
            x = middle + y
        else:
            middle = x + attend(x, i)
            h = norm(middle, i, "norm1")
            y = feed_forward(h, i)
            x = norm(h + y, i, "norm2")
        keep(i, middle=middle, y=y)
    if c["is_pre_norm"] and c["has_final_norm"]:
        x = normed(x, w, "norm", c)
    rules = c["conventions"]
    losses = [balance_loss([r], rules["balance"]) for r in routings]
    if not losses:
        total = torch.zeros((), dtype=x.dtype)
    elif rules["balance_reduction"] == "together":
        total = balance_loss(routings, rules["balance"])
    else:
        total = sum(losses) / (len(losses) if rules["balance_reduction"] == "mean" else 1)
    return x, routings, losses, total


def patches_of(images, P):
    """(B, channels, height, width) -> (B, patches, P*P*channels), as a TensorFlow kernel has it."""
    B, c, h, w = images.shape
    cut = images.reshape(B, c, h // P, P, w // P, P).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(B, (h // P) * (w // P), P * P * c)


def vision_model(images, w, c, noise=None, masks=None, trace=None):
    e = c["encoder"]
    x = linear(patches_of(images, c["patch"]), w["patch_embed.proj.weight"],
               w["patch_embed.proj.bias"])
    B, _, D = x.shape
    first = w["cls_token"] if c["class_token"] == "trained" else torch.zeros(D, dtype=x.dtype)
    x = torch.cat([first.expand(B, 1, D), x], 1) + w["pos_embed"]
    x = dropout(x, (masks or {}).get("embedding"), e["dropout"])
    if trace is not None:
        trace["embedding"] = x
    tokens, routings, losses, total = encoder(x, w, e, noise, None, masks, trace)
    pooled = {"mean": lambda: tokens.mean(1), "patch_mean": lambda: tokens[:, 1:].mean(1),
              "class_token": lambda: tokens[:, 0]}[c["pooling"]]()
    if c["has_pre_logits"]:
        pooled = torch.tanh(linear(pooled, w["pre_logits.weight"], w["pre_logits.bias"]))
    return linear(pooled, w["head.weight"], w["head.bias"]), routings, losses, total


def language_model(token, types, w, c, noise=None, key_mask=None, masks=None, trace=None):
    e = c["encoder"]
    T = token.shape[1]
    x = (w["embeddings.word.weight"][token] + w["embeddings.type.weight"][types] +
         w["embeddings.position.weight"][:T])
    x = normed(x, w, "embeddings.norm", e)
    x = dropout(x, (masks or {}).get("embedding"), e["dropout"])
    x = linear(x, w["embeddings.projection.weight"], w["embeddings.projection.bias"])
    if trace is not None:
        trace["embedding"] = x
    return encoder(x, w, e, noise, key_mask, masks, trace)


def masked_logits(tokens, places, w, c):
    """Scores of all words at some places b*T + t."""
    e = c["encoder"]
    x = tokens.reshape(-1, e["width"])[places]
    h = gelu(linear(x, w["mlm.transform.weight"], w["mlm.transform.bias"]), e["gelu"])
    h = normed(h, w, "mlm.norm", e)
    return h @ w["embeddings.word.weight"].T + w["mlm.bias"]


def pooled(tokens, w):
    return torch.tanh(linear(tokens[:, 0], w["pooler.weight"], w["pooler.bias"]))


def cross_entropy(logits, labels, smoothing=0.0):
    V = logits.shape[1]
    hit = torch.nn.functional.one_hot(labels.long(), V).to(logits.dtype)
    q = (1 - smoothing) * hit + smoothing / V
    log_p = logits - torch.logsumexp(logits, 1, keepdim=True)
    return -(q * log_p).sum(1).mean()


# OPTIMISERS ---------------------------------------------------------------------------------------
# Each changes w in place, given the gradient g and its state, at step t = 1, 2, ...

def sgd_step(w, g, state, t, rate, momentum, decay):
    state["m"].mul_(momentum).add_(g + decay * w)
    w.sub_(rate * state["m"])


def adam_direction(w, g, state, t, beta1, beta2, eps):
    state["m"].mul_(beta1).add_((1 - beta1) * g)
    state["v"].mul_(beta2).add_((1 - beta2) * g * g)
    return state["m"] / (1 - beta1**t) / (torch.sqrt(state["v"] / (1 - beta2**t)) + eps)


def adamw_step(w, g, state, t, rate, beta1, beta2, eps, decay):
    w.sub_(rate * (adam_direction(w, g, state, t, beta1, beta2, eps) + decay * w))


def lamb_step(w, g, state, t, rate, beta1, beta2, eps, decay):
    """The direction of AdamW, scaled per tensor by |w| / |direction| (You et al., LAMB)."""
    u = adam_direction(w, g, state, t, beta1, beta2, eps) + decay * w
    norm_w, norm_u = torch.linalg.norm(w), torch.linalg.norm(u)
    trust = norm_w / norm_u if norm_w > 0 and norm_u > 0 else 1.0
    w.sub_(rate * trust * u)


def norm_shapes(name, D, c):
    parts = ("weight",) if c.get("norm") == "rms_norm" else ("weight", "bias")
    return {f"{name}.{part}": (D,) for part in parts}


def shapes_of(c):
    """Name and shape of every weight of an encoder."""
    D, L, E, F, G = c["width"], c["blocks"], c["experts"], c["expert_hidden"], c["dense_hidden"]
    num_moe = 0 if E == 0 else L if c["moe_blocks"] < 0 else c["moe_blocks"]
    owner = lambda shared, i: "shared" if c[shared] else f"blocks.{i}"
    groups = num_moe if c["routing_groups"] < 0 else c["routing_groups"]
    shapes = {}
    for i in range(L):
        attn, norm = owner("share_attention", i) + ".attn", owner("share_layer_norm", i)
        for n in "qkvo":
            shapes[f"{attn}.{n}.weight"], shapes[f"{attn}.{n}.bias"] = (D, D), (D,)
        for n in ("norm1", "norm2"):
            shapes |= norm_shapes(f"{norm}.{n}", D, c)
        ffn, j = owner("share_experts", i), i - (L - num_moe)
        if j < 0:
            shapes |= {ffn + ".ffn.fc1.weight": (D, G), ffn + ".ffn.fc1.bias": (G,),
                       ffn + ".ffn.fc2.weight": (G, D), ffn + ".ffn.fc2.bias": (D,)}
            continue
        if j == 0 or j * groups // num_moe != (j - 1) * groups // num_moe:
            shapes[owner("share_router", i) + ".moe.router.weight"] = (D, E)
            if c["conventions"]["router_bias"]:
                shapes[owner("share_router", i) + ".moe.router.bias"] = (E,)
        name = ffn + ".moe.experts.{}."
        shapes |= {name + "fc1.weight": (E, D, F), name + "fc1.bias": (E, F),
                   name + "fc2.weight": (E, F, D), name + "fc2.bias": (E, D)}
    if c["is_pre_norm"] and c["has_final_norm"]:
        shapes |= norm_shapes("norm", D, c)
    return shapes
