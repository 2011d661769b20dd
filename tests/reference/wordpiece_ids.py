"""Prints the table of tests/test_tokenizer.cpp: what BERT's tokenizers make of awkward texts.

    python3 tests/reference/wordpiece_ids.py          (needs transformers; the table has 5.23's ids)

Every text goes through the tokenizer written in Python ("slow") and the one in Rust ("fast"). Where
they disagree, the table has the ids of the fast one, and both are printed to stderr: the slow one
composes cased text (NFC) first, which BERT's own did not; it drops points that Unicode does not
assign; and to it a capital sigma at the end of a word is the sigma of the end of a word.
"""
import sys
import tempfile
import textwrap

from transformers import BertTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK]
a b c d e i k n o s u z ##a ##b ##c ##d ##e ##n ##s ##z
the un ##aff ##able ##ff aff able want ##want ##ed runn ##ing hello world
1 ##2 2 ##, . , ; : ! ? - ' " ( ) [ ] = $ + ^ ` | ~ < > / @ # _ { } & * % \\ \u00ab \u00bb \u2014
\u2026 \u3002 \u3001 \u300c \u300d \u00b7
e\u0301 caf\u00e9 caf cafe Cafe \u00c9 H Hello HELLO Un \u0130 \u0131 ##\u0307
\u00df ss \u00e6 \u00f8 \u0142 \u03c3 \u03c2 \u03bf \u03b4\u03bf\u03c3 ##\u03c3 ##\u03c2 \u0430
\u0438 \u0439 ##\u0438
\u4e2d \u56fd \u6587 ##\u6587 \u3042 ##\u3044 \u304b \u304c \u30a2 \u1112 ##\u1161 ##\u11ab \ud55c
\u0928\u092e ##\u0938 ##\u0924 \u05e9 ##\u05dc ##\u05d5 \u0e2a \U0001f600 ##\U0001f600 \u00bd \u2082
\ufb01 \uff21 \uff41 ##\uff42 \u20ac \u00a9 \u2122 ##\u0301 a##b [unused0] \U00020000""".split()

TEXTS = [
    "", " ", "\t\n\r\n", "a", "unaffable", "unwanted running", "UNwanted\u00e9,running",
    "hello, world!", "Hello HELLO hello", "  hello   world  ", "hello\tworld\nhello\r\nworld",
    "aab", "aazb", "xaa", "aax", "unx", "a.b", "a . b", "...", "!?", "(a)", "a-b", "don't", "\"a\"",
    "$2", "2+2=2", "a^b", "a`b", "a|b~c", "<a>", "a_b", "a/b@c", "#a", "##a", "##", "a##b",
    "[a]", "[", "a,b", "12", "1,2", "unaffableunaffable",
    # accents, composed and not
    "caf\u00e9", "cafe\u0301", "Caf\u00c9", "e\u0301", "\u00c9", "\u0301", "a\u0301\u0301b",
    " \u0301 a",
    "\u0130", "\u0131", "I\u0307", "\u00e6 \u00f8 \u0142 \u00df", "\u00c6 \u00d8 \u0141 \u1e9e",
    "\u212b", "\u212a",
    "\u2260", "\u226f", "\u037e", "\u1fef", "\u0340", "\u1fb3",
    # Greek, Cyrillic
    "\u03c3", "\u03c2", "\u03a3", "\u03b4\u03bf\u03c3", "\u03b4\u03bf\u03c2", "\u0394\u039f\u03a3",
    "\u0439", "\u0419", "\u0438\u0306", "\u0410\u0418",
    # Chinese, Japanese, Korean
    "\u4e2d\u56fd", "a\u4e2db", "\u4e2d\u0301\u56fd", "\u6587\u6587", "\u3042\u3044", "\u304c",
    "\u304b\u3099", "\u30a2",
    "\ud55c", "\u1112\u1161\u11ab", "\u4e2d\u3002\u56fd\u3001", "\u300c\u4e2d\u300d", "\uac00",
    "\U00020000a",
    # other scripts
    "\u0928\u092e\u0938\u094d\u0924", "\u05e9\u05dc\u05d5", "\u05e9\u05c1\u05dc\u05b8\u05d5",
    "\u0e2a\u0e31",
    # control and format characters
    "a\x00b", "a\ufffdb", "a\u200bb", "a\u00adb", "a\u200db", "a\ufeffb", "a\x7fb", "a\x85b",
    "a\x0bb",
    "a\x0cb", "a\x1cb", "a\u2060b", "a\u061cb", "a\ue000b", "a\U000e0041b", "a\U000f0000b",
    "\ufe0f",
    # white space
    "a\u00a0b", "a\u2003b", "a\u3000b", "a\u2028b", "a\u2029b", "a\u202fb", "a\u1680b", "a\u205fb",
    "a\u180eb",
    # punctuation and symbols
    "\u00aba\u00bb", "a\u2014b", "a\u2026", "a\u00b7b", "\u20ac2", "a\u00a9", "\u2122", "\u00bd",
    "\u2082", "\u00a1a", "\u00a7a",
    "\ufb01", "\uff21\uff42", "\uff41\uff42", "\U0001f600", "\U0001f600\U0001f600", "a\U0001f600",
    "\U0001f468\u200d\U0001f469", "[unused0]", "\u0378",
]


def literal(text):
    """A C++ string literal in ASCII."""
    out = ""
    for c in text:
        n = ord(c)
        if c in '"\\':
            out += "\\" + c
        elif 0x20 <= n < 0x7F:
            out += c
        elif n < 0xA0:
            out += "".join(f"\\{b:03o}" for b in c.encode())
        else:
            out += f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}"
    return f'"{out}"' + ("s" if "\0" in text else "")


def ids(tokenizer, text):
    return tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))


def main():
    words = list(dict.fromkeys(WORDS))
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/vocab.txt"
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(word + "\n" for word in words))
        pairs = []
        for cased in (False, True):
            pairs.append((BertTokenizerLegacy(path, do_lower_case=not cased, special_tokens_map={}),
                          BertTokenizer(path, do_lower_case=not cased)))
    print("words:")
    print(textwrap.fill(", ".join(literal(word) for word in words), 96, break_long_words=False,
                        break_on_hyphens=False))
    print("table:")
    for text in TEXTS:
        row = []
        for case, (slow, fast) in zip(("uncased", "cased"), pairs):
            row.append(ids(fast, text))
            if ids(slow, text) != row[-1]:
                print(f"{case} {literal(text)}: slow {ids(slow, text)}, fast {row[-1]}",
                      file=sys.stderr)
        lists = ["{" + ", ".join(map(str, r)) + "}" for r in row]
        print("    {" + ", ".join([literal(text)] + lists) + "},")


if __name__ == "__main__":
    main()
