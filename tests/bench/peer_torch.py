"""The PyTorch peer of tests/bench/train_step: the same training steps, written for speed.

  peer_torch.py time CONFIG THREADS [options]    one JSON line with the median step and its costs
  peer_torch.py serve CONFIG THREADS [options]   the same, one JSON line per line of standard input
                                                 (a number of seconds), until the input ends
  peer_torch.py export CONFIG DIRECTORY          DIRECTORY/CONFIG.safetensors: everything that goes
                                                 into the first step, and everything it computes

CONFIG is digits1, digits2, mnist, cifar, mlm, wideB or widenet_b; a step is forward, backward and
AdamW in fp32. With --load FILE every measurement starts from the weights and the batch of an
export, in every form of the peer, as train_step does with the same option; without it they depend
on --seed and --moe. Needs torch and safetensors; the peak is read through a small library that g++
makes from peak.hpp.

With --device cuda the steps are timed on a GPU, each until the GPU has finished it, its memory is
that of torch's tensors, no peak is read, and --precision may be tf32 (products of floats) or bf16
(autocast). Exports are always computed on the CPU, in fp32.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "bench"

# The letters: P patch side, D width, H heads, F hidden width of one expert, L blocks, E experts,
# K experts per token, B sequences in a batch, T tokens per sequence, N = B * T, V vocabulary.
VISION = dict(kind="vision")
MASKED = dict(kind="masked", classes=0)
CONFIGS = {
    "digits1": dict(VISION, image=8, channels=1, P=2, D=64, H=4, F=256, L=6, E=4, K=1, B=64,
                    classes=10),
    "digits2": dict(VISION, image=8, channels=1, P=2, D=64, H=4, F=256, L=6, E=4, K=2, B=64,
                    classes=10),
    "mnist": dict(VISION, image=28, channels=1, P=4, D=128, H=4, F=512, L=8, E=4, K=2, B=64,
                  classes=10),
    "cifar": dict(VISION, image=32, channels=3, P=4, D=192, H=6, F=768, L=12, E=8, K=2, B=64,
                  classes=10),
    "mlm": dict(MASKED, T=128, V=8192, types=2, embedding=64, D=256, H=4, F=1024, L=6, E=4, K=2,
                B=16, predictions=20),
    "wideB": dict(VISION, image=224, channels=3, P=16, D=768, H=12, F=3072, L=12, E=4, K=2, B=4,
                  classes=1000),
    "widenet_b": dict(VISION, image=224, channels=3, P=16, D=768, H=12, F=4096, L=12, E=4, K=2, B=4,
                      classes=1000),
}
EPS = 1e-6
BALANCE = 0.01
LEARNING_RATE = 1e-5  # so small that no routing changes much while it is timed
BURST_SECONDS = 0.2  # as in train_step.cpp


def configuration(options):
    c = CONFIGS[options.config]
    return dict(c, B=options.batch) if options.batch else c


def tokens_per_sequence(c):
    return (c["image"] // c["P"]) ** 2 + 1 if c["kind"] == "vision" else c["T"]


def capacity(c):
    """max(1, floor(6/5 K N / E)), in integers."""
    tokens = c["B"] * tokens_per_sequence(c)
    return max(1, 6 * c["K"] * tokens // (5 * c["E"]))


# ------------------------------------------------------------------------------------------------
# Dispatch and combine are adjoint: each is a gather, and so is the other's backward. (Autograd's
# own backward of a gather adds row by row.)


def sum_choices(rows, row_of_choice, is_kept, k):
    """(R, D), (N*K), (N*K, 1) or None -> (N, D): adds up the rows of a token's kept choices."""
    picked = rows.index_select(0, row_of_choice)
    if is_kept is not None:
        picked = picked * is_kept
    return picked if k == 1 else picked.view(-1, k, rows.shape[1]).sum(1)


class Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(x, token_of_row, row_of_choice, is_kept, k):
        return x.index_select(0, token_of_row)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, row_of_choice, is_kept, ctx.k = inputs
        ctx.save_for_backward(row_of_choice, is_kept)

    @staticmethod
    def backward(ctx, gradient):
        row_of_choice, is_kept = ctx.saved_tensors
        return sum_choices(gradient, row_of_choice, is_kept, ctx.k), None, None, None, None


class Combine(torch.autograd.Function):
    @staticmethod
    def forward(rows, token_of_row, row_of_choice, is_kept, k):
        return sum_choices(rows, row_of_choice, is_kept, k)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None, None, None


def slots(experts, num_experts):
    """(N*K) -> (N*K): a choice's rank among the choices of the same expert, in token order."""
    one_hot = experts.unsqueeze(1) == torch.arange(num_experts)
    return one_hot.int().cumsum(0).gather(1, experts.unsqueeze(1)).squeeze(1).long() - 1


class MixtureOfExperts(nn.Module):
    """Router and experts; `form`: sorted (a product per expert) or batched (padded to C)."""

    def __init__(self, c, form):
        super().__init__()
        self.c, self.form, self.capacity = c, form, capacity(c)
        self.router = nn.Linear(c["D"], c["E"], bias=False)
        if form == "sorted":
            self.fc1 = nn.ModuleList([nn.Linear(c["D"], c["F"]) for _ in range(c["E"])])
            self.fc2 = nn.ModuleList([nn.Linear(c["F"], c["D"]) for _ in range(c["E"])])
        else:
            self.weight1 = nn.Parameter(torch.empty(c["E"], c["D"], c["F"]))
            self.bias1 = nn.Parameter(torch.empty(c["E"], 1, c["F"]))
            self.weight2 = nn.Parameter(torch.empty(c["E"], c["F"], c["D"]))
            self.bias2 = nn.Parameter(torch.empty(c["E"], 1, c["D"]))

    def route(self, x, noise=None):
        """(N, D), noise (N, E) -> gates (N*K), experts (N*K), load (E), balance loss."""
        num_experts = self.c["E"]
        logits = self.router(x)
        if noise is None:
            noise = torch.randn_like(logits) / num_experts
        probabilities = F.softmax(logits + noise, -1)
        gates, experts = probabilities.topk(self.c["K"], -1)
        experts = experts.reshape(-1)  # token-major: choice n*K + k
        load = (experts.unsqueeze(1) == torch.arange(num_experts)).sum(0)
        balance = num_experts * (load.float() / experts.numel() * probabilities.mean(0)).sum()
        return gates.reshape(-1), experts, load, balance

    def forward(self, x, gates, experts, load):
        """(N, D) -> (N, D)"""
        run = self.run_sorted if self.form == "sorted" else self.run_batched
        return run(x, gates, experts, load)

    def run_sorted(self, x, gates, experts, load):
        limit = self.capacity
        choice_of_row = torch.argsort(experts, stable=True)
        counts = load.tolist()
        row_of_choice, is_kept = torch.empty_like(experts), None
        if max(counts) > limit:
            kept = [part[:limit] for part in choice_of_row.split(counts)]
            counts = [len(part) for part in kept]
            choice_of_row = torch.cat(kept)
            row_of_choice.zero_()
            is_kept = x.new_zeros(experts.numel(), 1)
            is_kept[choice_of_row] = 1.0
        row_of_choice[choice_of_row] = torch.arange(choice_of_row.numel())
        return self.run_rows(x, gates, choice_of_row, row_of_choice, is_kept, counts)

    def run_rows(self, x, gates, choice_of_row, row_of_choice, is_kept, counts):
        k = self.c["K"]
        token_of_row = choice_of_row // k
        rows = Dispatch.apply(x, token_of_row, row_of_choice, is_kept, k).split(counts)
        rows = torch.cat([fc2(F.gelu(fc1(part), approximate="tanh"))
                          for part, fc1, fc2 in zip(rows, self.fc1, self.fc2) if len(part)])
        rows = rows * gates.index_select(0, choice_of_row).unsqueeze(1)
        return Combine.apply(rows, token_of_row, row_of_choice, is_kept, k)

    def run_batched(self, x, gates, experts, load):
        c, k, limit = self.c, self.c["K"], self.capacity
        num_rows = c["E"] * limit
        slot = slots(experts, c["E"])
        is_kept = slot < limit
        row = torch.where(is_kept, experts * limit + slot, num_rows)
        choice_of_row = torch.full((num_rows + 1,), -1, dtype=torch.long)
        choice_of_row = choice_of_row.scatter(0, row, torch.arange(experts.numel()))[:num_rows]
        # An empty row holds token 0 and gets the gate 0, so that it sends no gradient.
        is_filled = (choice_of_row >= 0).to(x.dtype)
        choice_of_row = choice_of_row.clamp(min=0)
        row = torch.where(is_kept, row, 0)
        is_kept = is_kept.to(x.dtype).unsqueeze(1)
        token_of_row = choice_of_row // k
        rows = Dispatch.apply(x, token_of_row, row, is_kept, k).view(c["E"], limit, c["D"])
        hidden = F.gelu(torch.baddbmm(self.bias1, rows, self.weight1), approximate="tanh")
        rows = torch.baddbmm(self.bias2, hidden, self.weight2).view(num_rows, c["D"])
        rows = rows * (gates.index_select(0, choice_of_row) * is_filled).unsqueeze(1)
        return Combine.apply(rows, token_of_row, row, is_kept, k)


class Attention(nn.Module):
    def __init__(self, c, form):
        super().__init__()
        self.heads, self.form = c["H"], form
        self.qkv = nn.Linear(c["D"], 3 * c["D"])
        self.out = nn.Linear(c["D"], c["D"])

    def forward(self, x):
        sequences, tokens, width = x.shape
        split = self.qkv(x).view(sequences, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        if self.form == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scale = (width // self.heads) ** -0.5
            y = F.softmax((q * scale) @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).reshape(sequences, tokens, width))


class WideNet(nn.Module):
    def __init__(self, c, moe="sorted", attention="fused"):
        super().__init__()
        self.c = c
        d = c["D"]
        if c["kind"] == "vision":
            self.patch = nn.Linear(c["P"] ** 2 * c["channels"], d)
            self.cls_token = nn.Parameter(torch.empty(d))
            self.head = nn.Linear(d, c["classes"])
        else:
            # The frontend of ALBERT: three narrow embeddings, LayerNorm, a projection to width D.
            self.word = nn.Embedding(c["V"], c["embedding"])
            self.token_type = nn.Embedding(c["types"], c["embedding"])
            self.embedding_norm = nn.LayerNorm(c["embedding"], EPS)
            self.projection = nn.Linear(c["embedding"], d)
            self.transform = nn.Linear(d, c["embedding"])
            self.transform_norm = nn.LayerNorm(c["embedding"], EPS)
            self.decoder_bias = nn.Parameter(torch.empty(c["V"]))
        position_width = d if c["kind"] == "vision" else c["embedding"]
        self.position = nn.Parameter(torch.empty(tokens_per_sequence(c), position_width))
        self.attention = Attention(c, attention)
        self.moe = MixtureOfExperts(c, moe)
        self.norm1 = nn.ModuleList([nn.LayerNorm(d, EPS) for _ in range(c["L"])])
        self.norm2 = nn.ModuleList([nn.LayerNorm(d, EPS) for _ in range(c["L"])])
        self.norm = nn.LayerNorm(d, EPS)
        self.initialise()

    @torch.no_grad()
    def initialise(self):
        """N(0, 1 / fan-in) matrices; a narrow router, so that few choices are dropped; the rest
        N(0, 0.02^2), around one for LayerNorm weights: zeros and ones would hide mistakes."""
        for name, parameter in self.named_parameters():
            fan_in = parameter.shape[1] if parameter.dim() > 1 else 1
            is_narrow = fan_in == 1 or name in ("position", "word.weight", "token_type.weight",
                                                "moe.router.weight")
            parameter.normal_(0.0, 0.02 if is_narrow else fan_in ** -0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)

    def forward(self, inputs, predicted=None, noise=None):
        """Images (B, channels, H, W), or words (B, T) and the token numbers (M) to predict.

        -> logits (B, classes) or (M, V), the sum of the balance losses, loads (L, E), experts."""
        c = self.c
        if c["kind"] == "vision":
            p, n = c["P"], c["image"] // c["P"]
            # Inside of a patch the order is y, x, channel.
            x = inputs.view(-1, c["channels"], n, p, n, p).permute(0, 2, 4, 3, 5, 1)
            x = self.patch(x.reshape(-1, n * n, p * p * c["channels"]))
            x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], 1) + self.position
        else:
            x = self.word(inputs) + self.position + self.token_type(torch.zeros_like(inputs))
            x = self.projection(self.embedding_norm(x))
        balance, loads, experts = 0.0, [], []
        for norm1, norm2, block_noise in zip(self.norm1, self.norm2, noise or [None] * c["L"]):
            x, y, gates, chosen, load, block_balance = self.attend_and_route(
                x, norm1.weight, norm1.bias, norm2.weight, norm2.bias, block_noise)
            x = x + self.moe(y, gates, chosen, load).view_as(x)
            balance = balance + block_balance
            loads.append(load)
            experts.append(chosen)
        x = self.norm(x)
        if c["kind"] == "vision":
            return self.head(x[:, 0]), balance, torch.stack(loads), experts
        x = x.view(-1, c["D"]).index_select(0, predicted)
        x = self.transform_norm(F.gelu(self.transform(x), approximate="tanh"))
        logits = F.linear(x, self.word.weight, self.decoder_bias)
        return logits, balance, torch.stack(loads), experts

    def attend_and_route(self, x, weight1, bias1, weight2, bias2, noise):
        """The part of a block whose shapes do not depend on the values. The LayerNorms of a block
        come as arguments: compiled once, it serves all blocks."""
        x = x + self.attention(F.layer_norm(x, (self.c["D"],), weight1, bias1, EPS))
        y = F.layer_norm(x, (self.c["D"],), weight2, bias2, EPS).view(-1, self.c["D"])
        return (x, y) + self.moe.route(y, noise)


# ------------------------------------------------------------------------------------------------


def make_batch(c):
    """Random inputs, tokens to predict (or None), labels."""
    if c["kind"] == "vision":
        images = torch.randn(c["B"], c["channels"], c["image"], c["image"])
        return images, None, torch.randint(c["classes"], (c["B"],))
    predicted = [b * c["T"] + torch.randperm(c["T"])[:c["predictions"]].sort().values
                 for b in range(c["B"])]
    predicted = torch.cat(predicted)
    words = torch.randint(c["V"], (c["B"], c["T"]))
    return words, predicted, torch.randint(c["V"], (len(predicted),))


def useful_operations(c, kept_fraction):
    """Operations of the products of one step: only kept choices, no padding; backward is twice."""
    d, t = c["D"], tokens_per_sequence(c)
    n = c["B"] * t
    attention = 8 * n * d * d + 4 * n * t * d
    experts = kept_fraction * c["K"] * n * 4 * d * c["F"]
    total = 3 * c["L"] * (attention + 2 * n * d * c["E"] + experts)
    if c["kind"] == "vision":
        # The gradient of the images is not needed.
        total += 2 * 2 * c["B"] * (t - 1) * c["P"] ** 2 * c["channels"] * d
        return total + 3 * 2 * c["B"] * d * c["classes"]
    m, e = c["B"] * c["predictions"], c["embedding"]
    return total + 3 * 2 * (n * e * d + m * d * e + m * e * c["V"])


def load_peak():
    """The function of peak.hpp, compiled when the library is missing or older than its source."""
    source, library = HERE / "peak.hpp", BUILD / "libpeak.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}.so")
        subprocess.run([os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-march=native",
                        "-pthread", "-shared", "-fPIC", "-DWIDENET_PEAK_LIBRARY", "-x", "c++",
                        str(source), "-o", str(fresh)], check=True)
        fresh.replace(library)
    peak = ctypes.CDLL(str(library)).peak_gflops
    peak.restype, peak.argtypes = ctypes.c_double, [ctypes.c_int]
    return peak


def memory_mb(field):
    """VmRSS (resident now) or VmHWM (its highest value) of this process."""
    for line in open("/proc/self/status"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"peer_torch: /proc/self/status must hold {field}")


def restart_memory_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Cpu:
    """Where a peer runs: its clock, its memory, the peak beside it."""

    def __init__(self):
        self.peak = load_peak()

    def finish(self):
        """Waits until all work is done."""

    def now_mb(self):
        return memory_mb("VmRSS")

    def highest_mb(self):
        return memory_mb("VmHWM")

    def restart_peak(self):
        restart_memory_peak()


class Gpu:
    """Memory is what tensors take; PyTorch's cache and CUDA itself take more."""

    def __init__(self, precision):
        if not torch.cuda.is_available():
            raise SystemExit("peer_torch: --device cuda needs a GPU that this torch can use")
        torch.set_default_device("cuda")
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def peak(self, threads):
        return 0.0

    def finish(self):
        torch.cuda.synchronize()

    def now_mb(self):
        return torch.cuda.memory_allocated() / 2**20

    def highest_mb(self):
        return torch.cuda.max_memory_allocated() / 2**20

    def restart_peak(self):
        torch.cuda.reset_peak_memory_stats()


class Peer:
    def __init__(self, options):
        self.options = options
        self.c = c = configuration(options)
        torch.set_num_threads(options.threads)
        self.device = Gpu(options.precision) if options.device == "cuda" else Cpu()
        torch.manual_seed(options.seed)
        self.before_model_mb = self.device.now_mb()
        self.model = WideNet(c, options.moe, options.attention)
        self.forward = self.model
        if options.compile == "model":
            self.forward = torch.compile(self.model)
        elif options.compile == "graphs":
            self.forward = torch.compile(self.model, mode="reduce-overhead")
        elif options.compile == "parts":
            model = self.model
            model.attend_and_route = torch.compile(model.attend_and_route, dynamic=False)
            if options.moe == "sorted":
                model.moe.run_rows = torch.compile(model.moe.run_rows, dynamic=True)
            else:
                model.moe.run_batched = torch.compile(model.moe.run_batched, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE,
                                           weight_decay=0.05, **{options.optimizer: True})
        self.inputs, self.predicted, self.labels = make_batch(c)
        self.start()
        started = time.perf_counter()
        for _ in range(3):
            self.step()
        self.device.finish()
        self.warm_up_seconds = time.perf_counter() - started
        self.highest_mb = self.device.highest_mb()
        self.device.restart_peak()

    def start(self):
        """Back to the exported weights and batch, if there are any, and to a fresh optimiser."""
        if not self.options.load:
            return
        with safe_open(self.options.load, "pt") as file:
            for name, view in common_names(self.model, lambda parameter: parameter).items():
                view.copy_(file.get_tensor(name))
            where = next(self.model.parameters()).device
            self.labels = file.get_tensor("labels").long().to(where)
            if self.c["kind"] == "vision":
                self.inputs = file.get_tensor("images").clone().to(where)
            else:
                self.inputs = file.get_tensor("words").long().to(where)
                self.predicted = file.get_tensor("predicted").long().to(where)
        self.optimizer.state.clear()
        self.device.restart_peak()

    def rounding(self):
        if self.options.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.options.device, torch.bfloat16)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.rounding():
            logits, balance, loads, _ = self.forward(self.inputs, self.predicted)
            loss = F.cross_entropy(logits, self.labels) + BALANCE * balance
        loss.backward()
        self.optimizer.step()
        return loss.detach(), loads

    def measure(self, seconds):
        """At least three steps, at least `seconds`; the peak is read on both sides of each, or,
        where steps are short, of some in a row, as in training. One step more, before them, brings
        the caches back after a pause."""
        c, threads = self.c, self.options.threads
        self.start()
        self.step()
        self.device.finish()
        times, around, kept = [], [], []
        started, peak_before = time.perf_counter(), self.device.peak(threads)
        while len(times) < 3 or time.perf_counter() - started < seconds:
            burst, first = time.perf_counter(), len(times)
            while len(times) == first or time.perf_counter() - burst < BURST_SECONDS:
                begin = time.perf_counter()
                loss, loads = self.step()
                self.device.finish()
                times.append(time.perf_counter() - begin)
                kept.append(float(loads.clamp(max=capacity(c)).sum() / loads.sum()))
            peak_after = self.device.peak(threads)
            around += [(peak_before + peak_after) / 2] * (len(times) - first)
            peak_before = peak_after
        kept_fraction = statistics.mean(kept)
        gflop = useful_operations(c, kept_fraction) * 1e-9
        seconds = statistics.median(times)
        percent = statistics.median(100 * gflop / t / p if p else 0 for t, p in zip(times, around))
        tokens = c["B"] * tokens_per_sequence(c)
        highest_mb = self.device.highest_mb()
        self.highest_mb = max(self.highest_mb, highest_mb)
        options = self.options
        return dict(
            config=options.config, batch=c["B"], threads=threads, compile=options.compile,
            device=options.device, precision=options.precision,
            moe=options.moe, attention=options.attention, optimizer=options.optimizer,
            torch=torch.__version__, steps=len(times), ms=seconds * 1e3, min_ms=min(times) * 1e3,
            tokens_per_second=tokens / seconds, gflop=gflop, peak_gflops=statistics.median(around),
            percent_of_peak=percent, peak_memory_mb=self.highest_mb,
            steady_peak_memory_mb=highest_mb, before_model_mb=self.before_model_mb,
            kept_fraction=kept_fraction, loss=float(loss), warm_up_seconds=self.warm_up_seconds)


# ------------------------------------------------------------------------------------------------


def common_names(model, value):
    """Views under the names and in the layouts of checkpoints: matrices (in, out).

    `value` gives what to take of a parameter: itself, or its gradient."""
    c, named = model.c, {}

    def put(name, tensor):
        named[name] = tensor.detach()

    def put_linear(name, linear):
        put(name + ".weight", value(linear.weight).t())
        put(name + ".bias", value(linear.bias))

    def put_norm(name, norm):
        put(name + ".weight", value(norm.weight))
        put(name + ".bias", value(norm.bias))

    if c["kind"] == "vision":
        put_linear("patch_embed.proj", model.patch)
        put("cls_token", value(model.cls_token))
        put("pos_embed", value(model.position))
        put_linear("head", model.head)
    else:
        put("embeddings.word.weight", value(model.word.weight))
        put("embeddings.position.weight", value(model.position))
        put("embeddings.type.weight", value(model.token_type.weight))
        put_norm("embeddings.norm", model.embedding_norm)
        put_linear("embeddings.projection", model.projection)
        put_linear("mlm.transform", model.transform)
        put_norm("mlm.norm", model.transform_norm)
        put("mlm.bias", value(model.decoder_bias))
    attention, moe = model.attention, model.moe
    weights, biases = value(attention.qkv.weight).chunk(3), value(attention.qkv.bias).chunk(3)
    for letter, weight, bias in zip("qkv", weights, biases):
        put(f"shared.attn.{letter}.weight", weight.t())
        put(f"shared.attn.{letter}.bias", bias)
    put_linear("shared.attn.o", attention.out)
    put("shared.moe.router.weight", value(moe.router.weight).t())
    for j in range(c["E"]):
        name = f"shared.moe.experts.{j}"
        if moe.form == "sorted":
            put_linear(name + ".fc1", moe.fc1[j])
            put_linear(name + ".fc2", moe.fc2[j])
        else:
            for i, weight, bias in ((1, moe.weight1, moe.bias1), (2, moe.weight2, moe.bias2)):
                put(f"{name}.fc{i}.weight", value(weight)[j])
                put(f"{name}.fc{i}.bias", value(bias)[j, 0])
    for i in range(c["L"]):
        put_norm(f"blocks.{i}.norm1", model.norm1[i])
        put_norm(f"blocks.{i}.norm2", model.norm2[i])
    put_norm("norm", model.norm)
    return named


def save(options, tensors, facts):
    """-> DIRECTORY/CONFIG.safetensors, or CONFIG_batchB if --batch is given"""
    directory = pathlib.Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    batch = f"_batch{options.batch}" if options.batch else ""
    path = directory / f"{options.config}{batch}.safetensors"
    tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format)
               for name, tensor in tensors.items()}
    save_file(tensors, str(path), metadata=facts)
    return str(path)


def export(options):
    c = configuration(options)
    torch.manual_seed(options.seed)
    model = WideNet(c, options.moe, options.attention)
    inputs, predicted, labels = make_batch(c)
    n, k = c["B"] * tokens_per_sequence(c), c["K"]
    noise = [torch.randn(n, c["E"]) / c["E"] for _ in range(c["L"])]
    tensors = common_names(model, lambda parameter: parameter)
    if c["kind"] == "vision":
        tensors["images"] = inputs
    else:
        tensors["words"], tensors["predicted"] = inputs.int(), predicted.int()
    tensors["labels"] = labels.int()
    facts = {name: str(entry) for name, entry in c.items()}
    facts.update(capacity=str(capacity(c)), eps=str(EPS), balance_weight=str(BALANCE),
                 torch=torch.__version__)
    if options.inputs_only:
        print(json.dumps(dict(config=options.config, file=save(options, tensors, facts))))
        return
    logits, balance, loads, experts = model(inputs, predicted, noise)
    loss = F.cross_entropy(logits, labels) + BALANCE * balance
    loss.backward()

    for i in range(c["L"]):
        slot = slots(experts[i], c["E"])
        tensors[f"noise.{i}"] = noise[i]
        tensors[f"expert.{i}"] = experts[i].view(n, k).int()
        tensors[f"slot.{i}"] = torch.where(slot < capacity(c), slot, -1).view(n, k).int()
    tensors["logits"] = logits.detach()
    tensors["loss"], tensors["balance_loss"] = loss.detach(), balance.detach()
    gradients = common_names(model, lambda parameter: torch.zeros_like(parameter)
                             if parameter.grad is None else parameter.grad)
    for name, gradient in gradients.items():
        tensors["grad." + name] = gradient
    kept = float(loads.clamp(max=capacity(c)).sum() / loads.sum())
    path = save(options, tensors, facts)
    print(json.dumps(dict(config=options.config, file=path, loss=float(loss.detach()),
                          balance_loss=float(balance.detach()), kept_fraction=kept)))


def main():
    parser = argparse.ArgumentParser(description="The PyTorch peer of tests/bench/train_step.")
    parser.add_argument("command", choices=["time", "serve", "export"])
    parser.add_argument("config", choices=list(CONFIGS))
    parser.add_argument("argument", help="threads, or the directory of an export")
    parser.add_argument("--compile", choices=["none", "parts", "model", "graphs"], default="none",
                        help="parts: what lies between two dispatches; model: all at once; graphs: "
                             "that, replayed as a CUDA graph where torch can")
    parser.add_argument("--moe", choices=["sorted", "batched"], default="sorted")
    parser.add_argument("--attention", choices=["fused", "plain"], default="fused")
    parser.add_argument("--optimizer", choices=["fused", "foreach"], default="fused")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, help="sequences, instead of those of CONFIG")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--inputs-only", action="store_true",
                        help="an export of weights and batch alone, without a step")
    parser.add_argument("--load", help="an export, whose weights and batch are taken")
    options = parser.parse_args()
    if options.command == "export":
        options.directory = options.argument
        export(options)
        return
    options.threads = int(options.argument)
    peer = Peer(options)
    if options.command == "time":
        print(json.dumps(peer.measure(options.seconds)), flush=True)
        return
    print(json.dumps(dict(ready=True)), flush=True)
    for line in sys.stdin:
        print(json.dumps(peer.measure(float(line))), flush=True)


if __name__ == "__main__":
    main()
