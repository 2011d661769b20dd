"""A training step side by side with PyTorch: build/bench/train_step and peer_torch.py, interleaved.

  bench_torch.py [--configs digits1,mnist] [--threads 1,2] [--rounds 5] [--forms eager,parts] ...
  bench_torch.py --device cuda [--precision tf32] --configs digits1,widenet_b:64 ...

Before a configuration is timed, the peer exports a step: weights, batch, noise, and what it
computes from them. Our program repeats the step; if routing, loss or a gradient differ, the
configuration is not timed. The timings of both sides start from these weights and this batch.

Every round runs our program and then each form of the peer, which stays loaded (and compiled) in a
process of its own and waits. Prints a Markdown table and writes all readings as JSON. A reading
counts when the FMA peak beside it is at least 0.87 of the best peak seen with as many threads: the
others were taken while the machine was busy or slow. Asserts nothing.

A configuration may name its batch, as in widenet_b:64; the step that both sides repeat then has
the batch of the configuration, and the timings start from other weights and the larger batch. On a
GPU one form is measured after the other, since together they may not fit into its memory, and
--program is a CUDA build whose products have the --precision; the step is repeated in fp32. There
the file of --json grows by each form that was measured: another call adds to it, replaces what it
measures again, and prints the table of all.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CONFIGS = ["digits1", "digits2", "mnist", "mlm", "cifar", "wideB"]
PEER = HERE / "peer_torch.py"
FORMS = {
    "eager": ["--compile", "none"],
    "parts": ["--compile", "parts"],
    "model": ["--compile", "model"],
    "eager-batched": ["--compile", "none", "--moe", "batched"],
    "model-batched": ["--compile", "model", "--moe", "batched"],
    "graphs-batched": ["--compile", "graphs", "--moe", "batched"],
}
LEAST_PEAK = 0.87


def note(*parts):
    print("bench_torch:", *parts, file=sys.stderr, flush=True)


def environment(threads):
    return dict(os.environ, OMP_NUM_THREADS=str(threads))


class Peer:
    """One form of the peer in a process of its own; it works only while it is asked to."""

    def __init__(self, options, config, threads, form):
        command = peer_command(options, "serve", config, str(threads)) + FORMS[form]
        command += ["--load", str(export_path(options, config))]
        command += ["--device", options.device, "--precision", options.precision]
        self.process = subprocess.Popen(command, env=environment(threads), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {self.process.wait()}")
        return json.loads(line)

    def measure(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def name_of(config):
    return config.partition(":")[0]


def batch_of(config):
    return config.partition(":")[2]


def export_path(options, config):
    return pathlib.Path(options.exports) / f"{config.replace(':', '_batch')}.safetensors"


def peer_command(options, command, config, argument):
    line = [options.python, str(PEER), command, name_of(config), argument]
    return line + (["--batch", batch_of(config)] if batch_of(config) else [])


def our_command(options, config, threads):
    line = options.program.split() + [name_of(config), str(threads)]
    return line + (["--set", f"batch={batch_of(config)}"] if batch_of(config) else [])


def agreement(options, config):
    """Whether both sides compute the same step -> (bool, what train_step says of it).

    Rounding may decide a choice that is very close; then weights of another seed are tried."""
    file, said = str(export_path(options, config)), "train_step failed"
    for seed in range(1, 4):
        export = peer_command(options, "export", config, options.exports) + ["--seed", str(seed)]
        if subprocess.run(export, env=environment(2), stdout=subprocess.DEVNULL).returncode != 0:
            return False, "the peer cannot export it"
        comparison = options.exact_program.split() + [config, "2", "--compare", file]
        run = subprocess.run(comparison, env=environment(2), text=True, stdout=subprocess.PIPE)
        said = (run.stdout.strip().splitlines() or [said])[-1].strip()
        if run.returncode == 0:
            return True, said
        note(f"seed {seed}:\n{run.stdout}")
    return False, said


def run_ours(options, config, threads):
    command = our_command(options, config, threads) + ["--seconds", str(options.seconds)]
    command += ["--load", str(export_path(options, config))]
    run = subprocess.run(command, env=environment(threads), text=True, stdout=subprocess.PIPE,
                         check=True)
    return json.loads(run.stdout.strip().splitlines()[-1])


def measure(options, config, threads):
    """-> {form: [reading, ...]}, ours under "ours"; a form that fails is left out."""
    peers, readings = {}, {"ours": []}
    try:
        for form in options.forms:
            note(config, threads, "threads: preparing", form)
            try:
                peers[form] = Peer(options, config, threads, form)
                readings[form] = []
            except RuntimeError as error:
                note(config, form, "is left out:", error)
        for i in range(options.rounds):
            note(config, threads, f"threads: round {i + 1} of {options.rounds}")
            readings["ours"].append(run_ours(options, config, threads))
            for form, peer in peers.items():
                readings[form].append(peer.measure(options.seconds))
    finally:
        for peer in peers.values():
            peer.close()
    return readings


def measure_alone(options, config, form):
    """One form on a GPU -> [reading, ...]; none if it fails."""
    note(config, "on the GPU:", form)
    try:
        if form == "ours":
            return [run_ours(options, config, 1) for _ in range(options.rounds)]
        peer = Peer(options, config, 1, form)
        try:
            return [peer.measure(options.seconds) for _ in range(options.rounds)]
        finally:
            peer.close()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        note(config, form, "is left out:", error)
        return []


def summary(readings, best_peak):
    """Medians over the readings that count; None if none does."""
    quiet = [r for r in readings if r["peak_gflops"] >= LEAST_PEAK * best_peak]
    if not quiet:
        return None

    def median(key):
        return statistics.median(r[key] for r in quiet)

    keys = ["ms", "tokens_per_second", "gflop", "percent_of_peak", "peak_gflops", "kept_fraction"]
    result = {key: median(key) for key in keys}
    result["readings"], result["dropped"] = len(quiet), len(readings) - len(quiet)
    return result


def memory(readings):
    """(peak, peak without what was resident before the model) in MB; a busy machine changes
    neither, so all readings count."""
    peak = max(r["peak_memory_mb"] for r in readings)
    return peak, peak - readings[0].get("before_model_mb", 0.0)


def compare(entry, best_peak):
    """Adds summaries and ratios (above 1: ours is better) to {config, threads, readings}."""
    readings = entry["readings"]
    entry["best_peak_gflops"] = best_peak
    entry["summaries"] = {form: summary(rows, best_peak) for form, rows in readings.items()}
    entry["memory_mb"] = {form: memory(rows) for form, rows in readings.items()}
    peers = [form for form in readings if form != "ours"]
    quiet = [form for form in peers if entry["summaries"][form]]
    ours = entry["summaries"].get("ours")
    entry["fastest_peer"] = min(quiet, key=lambda f: entry["summaries"][f]["ms"], default=None)
    entry["ratio"] = None
    if ours and entry["fastest_peer"]:
        entry["ratio"] = entry["summaries"][entry["fastest_peer"]]["ms"] / ours["ms"]
    entry["memory_ratio"] = entry["growth_ratio"] = None
    if peers and "ours" in readings:
        # Against the form that needs least, which need not be the fastest.
        our_peak, our_growth = entry["memory_mb"]["ours"]
        entry["memory_ratio"] = min(entry["memory_mb"][f][0] for f in peers) / our_peak
        entry["growth_ratio"] = min(entry["memory_mb"][f][1] for f in peers) / our_growth
    return entry


def markdown(entries, forms):
    def cell(value, pattern):
        return "busy" if value is None else format(value, pattern)

    def times(s):
        if s is None:
            return "busy"
        return f"{s['ms']:.1f} ({s['percent_of_peak']:.0f} %)"

    def megabytes(pair):
        return f"{pair[0]:.0f} / {pair[1]:.0f}"

    head = ["config", "threads", "peak GFLOP/s", "ours ms (of peak)"]
    head += [f"{form} ms (of peak)" for form in forms]
    head += ["ratio", "kept, ours / peer", "readings kept", "memory MB, ours"]
    head += [f"memory MB, {form}" for form in forms] + ["memory ratio", "without runtime"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for e in entries:
        all_summaries = [e["summaries"].get(form) for form in ["ours"] + forms]
        peer = e["summaries"].get(e["fastest_peer"])
        kept = [s["kept_fraction"] if s else None for s in (all_summaries[0], peer)]
        row = [e["config"], str(e["threads"]), f"{e['best_peak_gflops']:.0f}"]
        row += [times(s) for s in all_summaries]
        row += [cell(e["ratio"], ".2f"), " / ".join(cell(k, ".3f") for k in kept)]
        row += ["/".join(str(s["readings"]) if s else "0" for s in all_summaries)]
        row += [megabytes(e["memory_mb"][form]) if form in e["memory_mb"] else "failed"
                for form in ["ours"] + forms]
        row += [cell(e["memory_ratio"], ".2f"), cell(e["growth_ratio"], ".2f")]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "ratio: the fastest form of the peer over ours, in time; above 1 ours is ahead.",
        f"Times are medians of the readings whose peak is at least {LEAST_PEAK} of the best;",
        "`busy` where there is none. Memory: peak of the process, then the same less what was",
        "resident before the model was built; its ratios are against the form that needs least.",
    ]
    return "\n".join(lines)


def gpu_markdown(entries, forms):
    """The table of one precision: milliseconds, the ratio in bold, what padding and memory cost."""
    def milliseconds(entry, form):
        s = entry["summaries"].get(form)
        return f"{s['ms']:.2f}" if s else "-"

    def gigabytes(entry, form):
        return f"{entry['memory_mb'][form][0] / 1024:.2f}" if form in entry["memory_mb"] else "-"

    head = ["configuration", "batch", "ours ms"] + [f"{form} ms" for form in forms]
    head += ["ratio", "kept, ours / peer", "padded / useful products", "GB, ours / peer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for e in entries:
        peer, readings = e["fastest_peer"], e["readings"]
        batch = next(r["batch"] for rows in readings.values() for r in rows)
        row = [name_of(e["config"]), str(batch)]
        row += [milliseconds(e, form) for form in ["ours"] + forms]
        row += [f"**{e['ratio']:.2f}**" if e["ratio"] else "-"]
        row += [" / ".join(f"{e['summaries'][form]['kept_fraction']:.3f}"
                           for form in ("ours", peer) if e["summaries"].get(form))]
        ours = readings.get("ours")
        row += [f"{ours[0]['padded_gflop'] / ours[0]['gflop']:.2f}" if ours else "-"]
        row += [f"{gigabytes(e, 'ours')} / {gigabytes(e, peer)}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="A training step side by side with PyTorch.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch")
    parser.add_argument("--program", default=str(ROOT / "build" / "bench" / "train_step"))
    parser.add_argument("--exact-program", help="the one that repeats the step; --program if left "
                        "out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--forms", default="eager,parts", help=", ".join(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each peer, per round")
    parser.add_argument("--exports", default=str(ROOT / "build" / "bench" / "exports"))
    parser.add_argument("--json", default=str(ROOT / "build" / "bench" / "torch.json"))
    options = parser.parse_args()
    options.forms = options.forms.split(",")
    options.exact_program = options.exact_program or options.program

    on_gpu, path = options.device == "cuda", pathlib.Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if on_gpu and path.exists() else []
    verdicts = {}

    def keep(config, threads, readings):
        if not any(readings.values()):
            return
        found = [e for e in entries if (e["config"], e["threads"]) == (config, threads)]
        entry = found[0] if found else dict(config=config, threads=threads, readings={})
        if not found:
            entries.append(entry)
        entry["agreement"] = verdicts[name_of(config)][1]
        entry["readings"].update({form: rows for form, rows in readings.items() if rows})
        same = [e for e in entries if e["threads"] == threads]
        best = max(r["peak_gflops"] for e in same for rows in e["readings"].values() for r in rows)
        for e in same:
            compare(e, best)
        path.write_text(json.dumps(entries, indent=1) + "\n")

    for config in options.configs.split(","):
        name = name_of(config)
        if name not in verdicts:
            verdicts[name] = agreement(options, name)
        agrees, verdict = verdicts[name]
        note(config, verdict)
        if not agrees:
            note(config, "is not timed: both sides must compute the same step")
            continue
        if batch_of(config):
            export = peer_command(options, "export", config, options.exports) + ["--inputs-only"]
            subprocess.run(export, stdout=subprocess.DEVNULL, check=True)
        if on_gpu:
            for form in ["ours"] + options.forms:
                keep(config, 1, {form: measure_alone(options, config, form)})
        else:
            for threads in map(int, options.threads.split(",")):
                keep(config, threads, measure(options, config, threads))
    if on_gpu:
        print(gpu_markdown(entries, [f for f in FORMS if any(f in e["readings"] for e in entries)]))
    else:
        print(markdown(entries, options.forms))


if __name__ == "__main__":
    main()
