"""How a source file is read: its encoding, its line ends, and what is none."""

import pytest

from common.source_code import NotSourceCode, decode_source, language_of, read_source

TEXT = "größe = '漢字'\nx = 1\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (TEXT.encode(), TEXT),
        (TEXT.encode("utf-8-sig"), TEXT),
        (TEXT.encode("utf-16"), TEXT),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
        (TEXT.encode("utf-32"), TEXT),
        ("# coding: latin-1\ngröße\n".encode("latin-1"), "# coding: latin-1\ngröße\n"),
        (
            "#!/bin/python\n# -*- coding: euc-jp -*-\n漢字".encode("euc-jp"),
            "#!/bin/python\n# -*- coding: euc-jp -*-\n漢字",
        ),
        (b"# coding: no-such\nx", "# coding: no-such\nx"),
        (b"a\r\nb\rc\n\rd", "a\nb\nc\n\nd"),
        (b"", ""),
    ],
)
def test_a_text_is_read_in_its_encoding_with_plain_line_ends(content, text):
    assert decode_source(content, "x.py") == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = 1\nb = 2\nc = '\xff'\n", "x.py:3: not UTF-8; save it as UTF-8"),
        (b"\xe9t\xe9 = 1\n", "x.py:1: not UTF-8; save it as UTF-8"),
        (b"# coding: euc-jp\n\xff", "x.py:2: not EUC-JP; save it as UTF-8"),
        (b"\xff\xfea", "x.py:1: not UTF-16; save it as UTF-8"),
        (b"\x7fELF\0\xff\0", "x.py: binary, as it has NUL bytes; name a source file"),
        (b"# coding: rot13\nk", "x.py: rot13 is no encoding of a text; save it as UTF-8"),
        (b"# coding: unicode_escape\n'\\ud800'", "x.py: unicode_escape is no encoding of a text; save it as UTF-8"),
    ],
)
def test_what_is_no_text_gets_one_line(content, said, tmp_path):
    with pytest.raises(NotSourceCode) as caught:
        decode_source(content, "x.py")
    assert str(caught.value).startswith(said)
    assert caught.value.reason in said
    (tmp_path / "x.py").write_bytes(content)
    with pytest.raises(NotSourceCode, match=r"x\.py"):
        read_source(tmp_path / "x.py")


def test_the_language_is_that_of_the_name(tmp_path):
    assert [language_of(tmp_path / name) for name in ("a.py", "A.PY", "b.java", "c.txt", "d")] == [
        "python",
        "python",
        "java",
        "",
        "",
    ]
