"""Text comes back as it was, in rows that are the same every time."""

import subprocess
import sys

import numpy as np
import pytest

from jaxsp.robust import text

WORDS = "to be, or not to be: that is the question\n" * 40


@pytest.mark.parametrize("given", [WORDS, "héllo  日本\t[MASK] [SEP]\r\n", ""])
def test_a_tokenizer_gives_every_text_back(given):
    tokenizer = text.train_tokenizer([WORDS], 300)
    ids = tokenizer.encode(given).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == given
    assert not {text.SEPARATOR, text.MASK} & set(ids)
    assert len(ids) <= len(given.encode())


def test_another_process_makes_the_same_tokenizer():
    code = (
        "from jaxsp.robust import text\n"
        f"print(text.train_tokenizer([{WORDS!r}], 300).to_str(), end='')"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout == text.train_tokenizer([WORDS], 300).to_str()


def test_every_tenth_file_is_for_validation_alone(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(chr(ord("a") + i) * 50)
    found = text.load(f"{tmp_path}/*.txt", 258, 5)
    train, valid = (
        {found.tokenizer.decode([i]) for i in np.unique(rows) if i != text.SEPARATOR}
        for rows in (found.train, found.valid)
    )
    assert valid == {"j", "t"}  # the tenth and the twentieth
    assert train == set("abcdefghijklmnopqrst") - valid
    assert found.train.dtype == np.int32
    assert found.train.shape[1] == found.valid.shape[1] == 5


def test_one_file_is_split_too(tmp_path):
    (tmp_path / "a.txt").write_text(WORDS)
    found = text.load(str(tmp_path / "a.txt"), 258, 8)
    assert 5 < len(found.train) / len(found.valid) < 15


def test_the_library_of_python_is_there_in_order():
    documents = text.standard_library()
    again = text.standard_library()
    assert list(documents.items()) == list(again.items())
    assert "argparse.py" in documents
    assert sum(map(len, documents.values())) > 1_000_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "no file matches"),
        ("empty.txt", b"  \n", "is empty"),
        ("bytes.txt", b"\xff\xfe\x00", "is no text in UTF-8"),
        ("short.txt", b"a b", "files must hold more text"),
    ],
)
def test_files_that_are_no_text(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        text.load(str(tmp_path / name), 258, 8)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="vocab_size must be at least 258"):
        text.train_tokenizer([WORDS], 100)
    with pytest.raises(ValueError, match="length must be at least 2"):
        text.load(None, 300, 1)
