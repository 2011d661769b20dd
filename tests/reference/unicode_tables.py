"""Prints the tables of examples/support/unicode.hpp and the fingerprints that tests compare.

    python3 tests/reference/unicode_tables.py

Needs nothing but Python; what is in the header comes from Python 3.11 (Unicode 14).
"""
import unicodedata

POINTS = range(0x110000)
HANGUL = range(0xAC00, 0xD7A4)
# The forms of Chinese characters that Unicode keeps for compatibility: a value for each point.
COMPATIBILITY = (range(0xF900, 0xFADA), range(0x2F800, 0x2FA1E))


def category(c):
    return unicodedata.category(chr(c))


def is_mark(c):
    return category(c) == "Mn"


def is_punctuation(c):
    return category(c)[0] == "P" or chr(c) in "$+<=>^`|~"


def is_control(c):
    return category(c) in ("Cc", "Cf") and chr(c) not in "\t\n\r"


def is_space(c):
    return category(c) in ("Zs", "Zl", "Zp") or chr(c) in "\t\n\r"


def ends_as_final(text):
    return text.lower()[-1] == "\u03c2"


def is_cased(c):
    """Cased and not case-ignorable: what str.lower() takes for a letter that a sigma ends."""
    return ends_as_final(chr(c) + "\u03a3")


def is_case_ignorable(c):
    """Case-ignorable: what str.lower() looks through; but for format characters."""
    looks_through = ends_as_final("A" + chr(c) + "\u03a3") and not is_cased(c)
    return looks_through and not is_control(c)


def decomposed(text):
    """NFD without marks."""
    return [ord(x) for x in unicodedata.normalize("NFD", text) if not is_mark(ord(x))]


def fold(c):
    """The lower case letter without its accents, as BERT makes it; marks vanish."""
    return decomposed(chr(c).lower())


def lower_case(c):
    """The lower case as one point; U+0130, whose lower case is two, stays."""
    text = chr(c).lower()
    return ord(text) if len(text) == 1 else c


def ranges(holds):
    """The maximal ranges of code points for which a predicate holds."""
    found = []
    for c in POINTS:
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
    for c in sorted(mapping):
        if c not in left:
            continue
        best = (0, 1, 0)
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


def base_letters():
    """What stripping the accents of lower case makes of a point, where that is one other point."""
    special = set(HANGUL).union(*COMPATIBILITY)
    letters = {lower_case(c) for c in POINTS if not is_mark(c)} - special
    return {c: fold(c)[0] for c in letters if len(fold(c)) == 1 and fold(c) != [c]}


def splits():
    """Points that become several: the two that each decomposes into at first."""
    several = [c for c in POINTS if c not in HANGUL and len(fold(c)) > 1]
    return [[c] + [int(x, 16) for x in unicodedata.decomposition(chr(c)).split()] for c in several]


def print_table(name, entries, separator=", ", indent="    "):
    print(f"// {name}: {len(entries)}")
    line = indent
    for entry in entries:
        if len(line) + len(entry + separator.rstrip()) > 100:
            print(line.rstrip())
            line = indent
        line += entry + separator
    print(line.rstrip().rstrip(",") + "};")


def print_string(name, points):
    print(f"// {name}: {len(points)}")
    line = ""
    for c in points:
        entry = f"\\u{c:04X}" if c < 0x10000 else f"\\U{c:08X}"
        if len(line + entry) > 93:
            print(f'    U"{line}"')
            line = ""
        line += entry
    print(f'    U"{line}";')


def fingerprint(values):
    """FNV-1a, 64 bits, of a sequence of 32-bit numbers, lowest byte first."""
    h = 14695981039346656037
    for value in values:
        for byte in value.to_bytes(4, "little"):
            h = (h ^ byte) * 1099511628211 % 2**64
    return h


CLASSES = {"spaces": is_space, "controls": is_control, "punctuation": is_punctuation,
           "marks": is_mark, "cased": is_cased, "case-ignorable": is_case_ignorable}


def main():
    for name, holds in CLASSES.items():
        shown = ranges(lambda c: holds(c) and (name != "case-ignorable" or not is_mark(c)))
        print_table(name, ["{{0x{:X}, 0x{:X}}}".format(*r) for r in shown])
    run = "{{0x{:X}, {}, {}, 0x{:X}, {}}}".format
    lowered = {c: lower_case(c) for c in POINTS if lower_case(c) != c}
    print_table("capitals", [run(*r) for r in runs(lowered)])
    print_table("base letters", [run(*r) for r in runs(base_letters())])
    print_table("splits", ["{{0x{:X}, 0x{:X}, 0x{:X}}}".format(*s) for s in splits()])
    for block in COMPATIBILITY:
        print_string(f"from {block[0]:X} on", [fold(c)[0] for c in block])

    for name, holds in CLASSES.items():
        members = [c for c in POINTS if holds(c)]
        print(f"{name:14} {len(members):6} 0x{fingerprint(members):016X}")
    for name, change in [("folds", fold), ("capitals", lambda c: [lower_case(c)])]:
        changes = [x for c in POINTS if change(c) != [c] for x in [c] + change(c)]
        print(f"{name:14} {len(changes):6} 0x{fingerprint(changes):016X}")


if __name__ == "__main__":
    main()
