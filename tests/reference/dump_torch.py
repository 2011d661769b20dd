"""Dumps a run of your own model under our names, from PyTorch or numpy, for examples/validate.
It needs numpy and safetensors; copy it beside your code, or put its folder into PYTHONPATH.

A case of ours, then `validate compare CASE mine.safetensors`:

  from dump_torch import Dump
  dump = Dump("data/golden/moe_paper.safetensors")            # float32, unless told otherwise
  x, w = dump.tensor("x"), dump.tensor("shared.moe.router.weight")  # numpy: dump.array("x")
  z = dump(logits=x @ w)                                      # every stage, as you come by it
  dump(**{"grad.x": x.grad})                                  # of sum(y d_y) + balance_loss
  dump.save("mine.safetensors")

A run of yours, then `validate explain mine.safetensors`:

  dump = Dump(top_k=2, capacity_factor="6/5", batch=4)        # what you know; the rest is searched
  dump.given({"x": x, "shared.moe.router.weight": w, ...})    # what went in
  dump(y=y, balance_loss=loss)                                # what came out, one of them at least
  dump.save("mine.safetensors")

`validate run CASE OUT` writes all results of a case. What can go into a run of yours:

  x                             (N, D), (batch, T, D) or, of L blocks with one balance loss,
                                (L, batch, T, D); then weights may have an axis L before the others
  shared.moe.router.weight      (D, E), a Linear of PyTorch has it transposed; .bias (E), if any
  shared.moe.experts.{}.fc1.*   weight (E, D, F), bias (E, F), and fc2.*, (E, F, D) and (E, D): all
                                experts, stacked, under a name with braces. No bias is a bias of 0
  blocks.0.norm2.weight         (D), .bias (D), if x is what the norm before the layer sees
  noise or draws                (N, E): what was added to the logits, or what was drawn to make it
  jitter                        (N, D): the factors of x
  coins                         (N, K): choice k > 0 asked for a slot if coin * threshold < gate
  order                         (N K): the order in which choices n K + k were served, if random
Known besides, as text or number: top_k, capacity_factor, batch, noise_scale,
second_choice_threshold. Results: y (N, D), balance_loss, and any of logits, probabilities, expert,
slot, gate (N, K), load, kept (E).
"""
import numpy
import safetensors
import safetensors.numpy


class Dump:
    def __init__(self, case=None, dtype="float32", **known):
        self.dtype, self.inputs, self.results = dtype, {}, {}
        self.metadata = {name: str(value) for name, value in known.items()}
        if case:
            with safetensors.safe_open(case, "numpy") as file:
                self.metadata = {**(file.metadata() or {}), **self.metadata}
                self.inputs = {n: file.get_tensor(n) for n in file.keys() if n.startswith("in.")}

    def array(self, name):
        x = self.inputs["in." + name]
        return x.astype(self.dtype if x.dtype.kind == "f" else "int64")

    def tensor(self, name):
        import torch
        return torch.from_numpy(self.array(name))

    def given(self, inputs):
        self.inputs.update({"in." + name: to_array(value) for name, value in inputs.items()})

    def __call__(self, **results):
        """Keeps results; returns the last, so that it can stand inside an expression."""
        self.results.update({"out." + name: to_array(value) for name, value in results.items()})
        return list(results.values())[-1]

    def save(self, path):
        safetensors.numpy.save_file({**self.inputs, **self.results}, path, metadata=self.metadata)


def to_array(value):
    if hasattr(value, "detach"):  # of PyTorch
        value = value.detach().cpu()
        value = value.float() if value.dtype.itemsize < 4 and value.is_floating_point() else value
    array = numpy.array(value, order="C")
    if array.dtype.kind in "iub":
        return array.astype("int32")
    return array if array.dtype in ("float32", "float64") else array.astype("float32")
