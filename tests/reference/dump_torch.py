"""Dumps a run of your own model under our names, to be compared by examples/validate.cpp.

  from dump_torch import Dump
  dump = Dump(case="data/golden/moe_paper.safetensors")
  x, w = dump.input("x"), dump.input("shared.moe.router.weight")     # float32 unless told otherwise
  logits = dump(logits=x @ w)                                       # any stage, as you come by it
  dump.save("mine.safetensors")                                     # then: validate compare

numpy arrays do as well as tensors. Gradients go under "grad." and the name of the input.
"""
import numpy
import safetensors.numpy


class Dump:
    def __init__(self, case, dtype="float32"):
        self.inputs = safetensors.numpy.load_file(case)
        self.dtype, self.results = dtype, {}

    def input(self, name, torch=True):
        """An input of the case; as a numpy array with torch=False."""
        x = self.inputs["in." + name]
        x = x.astype(self.dtype) if x.dtype.kind == "f" else x.astype("int64")
        return __import__("torch").from_numpy(x) if torch else x

    def __call__(self, **results):
        """Keeps results; returns the last of them, so that it fits into an expression."""
        for name, value in results.items():
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else value
            array = numpy.array(array, order="C")
            whole = array.dtype.kind in "iub"
            self.results["out." + name] = array.astype("int32") if whole else array
        return value

    def save(self, path):
        safetensors.numpy.save_file(self.results, path)
