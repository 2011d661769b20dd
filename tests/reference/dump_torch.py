"""Dumps a run of your own model under our names; `validate compare` then says where it departs.

  from dump_torch import Dump
  dump = Dump("data/golden/moe_paper.safetensors")            # float32, unless told otherwise
  x, w = dump.tensor("x"), dump.tensor("shared.moe.router.weight")
  z = dump(logits=x @ w)                                      # every stage, as you come by it
  dump.save("mine.safetensors")

numpy does as well: dump.array("x"). Gradients go under "grad." and the name of their input.
"""
import numpy
import safetensors.numpy


class Dump:
    def __init__(self, case, dtype="float32"):
        self.inputs = safetensors.numpy.load_file(case)
        self.dtype, self.results = dtype, {}

    def array(self, name):
        x = self.inputs["in." + name]
        return x.astype(self.dtype if x.dtype.kind == "f" else "int64")

    def tensor(self, name):
        import torch
        return torch.from_numpy(self.array(name))

    def __call__(self, **results):
        """Keeps results; returns the last, so that it can stand inside an expression."""
        for name, value in results.items():
            value_here = value.detach().cpu() if hasattr(value, "detach") else value
            array = numpy.array(value_here, order="C")
            whole = array.dtype.kind in "iub"
            self.results["out." + name] = array.astype("int32") if whole else array
        return value

    def save(self, path):
        safetensors.numpy.save_file(self.results, path)
