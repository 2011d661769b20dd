"""Prints the scores of answers for tests/test_language_data.cpp: exact match and F1 of SQuAD.

    python3 tests/reference/squad_scores.py

The rules are those of evaluate-v2.0.py, written down again with Python's own regular expressions.
"""
import collections
import re
import string

PAIRS = [
    ("the cat", "cat"), ("a  cat", "The Cat!"), ("cat sat", "the cat sat down"), ("cat", "dog"),
    ("", ""), ("", "cat"), ("the", ""), ("an", "a"), ("a", "the cat"), ("cat cat", "cat"),
    ("cat", "cat cat"), ("a cat a dog", "dog cat"), ("well-known", "wellknown"),
    ("can't", "cant"), ("U.S.A.", "usa"), ("$5", "5"), ("5 %", "5"), ("theatre", "atre"),
    ("other the", "other"), ("\u00c9cole", "\u00e9cole"), ("ecole", "\u00e9cole"),
    ("\u0416\u0418\u0417\u041d\u042c", "\u0436\u0438\u0437\u043d\u044c"),
    ("the\u2013end", "\u2013end"), ("a\u2014b", "\u2014b"), ("th\u00e9", ""),
    ("the\u0301", "\u0301"), ("a\u00b2", "\u00b2"),
    ("a\u20ac", "\u20ac"), ("cat\u00a0sat", "cat sat"), ("cat\u3000sat", "cat sat"),
    ("cat\x0bsat", "cat sat"), ("cat\x1csat", "cat sat"), ("cat\x85sat", "cat sat"),
    ("\u00aba\u00bb", "\u00ab\u00bb"), ("\u2018the\u2019", "\u2018\u2019"),
    ("a_b", "ab"), ("__", ""), ("the-end", "theend"), ("a.m.", "am"), ("an.", ""),
    ("\u0391", "\u03b1"), ("1,000", "1000"),
    ("one two three four", "two four six"), ("\u4e2d \u56fd", "\u4e2d\u56fd"),
    ("a\u4e2d", "\u4e2d"), ("the\u200bcat", "\u200bcat"),
    ("x \U0001f600", "\U0001f600"), ("A\u00d7B", "\u00d7b"),
    ("a\ue000", "\ue000"), ("the\U000f0000", "\U000f0000"),
]


def words(answer):
    answer = "".join(c for c in answer.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", answer, flags=re.UNICODE).split()


def f1(prediction, answer):
    a, b = words(prediction), words(answer)
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def literal(text):
    out = ""
    for c in text:
        n = ord(c)
        if 0x20 <= n < 0x7F:
            out += c
        elif n < 0xA0:
            out += "".join(f"\\{b:03o}" for b in c.encode())
        else:
            out += f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"
    return f'"{out}"'


for prediction, answer in PAIRS:
    exact = str(words(prediction) == words(answer)).lower()
    print(f"    {{{literal(prediction)}, {literal(answer)}, {exact}, {f1(prediction, answer)!r}}},")
