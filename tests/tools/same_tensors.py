"""Two safetensors files have the same bits in some tensors:  same_tensors.py A B [NAME...]

A tensor counts if the last part of its name is among the NAMEs (all do if there are none). Needs no
library; ends with status 1 and the names of those that differ, or if there is nothing to compare.
"""
import json
import pathlib
import struct
import sys


def tensors(path):
    data = pathlib.Path(path).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], data[end + t["data_offsets"][0]:
                                                 end + t["data_offsets"][1]])
            for name, t in header.items()}


a, b, wanted = tensors(sys.argv[1]), tensors(sys.argv[2]), sys.argv[3:]
counted = [name for name in a if not wanted or name.split(".")[-1] in wanted]
different = [name for name in counted if a[name] != b.get(name)]
if different or not counted:
    sys.exit(f"same_tensors: {sys.argv[1]}, {sys.argv[2]}: "
             f"{'other bits in ' + ', '.join(different) if different else 'nothing to compare'}")
