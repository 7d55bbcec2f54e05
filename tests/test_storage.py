"""Files that `storage` writes."""

import os

import pytest

from eqxunet.errors import UnavailableError
from eqxunet.storage import is_partial, replace_text, replacing


def test_a_file_stays_as_it_was_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    replace_text(path, "first")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"sec")
        file.flush()
        beside = [other for other in tmp_path.iterdir() if other != path]
        assert len(beside) == 1 and is_partial(beside[0])
        raise KeyboardInterrupt
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]
    replace_text(path, "second \udcff")
    assert path.read_bytes() == b"second \xff"


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    path = tmp_path / "none" / "a.txt"
    with pytest.raises(UnavailableError, match=r"a\.txt: cannot be written \(No such file"):
        replace_text(path, "a")
