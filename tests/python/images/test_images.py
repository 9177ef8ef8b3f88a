import numpy as np
import pytest
from PIL import Image

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
    with pytest.raises(InputError, match="no image paths"):
        load_images([], bundle)
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        load_images(["a"], bundle, on_error="ignore")  # type: ignore[call-overload]


def test_find_images_expands_folders(tmp_path):
    (tmp_path / "in" / "ner").mkdir(parents=True)
    for name in ("in/b.PNG", "in/a.jpg", "in/ner/c.webp", "in/notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = list(find_images([tmp_path / "given.xyz", tmp_path / "in"]))
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["given.xyz", "in/a.jpg", "in/b.PNG", "in/ner/c.webp"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        list(find_images([tmp_path / "none"]))
