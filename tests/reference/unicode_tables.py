"""Prints the tables of examples/support/unicode.hpp and the fingerprints that tests compare.

    python3 tests/reference/unicode_tables.py

Needs nothing but Python; what is in the header comes from Python 3.11 (Unicode 14).
"""
import unicodedata

HANGUL = range(0xAC00, 0xD7A4)


def category(c):
    return unicodedata.category(chr(c))


def is_mark(c):
    return category(c) == "Mn"


def is_punctuation(c):
    return category(c)[0] == "P" or chr(c) in "$+<=>^`|~"


def fold(c):
    """The lower case letter without its accents, as BERT makes it; marks vanish."""
    text = unicodedata.normalize("NFD", chr(c).lower())
    return [ord(x) for x in text if not is_mark(ord(x))]


def folded_here(c):
    """What the header folds: below U+3100 and fullwidth letters, one to one; and Hangul."""
    if is_mark(c) or c in HANGUL:
        return fold(c)
    is_covered = (c < 0x3100 or 0xFF21 <= c <= 0xFF3A) and len(fold(c)) == 1
    return fold(c) if is_covered else [c]


def lowered_here(c):
    """What the header makes lower case: below U+3100, one to one."""
    text = chr(c).lower()
    return ord(text) if c < 0x3100 and len(text) == 1 else c


def ranges(holds):
    """The maximal ranges of code points of the basic plane for which a predicate holds."""
    found = []
    for c in range(0x10000):
        if not holds(c):
            continue
        if found and found[-1][1] == c - 1:
            found[-1][1] = c
        else:
            found.append([c, c])
    return found


def runs(mapping):
    """Greedy arithmetic progressions: (first, count, step, target, step of the target)."""
    left, found = dict(mapping), []
    while left:
        c, best = min(left), (0, 1, 0)
        for step in (1, 2):
            for target_step in (0, 1, 2):
                n = 1
                while left.get(c + n * step) == left[c] + n * target_step:
                    n += 1
                best = max(best, (n, -step, -target_step))
        n, step, target_step = best[0], -best[1], -best[2]
        found.append((c, n, step if n > 1 else 1, left[c], target_step if n > 1 else 0))
        for i in range(n):
            del left[c + i * step]
    return found


def print_table(name, entries):
    print(f"// {name}: {len(entries)}")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 100:
            print(line)
            line = "   "
        line += " " + entry + ","
    print(line.rstrip(",") + "};")


def fingerprint(values):
    """FNV-1a, 64 bits, of a sequence of 32-bit numbers, lowest byte first."""
    h = 14695981039346656037
    for value in values:
        for byte in value.to_bytes(4, "little"):
            h = (h ^ byte) * 1099511628211 % 2**64
    return h


def main():
    pair = "{{0x{:X}, 0x{:X}}}".format
    print_table("marks", [pair(*r) for r in ranges(is_mark)])
    print_table("punctuation", [pair(*r) for r in ranges(is_punctuation)])
    mapping = {c: folded_here(c)[0] for c in range(0x10000)
               if not is_mark(c) and c not in HANGUL and folded_here(c) != [c]}
    print_table("folds", ["{{0x{:X}, {}, {}, 0x{:X}, {}}}".format(*r) for r in runs(mapping)])
    print_table("capitals", ["{{0x{:X}, {}, {}, 0x{:X}, {}}}".format(*r) for r in runs(
        {c: lowered_here(c) for c in range(0x3100) if lowered_here(c) != c})])
    print("not folded, as each becomes several:", " ".join(
        f"{c:X}" for c in range(0x3100) if len(fold(c)) > 1))

    planes = range(0x10000)
    for name, holds in [("marks", is_mark), ("punctuation", is_punctuation),
                        ("control", lambda c: category(c) in ("Cc", "Cf", "Co")
                         and chr(c) not in "\t\n\r"),
                        ("space", lambda c: category(c) in ("Zs", "Zl", "Zp")
                         or chr(c) in "\t\n\r")]:
        members = [c for c in planes if holds(c)]
        print(f"{name:12} {len(members):6} 0x{fingerprint(members):016X}")
    folded = [x for c in planes for x in [c] + folded_here(c) if folded_here(c) != [c]]
    print(f"{'folds':12} {len(folded):6} 0x{fingerprint(folded):016X}")
    lowered = [x for c in planes for x in (c, lowered_here(c)) if lowered_here(c) != c]
    print(f"{'capitals':12} {len(lowered):6} 0x{fingerprint(lowered):016X}")


if __name__ == "__main__":
    main()
