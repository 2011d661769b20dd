#!/usr/bin/env python3
"""Writes the 1,797 handwritten digits of data/digits as IDX files, the format of MNIST.

    python3 data/make_digits.py [digits.csv.gz] [--out FOLDER]

The digits are those of the UCI set "Optical Recognition of Handwritten Digits", read from the copy
inside Debian's package python3-sklearn: from the path given, or else from an installed package. The
result has the same bytes on every machine. README.md beside this file tells origin, licence, split
and how to get the package's file without installing it.
"""

import argparse
import gzip
import hashlib
import importlib.util
import pathlib
import struct
import sys

NUM_IMAGES, NUM_TRAIN = 1797, 1437  # the other 360 are for testing
SIDE = 8  # rows and columns of an image
# Of 1,797 rows of 65 bytes: 64 values from 0 to 16, then the label.
SHA256 = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
MASK = 0xFFFFFFFF  # 32 bits


def philox(counter, key):
    """Philox4x32-10, a hash of counters (Salmon et al., Parallel Random Numbers, SC 2011)."""
    (x0, x1, x2, x3), (key0, key1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ key0, b & MASK, (a >> 32) ^ x3 ^ key1, a & MASK
        key0, key1 = (key0 + 0x9E3779B9) & MASK, (key1 + 0xBB67AE85) & MASK
    return x0, x1, x2, x3


def check_philox():
    """Compares with the known answers that Random123 publishes (its file kat_vectors)."""
    known = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
         (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, expected in known:
        if philox(counter, key) != expected:
            sys.exit("make_digits: philox must give the known answers of Random123")


def permutation(n, seed):
    """The indices below n in the order of one random 64-bit number each, ties by index."""

    def order(i):
        word0, word1, _, _ = philox((i & MASK, i >> 32, 0, 0), (seed & MASK, seed >> 32))
        return word0 << 32 | word1, i

    return sorted(range(n), key=order)


def find_source():
    """The digits of an installed scikit-learn, found without importing it."""
    folders = [pathlib.Path("/usr/lib/python3/dist-packages/sklearn")]
    spec = importlib.util.find_spec("sklearn")
    if spec is not None:
        folders[:0] = map(pathlib.Path, spec.submodule_search_locations)
    for folder in folders:
        source = folder / "datasets" / "data" / "digits.csv.gz"
        if source.exists():
            return source
    sys.exit("make_digits: no scikit-learn found; install python3-sklearn or give the path of its "
             "digits.csv.gz, see data/README.md")


def read_csv(source):
    """The images, 64 bytes each, and the labels. The digest fixes every value and their order."""
    with gzip.open(source) as file:
        rows = [bytes(map(int, line.split(b","))) for line in file]
    digest = hashlib.sha256(b"".join(rows)).hexdigest()
    if digest != SHA256:
        sys.exit(f"make_digits: {source}: its values must have sha256 {SHA256}; got {digest}")
    return [row[:-1] for row in rows], bytes(row[-1] for row in rows)


def write_idx(path, extents, values):
    """Magic number 0x0000 08 rank: unsigned bytes; then the extents, big-endian; then the bytes."""
    header = struct.pack(f">{len(extents) + 1}I", 0x0800 | len(extents), *extents)
    path.write_bytes(header + values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=pathlib.Path, help="scikit-learn's digits.csv.gz")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="default: data/digits",
                        default=pathlib.Path(__file__).resolve().parent / "digits")
    arguments = parser.parse_args()

    check_philox()
    images, labels = read_csv(arguments.source or find_source())
    order = permutation(NUM_IMAGES, seed=0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    sums = ""
    for part, chosen in ("train", order[:NUM_TRAIN]), ("test", order[NUM_TRAIN:]):
        files = {
            f"{part}-images-idx3-ubyte":
                ((len(chosen), SIDE, SIDE), b"".join(images[i] for i in chosen)),
            f"{part}-labels-idx1-ubyte": ((len(chosen),), bytes(labels[i] for i in chosen)),
        }
        for name, (extents, values) in files.items():
            write_idx(arguments.out / name, extents, values)
            digest = hashlib.sha256((arguments.out / name).read_bytes()).hexdigest()
            sums += f"{digest}  {name}\n"
    (arguments.out / "digits.sha256").write_text(sums)
    print(sums, end="")


if __name__ == "__main__":
    main()
