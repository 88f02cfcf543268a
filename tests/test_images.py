"""Any image becomes a start image: upright, RGB, the size of the frame; what is none is refused in one sentence."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

import sanawm_env
from sanawm_env.camera.intrinsics import crop_geometry, intrinsics_from_fov
from sanawm_env.world.anchor import Anchor
from sanawm_env.world.config import WorldConfig
from sanawm_env.world.images import MAX_PIXELS, fit_image, images_in, load_image, read_anchor, save_start
from sanawm_env.world.intrinsics import choose_intrinsics, exif_focal

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(size=(60, 40)):
    """Four quarters: red, green / blue, white."""
    image = Image.new("RGB", size, RED)
    (width, height), half = size, (size[0] // 2, size[1] // 2)
    image.paste(GREEN, (half[0], 0, width, half[1]))
    image.paste(BLUE, (0, half[1], half[0], height))
    image.paste(WHITE, (*half, width, height))
    return image


def grey_ramp(size=(60, 40)):
    return Image.linear_gradient("L").resize(size)


def near(image, other, tolerance):
    return np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).max() <= tolerance


FILES = {
    "png": (corners(), "a.png", {}, 0),
    "jpeg": (corners(), "a.jpg", {"quality": 95, "subsampling": 0}, 20),
    "webp": (corners(), "a.webp", {"lossless": True}, 0),
    "bmp": (corners(), "a.bmp", {}, 0),
    "tiff": (corners(), "a.tiff", {}, 0),
    "gif": (corners().convert("P", palette=Image.Palette.ADAPTIVE), "a.gif", {}, 2),
    "palette": (corners().convert("P", palette=Image.Palette.ADAPTIVE), "a.png", {}, 2),
    "palette with transparency": (
        corners().convert("P", palette=Image.Palette.ADAPTIVE),
        "a.png",
        {"transparency": 0},
        2,
    ),
    "rgba": (corners().convert("RGBA"), "a.png", {}, 0),
    "cmyk": (corners().convert("CMYK"), "a.jpg", {"quality": 95, "subsampling": 0}, 20),
    "no suffix": (corners(), "a", {"format": "PNG"}, 0),
    "wrong suffix": (corners(), "a.jpg", {"format": "PNG"}, 0),
}


@pytest.mark.parametrize("kind", FILES)
def test_colour_images_of_every_kind_look_as_they_should(tmp_path, kind):
    image, name, options, tolerance = FILES[kind]
    image.save(tmp_path / name, **options)
    for source in (tmp_path / name, str(tmp_path / name), Image.open(tmp_path / name)):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert near(loaded, corners(), tolerance)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I"])
def test_grey_images_of_every_depth_become_the_same_grey(tmp_path, mode):
    grey = grey_ramp()
    if mode in ("I;16", "I"):
        deep = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
    else:
        image = grey.convert(mode)
    name = "a.tiff" if mode == "I" else "a.png"
    image.save(tmp_path / name)
    expected = (grey.convert("1") if mode == "1" else grey).convert("RGB")
    assert load_image(tmp_path / name).tobytes() == expected.tobytes()


def test_alpha_is_dropped_and_not_blended(tmp_path):
    image = corners().convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").tobytes() == corners().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored_as = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    image = corners()
    if orientation in stored_as:
        image = image.transpose(Image.Transpose[stored_as[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").tobytes() == corners().tobytes()


def test_arrays_are_images():
    rgb = np.asarray(corners())
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 7)], axis=-1)
    assert np.array_equal(load_image(rgb), rgb)
    assert np.array_equal(load_image(rgba), rgb)
    assert np.array_equal(load_image(rgb[::-1, ::2]), rgb[::-1, ::2])
    assert np.array_equal(load_image(rgb[..., 0]), np.repeat(rgb[..., :1], 3, axis=-1))


def test_the_given_image_is_not_changed():
    image = corners()
    fit_image(image, 8, 12)
    load_image(image).paste(RED, (0, 0, 60, 40))
    assert image.tobytes() == corners().tobytes()


# ---- the frame


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (96, 64), (97, 64), (640, 480), (480, 640), (1000, 7)])
@pytest.mark.parametrize("frame", [(64, 96), (63, 95)])
def test_every_size_fills_the_frame(size, frame):
    fitted = fit_image(Image.new("RGB", size, (10, 200, 30)), *frame)
    assert fitted.shape == (*frame, 3)
    assert fitted.dtype == np.uint8
    assert (fitted == (10, 200, 30)).all()


@pytest.mark.slow
def test_a_very_large_file_fills_the_frame(tmp_path):
    Image.new("L", (8000, 8000), 70).save(tmp_path / "a.png", compress_level=1)
    fitted = fit_image(tmp_path / "a.png", 64, 96)
    assert fitted.shape == (64, 96, 3)
    assert (fitted == 70).all()


@pytest.mark.parametrize("size", [(1, 8000), (8000, 1)])
def test_a_strip_fills_a_large_frame_without_filling_the_memory(size):
    ramp = Image.linear_gradient("L").rotate(180 if size[0] == 1 else 90).resize(size)
    fitted = fit_image(ramp, 704, 1280)
    assert fitted.shape == (704, 1280, 3)
    assert np.abs(fitted.astype(int) - 127).max() <= 3  # the middle of the strip


@pytest.mark.parametrize("size", [(60, 40), (200, 70), (70, 200), (101, 67), (1280, 720)])
def test_fitting_is_resize_then_centre_crop(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    crop = crop_geometry(*size, 96, 64)
    left, top = crop.offset
    resized = Image.fromarray(noise).resize(crop.resized, Image.Resampling.LANCZOS)
    assert np.array_equal(fit_image(noise, 64, 96), resized.crop((left, top, left + 96, top + 64)))


def test_an_image_of_the_frames_size_passes_unchanged():
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert np.array_equal(fit_image(noise, 64, 96), noise)


# ---- what is refused


def test_a_missing_image_is_not_found(tmp_path):
    for read in (load_image, read_anchor):
        with pytest.raises(FileNotFoundError, match="there is no image at"):
            read(tmp_path / "none.png")


def test_files_that_are_no_images_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for path in (tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "header.png"):
        for read in (load_image, read_anchor):
            with pytest.raises(ValueError, match="cannot be read as an image"):
                read(path)
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_a_truncated_image_is_refused(tmp_path, format):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, format=format)
    (tmp_path / "cut").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(ValueError, match="cannot be read as an image"):
        load_image(tmp_path / "cut")


@pytest.mark.parametrize("side", [9500, 30000], ids=["above the limit", "far above it"])
@pytest.mark.filterwarnings("error")
def test_decompression_bombs_are_refused(tmp_path, side):
    assert side**2 > MAX_PIXELS > 8000**2
    with pytest.raises(ValueError, match="decompression bomb"):
        load_image(png_that_claims(tmp_path / "bomb.png", side))


@pytest.mark.filterwarnings("error")
def test_the_largest_images_are_no_bombs(tmp_path):
    with pytest.raises(ValueError, match="truncated"):  # it got as far as the missing pixels
        load_image(png_that_claims(tmp_path / "large.png", 8000))


def png_that_claims(path, side):
    """A PNG of one pixel whose header says it is side x side."""
    one = io.BytesIO()
    Image.new("L", (1, 1)).save(one, format="PNG")
    header = b"IHDR" + struct.pack(">II", side, side) + one.getvalue()[24:29]
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(one.getvalue()[:12] + header + checksum + one.getvalue()[33:])
    return path


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((4, 4, 3)), "must be uint8 .* got float64"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8 .* got int64"),
        (np.zeros((3, 64, 96), np.uint8), r"must have shape .* got \(3, 64, 96\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"got \(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "must have pixels"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_image(array)


def test_other_things_are_no_images():
    for thing in (None, 3, b"bytes", [[1, 2], [3, 4]]):
        with pytest.raises(TypeError, match="an image must be a path, a PIL image or a uint8 array"):
            load_image(thing)
    with pytest.raises(ValueError, match="floating-point pixels"):
        load_image(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="no pixels"):
        load_image(Image.new("RGB", (0, 4)))


# ---- anchors


def pose():
    angle = 0.3
    c2w = np.eye(4)
    c2w[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    c2w[:3, 3] = 0.1, -0.2, 1 / 3
    return c2w


def test_a_start_image_remembers_where_it_was_taken(tmp_path):
    save_start(corners(), Anchor("courtyard", pose()), tmp_path / "start.png")
    anchor = read_anchor(tmp_path / "start.png")
    assert anchor.place == "courtyard"
    assert np.array_equal(anchor.c2w, pose())
    assert load_image(tmp_path / "start.png").tobytes() == corners().tobytes()


def test_images_without_an_anchor_have_none(tmp_path):
    save_start(corners(), None, tmp_path / "a.png")
    corners().save(tmp_path / "a.jpg")
    assert read_anchor(tmp_path / "a.png") is None
    assert read_anchor(tmp_path / "a.jpg") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "3",
        "{}",
        '{"place": "x"}',
        '{"place": "", "c2w": [[1]]}',
        '{"place": "x", "c2w": [[1, 2], [3]]}',
        '{"place": "x", "c2w": "y"}',
        '{"place": "x", "c2w": null}',
        '{"place": "x", "c2w": [[NaN,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}',
        '{"place": "x", "c2w": [[2,0,0,0],[0,2,0,0],[0,0,2,0],[0,0,0,1]]}',
        "[" * 100_000,
    ],
)
def test_a_bad_anchor_is_refused(tmp_path, text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("sanawm:anchor", text)
    corners().save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(ValueError, match=r"sanawm:anchor text of .* is not an anchor") as refused:
        read_anchor(tmp_path / "a.png")
    assert "\n" not in str(refused.value)


def test_only_png_can_keep_an_anchor(tmp_path):
    with pytest.raises(ValueError, match=r"saved as .png, got 'a.jpg'"):
        save_start(corners(), Anchor("x", pose()), tmp_path / "a.jpg")


def test_an_anchor_is_a_value():
    c2w = pose()
    anchor = Anchor("x", c2w)
    c2w[0, 3] = 9
    assert anchor.c2w[0, 3] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        anchor.c2w[0, 3] = 9
    with pytest.raises(AttributeError):
        anchor.place = "y"
    again = Anchor.from_json(anchor.to_json())
    assert again.place == "x"
    assert np.array_equal(again.c2w, anchor.c2w)


@pytest.mark.parametrize("flip", [np.diag([-1.0, 1, 1, 1]), np.eye(3), np.eye(4)[::-1], "no matrix"])
def test_an_anchor_needs_a_rigid_pose(flip):
    with pytest.raises(ValueError, match="pose of an anchor"):
        Anchor("x", flip)


# ---- EXIF beside the pixels, folders as they come

FAITHFUL = {
    "webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}  # fmt: skip
BROKEN_EXIF = {
    "cut off": b"\x00\x08\x00\x02\x01\x12\x00\x03",
    "noise": b"Exif\0\0" + bytes(range(200, 240)),
    "an offset into nowhere": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "an orientation in words": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x05\0\0\0\x50",
    "an orientation of 77": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x4d\0\0\0\0\0\0",
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_broken_exif_keeps_no_picture_from_being_read(tmp_path, suffix, kind):
    corners().save(tmp_path / f"a.{suffix}", exif=BROKEN_EXIF[kind], **FAITHFUL.get(suffix, {}))
    assert near(load_image(tmp_path / f"a.{suffix}"), corners(), 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File")
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "avif", "tiff"])
def test_an_orientation_is_heard_beside_exif_that_is_broken(tmp_path, suffix):
    """One valid entry, orientation 6, and one that points behind the end."""
    exif = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x87\x69\0\x04\0\0\0\x01\0\0\xff\xff\0\0\0\0"
    if suffix == "tiff":
        corners().save(tmp_path / "a.tiff", tiffinfo={274: 6, 34665: 65535})
    else:
        corners().save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif, **FAITHFUL.get(suffix, {}))
    assert near(load_image(tmp_path / f"a.{suffix}"), corners().transpose(Image.Transpose.ROTATE_270), 40)


def test_a_truncated_picture_is_refused_whatever_its_exif_says(tmp_path):
    path = tmp_path / "a.jpg"
    Image.effect_noise((160, 120), 90).save(path, exif=BROKEN_EXIF["cut off"])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="truncated"):
        load_image(path)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".JPG", "JPEG"), (".avif", "AVIF"), (".jp2", "JPEG2000"), (".ppm", "PPM"),
     (".apng", "PNG"), (".tga", "TGA"), (".ico", "ICO"), (".mpo", "MPO")],
)  # fmt: skip
def test_a_folder_holds_what_can_be_read_alone(tmp_path, suffix, kind):
    corners().save(tmp_path / f"a{suffix}", kind)
    load_image(tmp_path / f"a{suffix}")
    assert images_in(tmp_path) == [tmp_path / f"a{suffix}"]


def test_what_systems_leave_in_folders_is_no_image(tmp_path):
    corners().save(tmp_path / "b.png")
    left = "._b.png .DS_Store Thumbs.db .hidden.png notes.txt film.mpg data.h5 page.pdf drawing.eps"
    for name in left.split():
        (tmp_path / name).write_bytes(b"x")
    assert images_in(tmp_path) == [tmp_path / "b.png"]


def test_special_files_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name, says in (("pipe.png", "a pipe"), ("endless.png", "a device"), (".", "a folder")):
        for read in (load_image, read_anchor):
            with pytest.raises(ValueError, match=says):
                read(tmp_path / name)


# ---- what EXIF tells of the lens

WORLD = WorldConfig(name="w", engine="sanawm", height=64, width=96)


def photograph(path, millimetres, size=(360, 240), orientation=1, kind="JPEG"):
    image, exif = corners(size), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = millimetres
    image.save(path, format=kind, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_lens_of_a_photograph_is_what_its_exif_tells(tmp_path, kind):
    """36 mm across 36 x 24 mm of film: half a picture's width to either side at a distance of one."""
    picture = load_image(photograph(tmp_path / "a", 36, kind=kind))
    intrinsics, source = choose_intrinsics(picture, WORLD, None, None)
    assert source == "exif"
    np.testing.assert_allclose(intrinsics, [96, 96, 48, 32], rtol=1e-6)
    assert choose_intrinsics(picture, WORLD, None, 70.0)[1] == "fov"
    assert choose_intrinsics(picture, WORLD, (300, 300, 180, 120), None)[1] == "given"


def test_a_photograph_that_was_held_upright_has_the_same_lens(tmp_path):
    picture = load_image(photograph(tmp_path / "a.jpg", 36, orientation=6))
    assert picture.size == (240, 360)
    intrinsics, source = choose_intrinsics(picture, WORLD, None, None)
    assert source == "exif"
    np.testing.assert_allclose(intrinsics[:2], 360 * 96 / 240)  # in pixels of the part that is cut out


def test_a_lens_that_the_model_was_not_shown_is_said_and_not_taken(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        intrinsics, source = choose_intrinsics(load_image(photograph(tmp_path / "a.jpg", 200)), WORLD, None, None)
    assert source == "default" and "the horizontal field of view is 10.3 degrees" in caplog.text
    np.testing.assert_allclose(intrinsics, intrinsics_from_fov(70, 96, 64))


@pytest.mark.parametrize("millimetres", [0, None])
def test_a_picture_whose_exif_tells_no_lens_has_the_worlds_own(tmp_path, millimetres):
    picture = corners() if millimetres is None else load_image(photograph(tmp_path / "a.jpg", millimetres))
    assert choose_intrinsics(picture, WORLD, None, None)[1] == "default"
    picture.info["exif"] = b"Exif\0\0MM\0*" + bytes(range(40))  # damaged
    assert choose_intrinsics(picture, WORLD, None, None)[1] == "default"


def test_no_image_that_is_shipped_tells_of_a_lens():
    folders = Path(sanawm_env.__file__).parent / "assets"
    pictures = [path for path in folders.rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(pictures) > 5
    assert all(exif_focal(load_image(path)) is None for path in pictures)
