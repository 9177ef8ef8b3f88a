import errno
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from support.tiny_bundle import write_tiny_bundle
from trt_moe.bundle import Bundle
from trt_moe.errors import DataError, InputError
from trt_moe.images import LoadedImages, decode_image, find_images, load_images

RGB = (8, 8, 3)
GREY = (8, 8, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("b"), channels=3).path)


def save(path, array, **options):
    Image.fromarray(np.asarray(array, np.uint8)).save(path, **options)
    return path


def random_image(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_images_of_the_right_size_come_back_bit_for_bit(tmp_path, bundle):
    arrays = [random_image(RGB, seed) for seed in range(3)]
    paths = [save(tmp_path / f"{i}.png", array) for i, array in enumerate(arrays)]
    loaded = load_images(paths, bundle)
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, np.stack(arrays))
    np.testing.assert_array_equal(load_images(str(paths[1]), bundle), arrays[1][None])
    np.testing.assert_array_equal(load_images(iter(paths), bundle), np.stack(arrays))
    np.testing.assert_array_equal(load_images(paths, bundle.path), np.stack(arrays))


def test_resize_is_bilinear_and_averages(tmp_path):
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    small = decode_image(save(tmp_path / "a.png", board), GREY)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_resize_does_not_keep_the_aspect_ratio(tmp_path):
    wide = np.zeros((10, 40), np.uint8)
    wide[:, :20] = 255
    assert decode_image(save(tmp_path / "a.png", wide), GREY)[:, :3].min() == 255


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("shape", [GREY, RGB, (8, 8, 4)])
def test_every_common_mode_is_read(tmp_path, mode, shape):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 200 << 8, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode)
    image.save(tmp_path / "a.tif")
    decoded = decode_image(tmp_path / "a.tif", shape)
    assert decoded.shape == shape
    assert abs(int(decoded[..., 0].mean()) - 200) <= {"1": 55, "P": 5}.get(mode, 1)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "a.png", transparency=b"\x00" * 256)
    assert decode_image(tmp_path / "a.png", RGB)[0, 0].tolist() == [10, 20, 30]


def test_exif_orientation_is_applied(tmp_path):
    upright = np.zeros(RGB, np.uint8)
    upright[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(upright).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", RGB), np.rot90(upright, -1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif", RGB).min() == 255


def test_multi_picture_jpegs_of_phones(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.jpg", RGB).min() == 255


def bad_files(folder):
    good = save(folder / "good.png", random_image(RGB))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    (folder / "cut.png").write_bytes(good.read_bytes()[:60])
    Image.fromarray(np.zeros((8, 8), np.float32)).save(folder / "float.tif")
    (folder / "folder.png").mkdir()
    return good, [folder / n for n in ("missing.png", "empty.png", "text.jpg", "cut.png", "float.tif", "folder.png")]


def test_unreadable_images_are_named_and_the_others_answered(tmp_path, bundle):
    good, bad = bad_files(tmp_path)
    loaded = load_images([good, *bad, good], bundle, on_error="skip")
    assert isinstance(loaded, LoadedImages)
    assert loaded.images.shape == (2, *RGB)
    assert loaded.paths == (good, good)
    assert [failure.path for failure in loaded.failures] == bad
    reasons = [failure.reason for failure in loaded.failures]
    assert reasons[0] == "no such file"
    assert reasons[1] == "the file is empty"
    assert reasons[2].startswith("not an image")
    assert reasons[3].startswith("damaged image")
    assert reasons[4].startswith("holds float pixels")
    assert reasons[5] == "is a folder, not an image"


def test_unreadable_images_raise_one_error_that_names_all(tmp_path, bundle):
    good, bad = bad_files(tmp_path)
    with pytest.raises(DataError, match="6 of 7 images cannot be read") as caught:
        load_images([good, *bad], bundle)
    for path in bad:
        assert str(path) in str(caught.value)


def test_only_unreadable_images(tmp_path, bundle):
    loaded = load_images([tmp_path / "no.png"], bundle, on_error="skip")
    assert loaded.images.shape == (0, *RGB)
    assert len(loaded.failures) == 1


def test_long_lists_of_failures_are_cut(tmp_path, bundle):
    with pytest.raises(DataError, match="and 92 more"):
        load_images([tmp_path / f"{i}.png" for i in range(100)], bundle)


def test_decompression_bomb_is_not_decoded(tmp_path, monkeypatch):
    save(tmp_path / "a.png", random_image((100, 100)))
    monkeypatch.setattr("trt_moe.images.MAX_PIXELS", 9_999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match="has 100 x 100 pixels"):
        decode_image(tmp_path / "a.png", RGB)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged EXIF data
def test_every_cut_of_a_file_is_an_error_or_an_image(tmp_path):
    for name, options in (
        ("a.jpg", {}),
        ("a.png", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.gif", {}),
    ):
        whole = save(tmp_path / name, random_image((16, 16, 3)), **options).read_bytes()
        for length in range(0, len(whole), 101):
            (tmp_path / name).write_bytes(whole[:length])
            try:
                decode_image(tmp_path / name, RGB)
            except DataError as error:
                assert str(tmp_path / name) in str(error)


def test_wrong_arguments(bundle):
    with pytest.raises(InputError, match="no images were given"):
        load_images([], bundle)
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        load_images(["a"], bundle, on_error="ignore")  # type: ignore[call-overload]


def test_images_of_memory_are_read_as_files_are(tmp_path, bundle):
    photo = save(tmp_path / "a.png", random_image((30, 20, 3)))
    expected = load_images(photo, bundle)
    content, frame = photo.read_bytes(), np.asarray(Image.open(photo))
    flipped = np.ascontiguousarray(frame[..., ::-1])
    for image in (content, memoryview(content), BytesIO(content), Image.open(photo), frame, flipped[..., ::-1]):
        np.testing.assert_array_equal(load_images(image, bundle), expected)
        np.testing.assert_array_equal(load_images([photo, image], bundle), np.concatenate([expected] * 2))
    np.testing.assert_array_equal(load_images(np.stack([frame, frame]), bundle), np.concatenate([expected] * 2))
    grey = random_image((9, 1))
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(load_images(image, bundle), load_images(Image.fromarray(grey), bundle))
    kept = Image.open(photo)
    load_images(kept, bundle)
    assert kept.getpixel((0, 0)) == tuple(frame[0, 0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), r"image 0 is an array of float32 \[8, 8, 3\]; expected uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.uint8)], r"image 1 is an array of uint8 \[8, 8, 2\]"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), r"image 0 is an array of uint8 \[1, 2, 8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]; .*np\.moveaxis\(image, 0, -1\)"),
        (np.array("a.png"), "image 0 is an array"),
        (np.zeros((0, 8, 3), np.uint8), "expected uint8"),
        ([None], "image 0 is of type NoneType; expected paths, bytes or file objects"),
        (7, "images are int; expected paths"),
    ],
)
def test_what_is_no_image_in_memory(bundle, image, message):
    with pytest.raises(InputError, match=message):
        load_images(image, bundle)


def test_broken_images_of_memory_are_named_by_their_place(bundle):
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="1 of 2 images cannot be read: image 1: not an image, or of a format"):
        load_images([good, b"no image"], bundle)
    loaded = load_images([good, b"", None, Image.new("RGB", (0, 5))], bundle, on_error="skip")
    assert len(loaded.images) == 1
    reasons = ["the file is empty", "is of type NoneType", "has no pixels"]
    assert all(reason in str(failure) for reason, failure in zip(reasons, loaded.failures, strict=True))


def test_an_image_of_pillows_is_read_where_it_stands_and_stays_as_it_is(tmp_path, bundle):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    animation = Image.open(tmp_path / "a.gif")
    animation.seek(1)
    loaded = load_images(animation, bundle, on_error="skip")
    assert loaded.images[0, 0, 0].tolist() == [0, 0, 255] and not loaded.remarks and animation.tell() == 1
    turned = Image.new("RGB", (8, 4), "red")
    turned.getexif()[0x0112] = 3
    turned.paste("blue", (4, 2, 8, 4))
    assert load_images(turned, bundle)[0, 0, 0].tolist() == [0, 0, 255]
    assert turned.size == (8, 4) and turned.getexif()[0x0112] == 3


@pytest.mark.parametrize("values", [[[0, 1 << 24]], [[-1, 5]]])
def test_integers_of_32_bits_are_refused_where_16_do_not_hold_them(tmp_path, values):
    Image.fromarray(np.array(values, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="32-bit values, whose range is unknown"):
        decode_image(tmp_path / "a.tif", RGB)


def test_lab_colours_become_grey_too(tmp_path):
    Image.new("RGB", (4, 4), (200, 30, 90)).save(tmp_path / "rgb.png")
    grey = decode_image(tmp_path / "rgb.png", (4, 4, 1))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.open(tmp_path / "rgb.png"), to_lab).save(tmp_path / "lab.tif")
    assert np.abs(decode_image(tmp_path / "lab.tif", (4, 4, 1)).astype(int) - grey).max() <= 4


def test_what_macos_keeps_beside_files_is_no_image(tmp_path):
    photo = save(tmp_path / "a.png", random_image((8, 8)))
    (tmp_path / "._a.png").write_bytes(b"Mac OS X")
    assert find_images([tmp_path]) == ([photo], [])


def test_find_images_expands_folders(tmp_path):
    (tmp_path / "in" / "ner").mkdir(parents=True)
    for name in ("in/b.PNG", "in/a.jpg", "in/ner/c.webp", "in/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found, failures = find_images([tmp_path / "given.xyz", tmp_path / "in"])
    assert failures == []
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["given.xyz", "in/a.jpg", "in/b.PNG", "in/ner/c.webp"]
    (tmp_path / "none").mkdir()
    found, failures = find_images([tmp_path / "none", tmp_path / "in" / "a.jpg"])
    assert found == [tmp_path / "in" / "a.jpg"]
    assert [(failure.path, failure.reason[:15]) for failure in failures] == [(tmp_path / "none", "holds no images")]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    for folder in ("open", "shut"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").touch()
    scan, is_dir = os.scandir, Path.is_dir

    # Root may read all, so permissions alone do not tell.
    def denied(path):
        return PermissionError(errno.EACCES, "Permission denied", str(path))

    def scandir(path):
        if Path(path).name == "shut":
            raise denied(path)
        return scan(path)

    def folder(path):
        if path.name == "hidden.png":
            raise denied(path)
        return is_dir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(Path, "is_dir", folder)
    hidden = tmp_path / "shut" / "hidden.png"
    files, failures = find_images([tmp_path, hidden])
    assert files == [tmp_path / "open" / "a.png", hidden]
    assert [str(failure) for failure in failures] == [
        f"{tmp_path / 'shut'}: the folder cannot be read (Permission denied)"
    ]
    assert find_images([tmp_path / "shut"])[0] == []


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is a pipe or a device; expected a regular file"):
        decode_image(tmp_path / "a.png", RGB)


def partly_read(folder):
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 255))
    clear.save(folder / "opaque.png")
    clear.putpixel((3, 3), (9, 9, 9, 0))
    clear.save(folder / "clear.png")
    frames = [Image.new("L", (8, 8), value) for value in (1, 2)]
    for suffix in ("gif", "tif"):
        frames[0].save(folder / f"frames.{suffix}", save_all=True, append_images=frames[1:])
    for bits in (12, 16):
        Image.fromarray(np.full((8, 8), (1 << bits) - 1, np.uint16)).save(folder / f"{bits}.png")
    return sorted(folder.iterdir())


def test_what_is_not_read_of_an_image_is_told(tmp_path, bundle, caplog):
    paths = partly_read(tmp_path)
    loaded = load_images(paths, bundle, on_error="skip")
    assert loaded.paths == tuple(paths)
    assert {remark.path.name: remark.reason.split(";")[0] for remark in loaded.remarks} == {
        "12.png": "has 16-bit values of at most 4,095, of which the upper 8 bits are read",
        "clear.png": "is transparent in places, which are read as if they were opaque",
        "frames.gif": "has several frames",
        "frames.tif": "has several frames",
    }
    assert caplog.text == ""
    load_images(paths, bundle)
    assert f"{tmp_path / 'frames.gif'}: has several frames; only the first is read" in caplog.text
    told = []
    decode_image(tmp_path / "clear.png", (8, 8, 4), told.append)
    assert told == []


def test_far_too_large_images_are_refused_in_the_same_words(tmp_path, monkeypatch):
    save(tmp_path / "a.png", random_image((100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(DataError, match="has far too many pixels; at most 100,000,000 are decoded"):
        decode_image(tmp_path / "a.png", RGB)


def test_formats_that_start_other_programs_or_are_not_listed_are_not_read(tmp_path):
    postscript = tmp_path / "x.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "y.tga")
    for file in (postscript, tmp_path / "y.tga"):
        with pytest.raises(DataError, match="not an image, or of a format that is not read"):
            decode_image(file, (4, 4, 3))


def test_the_pictures_behind_the_first_of_a_phones_jpeg_are_no_frames(tmp_path):
    first, preview = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (4, 4))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[preview])
    said = []
    assert decode_image(tmp_path / "phone.jpg", (8, 8, 3), said.append)[0, 0, 0] > 200
    assert said == []
