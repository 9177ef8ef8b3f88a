"""Data sets: every layout is recognised, every damaged file is named."""

import gzip

import numpy as np
import pytest
from PIL import Image

from trt_moe.data import load_dataset
from trt_moe.data.datasets import hold_out, read_idx
from trt_moe.errors import DataError, InputError


def _idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


def _write_idx(folder, images, labels, prefix="t10k", compress=False):
    for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        data = _idx(np.asarray(array, np.uint8))
        name = f"{prefix}-{kind}"
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


def _png(file, value=7, size=(5, 4), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(file)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read_with_labels(tmp_path, compress):
    images = np.arange(24).reshape(2, 3, 4)
    _write_idx(tmp_path, images, [9, 0], compress=compress)
    data = load_dataset(tmp_path, "test")
    assert data.images.shape == (2, 3, 4, 1)
    np.testing.assert_array_equal(data.images[..., 0], images)
    assert data.labels.tolist() == [9, 0]
    assert data.labels.dtype == np.int64
    assert (data.class_names, data.name, data.severities) == (tuple("0123456789"), tmp_path.name, None)
    assert len(data) == 2


FASHION_MNIST = {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5], "t10k": [9, 2, 1, 1, 6, 1, 4, 6, 5]}
MNIST = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1], "t10k": [7, 2, 1, 0, 4, 1, 4, 9, 5]}


@pytest.mark.parametrize(("labels", "ninth"), [(FASHION_MNIST, "Ankle-boot"), (MNIST, "9")])
def test_idx_files_have_fashion_mnists_classes_only_if_the_labels_are_its_own(tmp_path, labels, ninth):
    for prefix, values in labels.items():
        _write_idx(tmp_path, np.zeros((9, 2, 2)), values, prefix=prefix)
    for split in ("train", "test"):
        data = load_dataset(tmp_path, split)
        assert (data.class_names[9], data.name == "fashion-mnist") == (ninth, ninth == "Ankle-boot")


def test_the_train_split_is_another_pair_of_files(tmp_path):
    _write_idx(tmp_path, np.zeros((1, 2, 2)), [1])
    _write_idx(tmp_path, np.zeros((3, 2, 2)), [1, 2, 3], prefix="train")
    assert len(load_dataset(tmp_path, "train")) == 3
    assert len(load_dataset(tmp_path, "test")) == 1


def test_a_truncated_idx_file_is_named(tmp_path):
    file = tmp_path / "images"
    file.write_bytes(_idx(np.zeros((2, 3, 4), np.uint8))[:-1])
    with pytest.raises(DataError, match=r"images holds 23 bytes.*\(2, 3, 4\) says 24"):
        read_idx(file, 3)


def test_a_truncated_gzip_file_is_named(tmp_path):
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(_idx(np.zeros((20, 30, 4), np.uint8)))[:-9])
    with pytest.raises(DataError, match=r"images\.gz cannot be read"):
        read_idx(file, 3)


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"\x00\x00\x08\x01\x00\x00\x00\x00", b"PNG" * 10])
def test_what_is_no_idx_file_of_this_rank_is_refused(tmp_path, content):
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not an idx file"):
        read_idx(file, 3)


def test_a_header_that_promises_terabytes_is_refused_without_allocating(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + b"abc")
    with pytest.raises(DataError, match="holds 3 bytes"):
        read_idx(file, 3)


def test_labels_must_fit_images_and_classes(tmp_path):
    _write_idx(tmp_path, np.zeros((2, 2, 2)), [1])
    with pytest.raises(DataError, match=r"2 images.*1 labels"):
        load_dataset(tmp_path)
    _write_idx(tmp_path, np.zeros((2, 2, 2)), [1, 10])
    with pytest.raises(DataError, match="label 10"):
        load_dataset(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no labels beside it"):
        load_dataset(tmp_path)


def test_an_image_folder_gives_sorted_classes(tmp_path):
    _png(tmp_path / "sea" / "1.png", 2)
    _png(tmp_path / "forest" / "b.png", 1)
    _png(tmp_path / "forest" / "a.png", 0)
    (tmp_path / "forest" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    data = load_dataset(tmp_path)
    assert data.class_names == ("forest", "sea")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.images.shape == (3, 4, 5, 1)


def test_images_in_subfolders_are_the_classs_in_the_order_of_their_paths(tmp_path):
    _png(tmp_path / "sea" / "b.png", 3)
    _png(tmp_path / "sea" / "a" / "z" / "1.png", 1)
    _png(tmp_path / "sea" / "a" / "2.png", 0)
    _png(tmp_path / "sea" / "a.jpg" / "3.png", 2)
    _png(tmp_path / "sea" / ".thumbnails" / "1.png", 9)
    _png(tmp_path / "forest" / "only" / "here" / "1.png", 4)
    data = load_dataset(tmp_path)
    assert data.class_names == ("forest", "sea")
    assert data.labels.tolist() == [0, 1, 1, 1, 1]
    assert data.images[:, 0, 0, 0].tolist() == [4, 0, 1, 2, 3]


def test_broken_images_in_subfolders_are_listed(tmp_path):
    _png(tmp_path / "sea" / "1.png", 3)
    (tmp_path / "sea" / "more").mkdir()
    (tmp_path / "sea" / "more" / "2.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1 unusable image; .*\n.*sea/more/2\.png \("):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, skip_broken=True).images[:, 0, 0, 0].tolist() == [3]


def test_links_are_followed_but_neither_in_circles_nor_up_into_other_classes(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    _png(root / "forest" / "1.png", 1)
    _png(root / "sea" / "1.png", 2)
    _png(elsewhere / "2.png", 3)
    (elsewhere / "back").symlink_to(root / "sea")
    (root / "sea" / "linked").symlink_to(elsewhere)
    (root / "sea" / "linked-again").symlink_to(elsewhere)
    (root / "sea" / "self").symlink_to(root / "sea" / "self")
    (root / "sea" / "here").symlink_to(".")
    (root / "sea" / "all").symlink_to("..")
    (root / "sea" / "gone.png").symlink_to("nowhere.png")
    data = load_dataset(root, skip_broken=True)
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert len(data.broken) == 1
    assert "gone.png (" in data.broken[0]


@pytest.mark.parametrize("suffix", ["gif", "tif", "TIFF", "webp", "bmp", "jfif", "jpe", "ppm", "pgm"])
def test_other_image_files_are_read(tmp_path, suffix):
    mode, colour = ("L", 60) if suffix == "pgm" else ("RGB", (60, 60, 60))
    _png(tmp_path / "sea" / f"1.{suffix}", colour, mode=mode)
    np.testing.assert_allclose(load_dataset(tmp_path, shape=(4, 5, 3)).images, 60, atol=2)


def test_an_animated_image_counts_once(tmp_path):
    (tmp_path / "sea").mkdir()
    first, second = (Image.new("L", (5, 4), value) for value in (10, 200))
    first.save(tmp_path / "sea" / "1.gif", save_all=True, append_images=[second])
    assert load_dataset(tmp_path, shape=(4, 5, 1)).images[:, 0, 0, 0].tolist() == [10]


def test_images_that_are_not_read_are_listed_and_other_files_ignored(tmp_path):
    _png(tmp_path / "sea" / "1.png", 5)
    for name in ("2.HEIC", "3.avif", "._1.png", "notes.txt", ".DS_Store", "Thumbs.db", "labels.csv"):
        (tmp_path / "sea" / name).write_bytes(b"some")
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        f"  {tmp_path}/sea/2.HEIC (.HEIC files are not read: convert it to PNG or JPEG)",
        f"  {tmp_path}/sea/3.avif (.avif files are not read: convert it to PNG or JPEG)",
    ]
    data = load_dataset(tmp_path, skip_broken=True)
    assert data.images[:, 0, 0, 0].tolist() == [5]
    assert len(data.broken) == 2


@pytest.mark.parametrize("nested", ["seg_test", "seg_test/seg_test", "test", "val"])
def test_the_intel_layout_and_plain_splits(tmp_path, nested):
    _png(tmp_path / nested / "glacier" / "1.png", (1, 2, 3), mode="RGB")
    data = load_dataset(tmp_path, "test")
    assert data.class_names == ("glacier",)
    assert data.images[0, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("folders", [("sea", "forest"), ("0/sea", "5/sea"), ("seg_test/sea",), ("val/sea",)])
def test_images_to_test_on_are_never_trained_on(tmp_path, folders):
    for folder in folders:
        _png(tmp_path / folder / "1.png")
    assert len(load_dataset(tmp_path, "test")) == len(folders)
    with pytest.raises(DataError, match=r"no train split apart; expected seg_train/<class> and seg_test/<class>"):
        load_dataset(tmp_path, "train")


def test_a_data_set_without_its_test_split_is_not_taken_for_classes(tmp_path):
    _png(tmp_path / "train" / "sea" / "1.png")
    with pytest.raises(DataError, match="no test split apart"):
        load_dataset(tmp_path, "test")
    (tmp_path / "idx").mkdir()
    _write_idx(tmp_path / "idx", np.zeros((3, 2, 2)), [1, 2, 3], prefix="train")
    with pytest.raises(DataError, match="no test split apart"):
        load_dataset(tmp_path / "idx", "test")


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    for folder in (
        "flat/bus",
        "flat/train",
        "apart/train/bus",
        "apart/train/train",
        "apart/test/bus",
        "apart/test/train",
    ):
        _png(tmp_path / folder / "deeper" / "1.png")
    assert load_dataset(tmp_path / "flat").class_names == ("bus", "train")
    for split in ("train", "test"):
        assert load_dataset(tmp_path / "apart", split).class_names == ("bus", "train")


def test_one_picture_is_the_same_in_every_severity_that_has_it(tmp_path):
    for level, names in (("0", ["a/1", "a/2", "b/1"]), ("3", ["a/2", "b/1"])):
        for name in names:
            _png(tmp_path / level / f"{name}.png")
    data = load_dataset(tmp_path)
    assert data.severities.tolist() == [0, 0, 0, 3, 3]
    assert data.pictures.tolist() == [0, 1, 2, 1, 2]
    assert load_dataset(tmp_path / "0").pictures is None


def test_what_is_not_read_of_images_is_said(tmp_path, caplog):
    _png(tmp_path / "sea" / "1.png", value=700, mode="I;16")
    assert load_dataset(tmp_path).images.max() == 2
    assert "1.png: has 16-bit values of at most 700" in caplog.text


def test_a_data_set_is_called_as_its_folder_is(tmp_path, monkeypatch):
    _png(tmp_path / "coast" / "sea" / "1.png")
    monkeypatch.chdir(tmp_path / "coast")
    assert load_dataset(".").name == "coast"


def test_severity_folders(tmp_path):
    for level in (0, 5):
        for name in ("bag", "shoe"):
            _png(tmp_path / str(level) / name / "1.png", level)
    data = load_dataset(tmp_path)
    assert data.severities is not None
    assert data.severities.tolist() == [0, 0, 5, 5]
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 0, 5, 5]


@pytest.mark.parametrize("classes", [("0", "1"), tuple("0123456789"), ("0", "cat", "dog")])
def test_classes_may_be_called_as_severities_are(tmp_path, classes):
    for name in classes:
        _png(tmp_path / name / ("deep" if name == "cat" else "") / "1.png")
    data = load_dataset(tmp_path)
    assert (data.class_names, data.severities) == (classes, None)


def test_severity_folders_must_have_the_same_classes(tmp_path):
    _png(tmp_path / "0" / "bag" / "1.png")
    _png(tmp_path / "1" / "shoe" / "1.png")
    with pytest.raises(DataError, match=r"\['shoe'\].*\['bag'\]"):
        load_dataset(tmp_path)


def test_a_shape_converts_size_and_colour(tmp_path):
    _png(tmp_path / "a" / "1.png", (9, 9, 9), size=(10, 8), mode="RGB")
    _png(tmp_path / "a" / "2.png", 9, size=(3, 3))
    assert load_dataset(tmp_path, shape=(4, 6, 1)).images.shape == (2, 4, 6, 1)
    assert load_dataset(tmp_path, shape=(4, 6, 3)).images.shape == (2, 4, 6, 3)


def test_images_of_another_size_than_most_are_named(tmp_path):
    _png(tmp_path / "a" / "1.png", size=(3, 3))
    _png(tmp_path / "a" / "2.png")
    _png(tmp_path / "a" / "3.png")
    with pytest.raises(DataError, match=r"1\.png \(is 3 x 3 x 1, most are 4 x 5 x 1: .*image_shape"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path, skip_broken=True)) == 2


def _spoilt(folder):
    """Make a data set of two good images in two classes, and four that cannot be used."""
    _png(folder / "a" / "1.jpg", 40)
    _png(folder / "b" / "1.png", 50)
    (folder / "a" / "2.png").write_bytes(b"not a png")
    _png(folder / "b" / "2.jpg", size=(64, 64))
    (folder / "b" / "2.jpg").write_bytes((folder / "b" / "2.jpg").read_bytes()[:-40])
    (folder / "b" / "3.bmp").write_bytes(b"")
    _png(folder / "nobody-knows.png")


def test_all_unusable_images_are_listed_in_one_error(tmp_path):
    _spoilt(tmp_path)
    with pytest.raises(DataError) as caught:
        load_dataset(tmp_path)
    message = str(caught.value)
    assert "has 4 unusable images" in message
    assert "--skip-broken" in message
    listed = [line for line in message.splitlines() if line.startswith("  ")]
    assert [line.split(" (")[0].rsplit("/", 2)[-1] for line in listed] == [
        "nobody-knows.png",
        "2.png",
        "2.jpg",
        "3.bmp",
    ]
    assert "no label" in listed[0]
    assert "truncated" in listed[2]


def test_unusable_images_are_left_out_and_listed_when_asked(tmp_path):
    _spoilt(tmp_path)
    data = load_dataset(tmp_path, skip_broken=True)
    assert data.labels.tolist() == [0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [40, 50]
    assert len(data.broken) == 4


def test_a_data_set_of_broken_images_only_is_refused_even_so(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"no image is left:\n.*1\.jpg"):
        load_dataset(tmp_path, skip_broken=True)


def test_broken_images_of_all_severities_are_listed_together(tmp_path):
    for level in (0, 5):
        _png(tmp_path / str(level) / "bag" / "1.png", level)
        (tmp_path / str(level) / "bag" / "2.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"(?s)2 unusable.*0/bag/2\.png.*5/bag/2\.png"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path, skip_broken=True).images[:, 0, 0, 0].tolist() == [0, 5]


def test_idx_labels_out_of_range_are_all_listed_or_left_out(tmp_path):
    _write_idx(tmp_path, np.arange(4)[:, None, None] * np.ones((1, 2, 2)), [1, 10, 255, 9])
    with pytest.raises(DataError, match=r"(?s)2 unusable.*image 1 \(label 10;.*image 2 \(label 255; expected 0 to 9"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path, skip_broken=True)
    assert data.labels.tolist() == [1, 9]
    assert data.images[:, 0, 0, 0].tolist() == [0, 3]


def test_all_empty_class_folders_are_named(tmp_path):
    _png(tmp_path / "a" / "1.png")
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"/b, .*/c: holds no images; remove the folder or fill it"):
        load_dataset(tmp_path, skip_broken=True)


def test_nothing_there_is_said_plainly(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        load_dataset(tmp_path / "missing")
    with pytest.raises(DataError, match="no class folders"):
        load_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(tmp_path)
    with pytest.raises(InputError, match="'valid'"):
        load_dataset(tmp_path, "valid")


def test_idx_images_are_never_resized(tmp_path):
    _write_idx(tmp_path, np.zeros((2, 3, 4)), [0, 1])
    with pytest.raises(DataError, match=r"expected \(8, 8, 1\)"):
        load_dataset(tmp_path, shape=(8, 8, 1))


def test_images_are_decoded_as_predict_decodes_them(tmp_path):
    for class_name, value in (("a", 40_000), ("b", 400)):
        (tmp_path / class_name).mkdir()
        Image.fromarray(np.full((8, 6), value, np.uint16)).save(tmp_path / class_name / "deep.png")
    data = load_dataset(tmp_path, "test")
    assert data.images.shape == (2, 8, 6, 1)
    assert [int(image.max()) for image in data.images] == [40_000 >> 8, 400 >> 8]

    upright = tmp_path / "turned" / "c"
    upright.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(upright / "phone.jpg", exif=exif)
    assert load_dataset(tmp_path / "turned", "test").images.shape == (1, 6, 8, 3)


def test_of_class_folders_alone_some_images_of_every_class_are_kept_for_the_test(tmp_path):
    for class_name, count in (("a", 10), ("b", 5)):
        for index in range(count):
            _png(tmp_path / class_name / f"{index}.png", 10 * (class_name == "b") + index)
    data = load_dataset(tmp_path, "test")
    training, test = hold_out(data, 0.2)
    assert np.bincount(test.labels).tolist() == [2, 1] and np.bincount(training.labels).tolist() == [8, 4]
    levels = [int(image.max()) for part in (training, test) for image in part.images]
    assert sorted(levels) == sorted(int(image.max()) for image in data.images)
    again = hold_out(data, 0.2)[1]
    np.testing.assert_array_equal(again.images, test.images)
    with pytest.raises(DataError, match=r"10 images of a are too few to keep 95% of them"):
        hold_out(data, 0.95)
    with pytest.raises(DataError, match=r"no train split apart.*held_out: 0\.2"):
        load_dataset(tmp_path, "train")


def test_images_that_were_corrupted_before_are_not_trained_on(tmp_path):
    for level in ("0", "3"):
        for index in range(3):
            _png(tmp_path / level / "a" / f"{index}.png", index)
    with pytest.raises(DataError, match="holds images of several severities"):
        hold_out(load_dataset(tmp_path, "test"), 0.5)


def test_what_was_left_out_is_told_of_once(tmp_path):
    for number in range(5):
        _png(tmp_path / "sea" / f"{number}.png")
        _png(tmp_path / "forest" / f"{number}.png")
    (tmp_path / "sea" / "broken.png").write_bytes(b"no")
    training, test = hold_out(load_dataset(tmp_path, skip_broken=True), 0.2)
    assert (len(training.broken), test.broken) == (1, ())
