"""Prints the table of tests/test_tokenizer.cpp: what BERT's tokenizer makes of awkward texts.

    python3 tests/reference/wordpiece_ids.py          (Python 3.11: its Unicode 14 is the header's)
    python3 tests/reference/wordpiece_ids.py --transformers

The rules are those of google-research/bert, tokenization.py, written again with nothing but
Python's own Unicode data. With --transformers, each row where the tokenizer of transformers (the
one in Rust, 5.23) has other ids goes to stderr: it drops private use, makes every capital sigma
U+03C3, and has the classes of an older Unicode.
"""
import sys
import tempfile
import unicodedata

LONGEST_WORD = 200

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
\ufb01 \uff21 \uff41 ##\uff42 \u20ac \u00a9 \u2122 ##\u0301 a##b [unused0] \U00020000
\u03b4\u03bf\u03c2 \u03b1 ##\u03b1 ##\u03bf \u8c48 \ue000 ##\ue000 \ua641 \u0627 \u05e9\u05e9
\U00010428 ##\U00010428 \u09c7 ##\u09be \U0001d158 ##\U0001d165 \u4e3d""".split()

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
    # the capital sigma: the end of a word, and what is looked through
    "\u0394\u039f\u03a3.", "\u0394\u039f\u03a3,a", "\u03a3\u03a3", "a\u03a3 \u03a3a",
    "a\u03a3\u03a3", "a\u0301\u03a3\u0301", "a\u03a3\u0301a", "a'\u03a3", "a\u03a3'",
    "a\u03a3'a", "a\u03a3-a", "a-\u03a3", "1\u03a3", "a1\u03a3", "a.\u03a3", "a\u00ad\u03a3\u200b",
    "a\ufffd\u03a3\x00a", "\u4e2d\u03a3", "a\u4e2d\u03a3", "a\u03a3\u4e2d", "a\u03a3\u3042",
    "\u0391\u03a3\ua640", "\u02b0\u03a3", "a\u03a3\u02b0", "a\u03a3\U00010400",
    "\U00010400\u03a3\U000e0100",
    # Chinese, Japanese, Korean
    "\u4e2d\u56fd", "a\u4e2db", "\u4e2d\u0301\u56fd", "\u6587\u6587", "\u3042\u3044", "\u304c",
    "\u304b\u3099", "\u30a2",
    "\ud55c", "\u1112\u1161\u11ab", "\u4e2d\u3002\u56fd\u3001", "\u300c\u4e2d\u300d", "\uac00",
    "\U00020000a",
    # other scripts
    "\u0928\u092e\u0938\u094d\u0924", "\u05e9\u05dc\u05d5", "\u05e9\u05c1\u05dc\u05b8\u05d5",
    "\u0e2a\u0e31",
    # capitals, accents and marks that few tables have
    "\ua640", "\ufb49\u05e9", "\ufb2a", "\U00010400\U00010428", "\u09cb", "\U0001d15e",
    "\U0001d160", "\uf900", "\u8c48\uf900", "\U0002f800", "a\U00011046b", "a\U0001e000b",
    "a\U00011047b",
    # control and format characters
    "a\x00b", "a\ufffdb", "a\u200bb", "a\u00adb", "a\u200db", "a\ufeffb", "a\x7fb", "a\x85b",
    "a\x0bb",
    "a\x0cb", "a\x1cb", "a\u2060b", "a\u061cb", "a\ue000b", "a\U000e0041b", "a\U000f0000b",
    "\ufe0f",
    "\ue000", "a\ue000\ue000", "a\U0010fffdb", "a\U000110bdb", "a\U000e0001b",
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


def is_text(c):
    """Not NUL, not U+FFFD, not a control or format character; tab and line ends are space."""
    return c in "\t\n\r" or (c not in "\0\ufffd" and unicodedata.category(c) not in ("Cc", "Cf"))


def is_chinese(c):
    blocks = ("\u3400\u4dbf \u4e00\u9fff \uf900\ufaff \U00020000\U0002a6df \U0002a700\U0002b73f "
              "\U0002b740\U0002b81f \U0002b820\U0002ceaf \U0002f800\U0002fa1f")
    return any(first <= c <= last for first, last in blocks.split())


def is_punctuation(c):
    """What Unicode says, and of ASCII all that is printed but letters and digits."""
    is_ascii_sign = "!" <= c <= "~" and not c.isalnum()
    return is_ascii_sign or unicodedata.category(c).startswith("P")


def alone(text, is_alone):
    """The text with spaces around some characters."""
    return "".join(f" {c} " if is_alone(c) else c for c in text)


def plain(word):
    """Lower case, where a sigma sees the whole word, then without accents."""
    letters = unicodedata.normalize("NFD", word.lower())
    return "".join(c for c in letters if unicodedata.category(c) != "Mn")


def words_of(text, is_cased):
    """What stands between spaces, Chinese characters and punctuation being words themselves."""
    for word in alone(filter(is_text, text), is_chinese).split():
        yield from alone(word if is_cased else plain(word), is_punctuation).split()


def pieces_of(word, vocabulary):
    """From the left the longest that the vocabulary has; one unknown if any part is not in it."""
    found, begin = [], 0
    while begin < len(word) <= LONGEST_WORD:
        pieces = ["##" * (begin > 0) + word[begin:end] for end in range(begin + 1, len(word) + 1)]
        longest = max((n for n, piece in enumerate(pieces, 1) if piece in vocabulary), default=0)
        if longest == 0:
            break
        found.append(vocabulary[pieces[longest - 1]])
        begin += longest
    return found if begin == len(word) else [vocabulary["[UNK]"]]


def ids_of(text, vocabulary, is_cased):
    return [i for word in words_of(text, is_cased) for i in pieces_of(word, vocabulary)]


def transformers_ids(words):
    """Functions from a text to its ids, uncased and cased, of the tokenizer in Rust."""
    from transformers import BertTokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/vocab.txt"
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(word + "\n" for word in words))
        pair = [BertTokenizer(path, do_lower_case=not is_cased) for is_cased in (False, True)]
    return [lambda text, t=t: t.convert_tokens_to_ids(t.tokenize(text)) for t in pair]


def print_filled(name, entries):
    print(f"{name}:")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 100:
            print(line)
            line = "   "
        line += f" {entry},"
    print(line.rstrip(",") + "};")


def main():
    words = list(dict.fromkeys(WORDS))
    vocabulary = {word: i for i, word in enumerate(words)}
    other = transformers_ids(words) if "--transformers" in sys.argv else []
    rows = []
    for text in TEXTS:
        row = [ids_of(text, vocabulary, is_cased) for is_cased in (False, True)]
        for case, ours, theirs in zip(("uncased", "cased"), row, other):
            if theirs(text) != ours:
                print(f"{case} {literal(text)}: {ours}, transformers {theirs(text)}",
                      file=sys.stderr)
        lists = ["{" + ", ".join(map(str, r)) + "}" for r in row]
        rows.append("{" + ", ".join([literal(text)] + lists) + "}")
    print_filled("words", [literal(word) for word in words])
    print_filled("cases", rows)


if __name__ == "__main__":
    main()
