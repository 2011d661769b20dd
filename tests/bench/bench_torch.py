"""A training step side by side with PyTorch: build/bench/train_step and peer_torch.py, interleaved.

  bench_torch.py [--configs digits1,mnist] [--threads 1,2] [--rounds 5] [--forms eager,parts] ...

Before a configuration is timed, the peer exports a step: weights, batch, noise, and what it
computes from them. Our program repeats the step; if routing, loss or a gradient differ, the
configuration is not timed. The timings of both sides start from these weights and this batch.

Every round runs our program and then each form of the peer, which stays loaded (and compiled) in a
process of its own and waits. Prints a Markdown table and writes all readings as JSON. A reading
counts when the FMA peak beside it is at least 0.87 of the best peak seen with as many threads: the
others were taken while the machine was busy or slow. Asserts nothing.
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
}
LEAST_PEAK = 0.87


def note(*parts):
    print("bench_torch:", *parts, file=sys.stderr, flush=True)


def environment(threads):
    return dict(os.environ, OMP_NUM_THREADS=str(threads))


class Peer:
    """One form of the peer in a process of its own; it works only while it is asked to."""

    def __init__(self, options, config, threads, form):
        command = [options.python, str(PEER), "serve", config, str(threads)]
        command += ["--load", str(export_path(options, config))] + FORMS[form]
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


def export_path(options, config):
    return pathlib.Path(options.exports) / f"{config}.safetensors"


def agreement(options, config):
    """Whether both sides compute the same step -> (bool, what train_step says of it).

    Rounding may decide a choice that is very close; then weights of another seed are tried."""
    file, said = str(export_path(options, config)), "train_step failed"
    for seed in range(1, 4):
        export = [options.python, str(PEER), "export", config, options.exports, "--seed", str(seed)]
        if subprocess.run(export, env=environment(2), stdout=subprocess.DEVNULL).returncode != 0:
            return False, "the peer cannot export it"
        comparison = options.program.split() + [config, "2", "--compare", file]
        run = subprocess.run(comparison, env=environment(2), text=True, stdout=subprocess.PIPE)
        said = (run.stdout.strip().splitlines() or [said])[-1].strip()
        if run.returncode == 0:
            return True, said
        note(f"seed {seed}:\n{run.stdout}")
    return False, said


def run_ours(options, config, threads):
    command = options.program.split() + [config, str(threads), "--seconds", str(options.seconds)]
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
    ours = entry["summaries"]["ours"]
    entry["fastest_peer"] = min(quiet, key=lambda f: entry["summaries"][f]["ms"], default=None)
    entry["ratio"] = None
    if ours and entry["fastest_peer"]:
        entry["ratio"] = entry["summaries"][entry["fastest_peer"]]["ms"] / ours["ms"]
    entry["memory_ratio"] = entry["growth_ratio"] = None
    if peers:
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


def main():
    parser = argparse.ArgumentParser(description="A training step side by side with PyTorch.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has torch")
    parser.add_argument("--program", default=str(ROOT / "build" / "bench" / "train_step"))
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--forms", default="eager,parts", help=", ".join(FORMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each peer, per round")
    parser.add_argument("--exports", default=str(ROOT / "build" / "bench" / "exports"))
    parser.add_argument("--json", default=str(ROOT / "build" / "bench" / "torch.json"))
    options = parser.parse_args()
    options.forms = options.forms.split(",")

    entries = []
    for config in options.configs.split(","):
        agrees, verdict = agreement(options, config)
        note(config, verdict)
        if not agrees:
            note(config, "is not timed: both sides must compute the same step")
            continue
        for threads in map(int, options.threads.split(",")):
            readings = measure(options, config, threads)
            entries.append(dict(config=config, threads=threads, agreement=verdict,
                                readings=readings))
    for threads in {e["threads"] for e in entries}:
        same = [e for e in entries if e["threads"] == threads]
        best = max(r["peak_gflops"] for e in same for rows in e["readings"].values() for r in rows)
        for e in same:
            compare(e, best)
    print(markdown(entries, options.forms))
    path = pathlib.Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
