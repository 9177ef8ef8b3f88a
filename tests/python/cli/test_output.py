import os
import stat
import threading

import pytest
from matplotlib.figure import Figure

from trt_moe.errors import InputError
from trt_moe.output import check_output, check_picture, save_picture, write_output


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    file = tmp_path / "o.json"
    write_output(file, b"first")
    write_output(file, b"second")
    assert file.read_bytes() == b"second"
    monkeypatch.setattr("os.fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_output(file, b"third")
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_links_stay_and_what_they_name_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("old", "new"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "old").write_bytes(b"old")
    for name in ("old", "new"):
        check_output(tmp_path / name)
        write_output(tmp_path / name, b"data")
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "elsewhere" / name).read_bytes() == b"data"


def test_pipes_are_written_to_and_stay(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    check_output(pipe)
    write_output(pipe, b"data")
    reader.join(10)
    assert got == [b"data"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nowhere").symlink_to(tmp_path / "no" / "such")
    (tmp_path / "file").touch()
    for name, message in (
        ("", "is a folder; expected a file name"),
        ("no/such", "its folder does not exist"),
        ("nowhere", "its folder does not exist"),
        ("circle", "cannot be written"),
        ("file/in", "cannot be written"),
        ("n" * 300, "cannot be written"),
    ):
        with pytest.raises(InputError, match=f"--output .*{message}"):
            check_output(tmp_path / name)
    with pytest.raises(OSError, match="choose another place") as caught:
        write_output(tmp_path / "no" / "such", b"")
    assert caught.value.filename == str(tmp_path / "no" / "such")


@pytest.mark.parametrize(
    ("name", "head"),
    [("p.png", b"\x89PNG"), ("p", b"\x89PNG"), ("p.PDF", b"%PDF"), ("p.svg", b"<?xml"), ("p.jpg", b"\xff\xd8\xff")],
)
def test_pictures_are_of_the_format_that_their_name_says(tmp_path, name, head):
    check_picture(tmp_path / name)
    save_picture(Figure(), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(head)


def test_other_pictures_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"p\.xyz: \.xyz is not written; expected \.png, \.pdf"):
        check_picture(tmp_path / "p.xyz")
