"""images.py: what is wrong with bad images, and where the pixels of good ones land."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageDraw, ImageOps

from posepipe import images
from posepipe.geometry import frame_image, frame_person, invert, transform, with_margin
from posepipe.images import ImageError, crop, cut_margin, decode, decode_jpeg, encode_jpeg, read_header, storage_error

BLACK = (0, 0, 0)


def smooth(width, height):
    """RGB that changes slowly: red from left to right, green from top to bottom, blue in waves."""
    y, x = np.mgrid[:height, :width]
    blue = 127 + 100 * np.sin(9 * x / width) * np.cos(7 * y / height)
    return np.stack([255 * x / width, 255 * y / height, blue], axis=-1).round().astype(np.uint8)


def encode(picture, file_format="PNG", **options):
    sink = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(sink, file_format, **options)
    return sink.getvalue()


def fine_jpeg(picture, **options):
    return encode(picture, "JPEG", quality=95, subsampling=0, **options)


def disc(x, y, width=400, height=300):
    """A black picture with a white disc around the pixel (x, y)."""
    picture = Image.new("RGB", (width, height))
    ImageDraw.Draw(picture).ellipse([x - 8, y - 8, x + 8, y + 8], fill="white")
    return picture


def middle_of_light(pixels):
    """(x, y) centroid of the bright pixels."""
    weight = np.where(pixels[..., 0] > 64, pixels[..., 0].astype(float), 0)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def crop_whole(data, size=48, upright=False):
    header = read_header(data)
    size = (size, size) if isinstance(size, int) else size
    return crop(data, header, frame_image(header.width, header.height, size, header.orientation if upright else 1), size)


def status_of(data):
    with pytest.raises(ImageError) as caught:
        crop_whole(data)
    assert caught.value.status in images.STATUSES
    assert str(caught.value) == f"{caught.value.status}: {caught.value.detail}"
    return caught.value.status


def png(width, height, rows=b"", bit_depth=8, colour_type=2):
    """A PNG by hand: Pillow writes neither colours of 16 bits nor a header that lies."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Bad images


def test_zero_bytes_are_empty():
    assert status_of(b"") == "empty"


def test_a_web_page_named_jpg_is_not_an_image():
    assert status_of(b"<!DOCTYPE html><html><body>404 Not Found</body></html>") == "not_an_image"


@pytest.mark.parametrize("size", [10, 100, 0.3, 0.9])
def test_half_a_jpeg_is_truncated(size):
    data = fine_jpeg(smooth(200, 150))
    assert status_of(data[: size if size > 1 else int(size * len(data))]) == "truncated"


@pytest.mark.parametrize("size", [0.3, 0.9])
def test_half_a_png_is_truncated(size):
    data = encode(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    assert status_of(data[: int(size * len(data))]) == "truncated"


def test_a_png_with_a_broken_stream_is_corrupt():
    data = bytearray(encode(smooth(200, 150)))
    data[len(data) // 2] ^= 0xFF
    assert status_of(bytes(data)) == "corrupt"


def test_a_jpeg_without_its_tables_is_corrupt():
    data = fine_jpeg(smooth(64, 64))
    at = data.index(b"\xff\xdb")  # the quantisation table becomes a comment
    assert status_of(data[:at] + b"\xff\xfe" + data[at + 2 :]) == "corrupt"


def test_a_jpeg_with_noise_in_its_stream_decodes_as_viewers_show_it():
    data = bytearray(fine_jpeg(smooth(400, 300)))
    at = 3 * len(data) // 4
    data[at : at + 40] = bytes(40)
    np.testing.assert_allclose(crop_whole(bytes(data))[:20].astype(int), crop_whole(fine_jpeg(smooth(400, 300)))[:20], atol=2)


def test_a_jpeg_with_bytes_between_its_headers_decodes_as_viewers_show_it_and_is_truncated_where_it_is_cut():
    whole = fine_jpeg(smooth(400, 300))
    at = whole.index(b"\xff\xda")
    data = whole[:at] + bytes(4) + whole[at:]
    np.testing.assert_allclose(crop_whole(data).astype(int), crop_whole(whole), atol=2)
    for each in (data, data[: len(data) // 2]):
        with pytest.raises(ValueError, match="extraneous bytes before marker"):
            simplejpeg.decode_jpeg(each, "RGB")
    assert status_of(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (12_000, 10_000)])
def test_an_absurdly_large_picture_is_refused_by_its_header(width, height):
    # Without pixels behind the header, decoding would say "truncated".
    assert status_of(png(width, height)) == "too_large"


def test_the_limit_of_pixels_is_the_callers():
    data = encode(smooth(20, 10))
    assert read_header(data, max_pixels=200).width == 20
    with pytest.raises(ImageError, match="too_large: 20 x 10 pixels, the limit is 199"):
        read_header(data, max_pixels=199)


def test_floating_point_pixels_are_unsupported():
    assert status_of(encode(np.zeros((10, 20), dtype=np.float32), "TIFF")) == "unsupported"


def test_integers_of_more_than_16_bits_are_unsupported():
    assert status_of(encode(np.full((10, 20), 70_000, dtype=np.int32), "TIFF")) == "unsupported"


@pytest.mark.parametrize(
    ("x", "y", "is_beside"),
    [(-30, 0, True), (20, 0, True), (0, -30, True), (0, 10, True), (1000, 1000, True), (-29, -29, False), (19, 9, False)],
)
def test_a_frame_beside_the_picture_shows_nobody(x, y, is_beside):
    data = encode(np.full((10, 20, 3), 255, dtype=np.uint8))
    crop_to_image = np.array([[1, 0, x], [0, 1, y]], dtype=np.float64)
    if is_beside:
        with pytest.raises(ImageError, match=f"no_person: a frame of x from {x} to .* lies beside the picture of 20 x 10 px"):
            crop(data, read_header(data), crop_to_image, (30, 30))
    else:
        assert np.count_nonzero(crop(data, read_header(data), crop_to_image, (30, 30)).any(axis=2)) == 1


def test_a_frame_far_larger_than_any_picture_is_unsupported():
    data = encode(smooth(20, 10))
    with pytest.raises(ImageError, match="unsupported: a frame of"):
        crop(data, read_header(data), frame_person((10, 5), 100.0, (64, 64)), (64, 64))


@pytest.mark.parametrize(
    ("error", "status"),
    [(FileNotFoundError("gone"), "missing"), (PermissionError("no"), "forbidden"), (OSError("broken"), "unreadable")],
)
def test_failed_reads_have_a_status(error, status):
    found = storage_error(error)
    assert (found.status, found.detail) == (status, f"{type(error).__name__}: {error}")
    assert status in images.STATUSES


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EHOSTUNREACH])
def test_what_a_server_said_in_no_known_encoding_is_text_all_the_same(number):
    # As aiohttp tells of `Location: http://caf\xe9:99999/`.
    detail = storage_error(OSError(number, "no URL: http://caf\udce9:99999/")).detail
    assert r"http://caf\udce9:99999/" in detail.encode().decode()


# Unusual but good images: every one of these shows the same smooth picture


SMOOTH = Image.fromarray(smooth(96, 64))
SIXTEEN_BITS = np.asarray(SMOOTH.convert("L")).astype(np.uint16) << 8
COLOURS_16 = (np.asarray(SMOOTH).astype(">u2") << 8).astype(">u2")
UNUSUAL = {
    "cmyk jpeg": (fine_jpeg(SMOOTH.convert("CMYK")), "CMYK", "RGB"),
    "grey jpeg": (fine_jpeg(SMOOTH.convert("L")), "L", "L"),
    "progressive jpeg": (fine_jpeg(SMOOTH, progressive=True), "RGB", "RGB"),
    "grey png of 16 bits": (encode(Image.fromarray(SIXTEEN_BITS)), "I;16", "L"),
    "rgb png of 16 bits": (png(96, 64, b"".join(b"\0" + row.tobytes() for row in COLOURS_16), bit_depth=16), "RGB", "RGB"),
    "png with alpha": (encode(SMOOTH.convert("RGBA")), "RGBA", "RGB"),
    "grey png with alpha": (encode(SMOOTH.convert("LA")), "LA", "L"),
    "png, by any name": (encode(SMOOTH), "RGB", "RGB"),
    "webp": (encode(SMOOTH, "WEBP", lossless=True), "RGB", "RGB"),
    "bmp": (encode(SMOOTH, "BMP"), "RGB", "RGB"),
    "multi-picture jpeg": (encode(SMOOTH, "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))], quality=95), "RGB", "RGB"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_kinds_show_the_right_colours(kind):
    data, mode, shown_as = UNUSUAL[kind]
    header = read_header(data)
    assert (header.width, header.height, header.mode) == (96, 64, mode)
    expected = SMOOTH.convert(shown_as).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
    difference = np.abs(crop_whole(data).astype(int) - np.asarray(expected))
    assert difference.mean() < 1.5
    assert difference.max() <= 12


def test_palette_images_show_their_palettes_colours():
    stripes = np.repeat(np.array([[(200, 10, 30), (10, 120, 250)]], dtype=np.uint8), 8, axis=1).repeat(16, axis=0)
    data = encode(Image.fromarray(stripes).convert("P", palette=Image.Palette.ADAPTIVE))
    assert read_header(data).mode == "P"
    np.testing.assert_array_equal(crop_whole(data, 16)[:, [0, 15]], np.broadcast_to(stripes[0, [0, 15]], (16, 2, 3)))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("crop_size", [(100, 100), (60, 140)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotated_picture_is_upright_in_the_crop_and_maps_back_to_stored_pixels(file_format, orientation, crop_size):
    stored_point = np.array([300, 60])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(disc(*stored_point), file_format, exif=exif)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (400, 300, orientation)
    affine = frame_image(header.width, header.height, crop_size, header.orientation)
    pixels = crop(data, header, affine, crop_size)
    assert pixels.shape == (crop_size[1], crop_size[0], 3)
    np.testing.assert_allclose(transform(affine, middle_of_light(pixels)), stored_point, atol=0.5)
    # A viewer turns the picture as EXIF says; so the crop is what the viewer shows, resized.
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize(crop_size, Image.Resampling.BILINEAR)
    assert np.abs(pixels.astype(int) - np.asarray(shown)).mean() < 0.5


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_upright_in_the_crop_and_measured_upright(orientation, compression):
    """Pillow turns it when it decodes it, and gives the size that it has then."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(disc(300, 60), "TIFF", exif=exif, compression=compression)
    shown = Image.open(io.BytesIO(encode(disc(300, 60), "PNG", exif=exif)))
    shown = ImageOps.exif_transpose(shown)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (*shown.size, 1)
    pixels = crop_whole(data, (60, 140))
    assert np.abs(pixels.astype(int) - np.asarray(shown.resize((60, 140), Image.Resampling.BILINEAR))).mean() < 0.5


def test_a_tiff_that_pillow_turns_by_its_xmp_alone_is_unsupported():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(disc(300, 60), "TIFF", tiffinfo={700: xmp})
    assert status_of(data) == "unsupported"
    np.testing.assert_array_equal(crop_whole(encode(disc(300, 60), "TIFF")), crop_whole(encode(disc(300, 60))))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_means_none(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_header(encode(SMOOTH, "JPEG", exif=exif)).orientation == 1


def test_broken_exif_of_a_jpeg_means_none():
    assert read_header(encode(SMOOTH, "JPEG", exif=b"Exif\0\0not a TIFF header")).orientation == 1


# Where pixels land


@pytest.mark.parametrize(("width", "height"), [(1281, 1281), (1279, 721), (641, 481), (1280, 720), (200, 150)])
@pytest.mark.parametrize("size", [64, 128, 220])
def test_a_scaled_decode_shows_what_a_full_one_does(width, height, size):
    data = fine_jpeg(smooth(width, height))
    full = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BILINEAR)
    difference = crop_whole(data, size).astype(int) - np.asarray(full)
    assert np.abs(difference).mean() < 0.5
    assert np.abs(difference).max() <= 4
    # 255 grey levels lie along the crop: a shift of the right border by an eighth of a pixel would be 32 / size levels.
    assert abs(difference[:, -6:-1, 0].mean()) < 32 / size


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (999, 1001), (640, 480), (321, 322)])
@pytest.mark.parametrize("size", [32, 160, 220, 384])
def test_a_scaled_decode_never_goes_below_the_crops_resolution(width, height, size):
    data = fine_jpeg(smooth(width, height))
    scale = np.array([size / width, size / height])
    pixels = decode(data, read_header(data), scale)
    assert pixels.shape[1] >= min(size, width)
    assert pixels.shape[0] >= min(size, height)
    assert pixels.shape[1] <= width


def test_a_scaled_decode_takes_the_coarsest_quick_scale_that_is_enough():
    data = fine_jpeg(smooth(1280, 1280))
    header = read_header(data)
    assert decode(data, header, np.array([160 / 1280, 160 / 1280])).shape == (160, 160, 3)
    assert decode(data, header, np.array([161 / 1280, 160 / 1280])).shape == (320, 320, 3)
    assert decode(data, header, np.array([321 / 1280, 320 / 1280])).shape == (640, 640, 3)
    assert decode(data, header, np.array([641 / 1280, 640 / 1280])).shape == (1280, 1280, 3)
    assert decode(data, header, np.array([3.0, 3.0])).shape == (1280, 1280, 3)


@pytest.mark.parametrize(("file_format", "num_decoded"), [("JPEG", 3), ("PNG", 1)])
def test_frames_of_one_picture_share_the_decode_of_each_scale_and_look_as_they_do_alone(file_format, num_decoded):
    data = encode(smooth(800, 600), file_format)
    header, size = read_header(data), (100, 100)
    # Squares of 800, 400 (twice), 790 and 80 px on 100: an eighth, a quarter and the whole of the picture's resolution.
    affines = [frame_person((400, 300), scale, size) for scale in (3.2, 1.6, 1.6, 3.15, 0.32)]
    decoded = {}
    for affine in affines:
        np.testing.assert_array_equal(crop(data, header, affine, size, decoded), crop(data, header, affine, size))
    assert len(decoded) == num_decoded


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(1280, 720), (854, 480), (999, 1001), (97, 61)])
@pytest.mark.parametrize("size", [64, 192, 220])
def test_a_white_picture_is_white_up_to_its_border(file_format, width, height, size):
    assert crop_whole(encode(Image.new("RGB", (width, height), "white"), file_format), size).min() == 255


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("framing", ["image", "person"])
@pytest.mark.parametrize("point", [(20, 30), (333, 41), (375, 280), (200, 150)])
def test_a_marker_lands_where_the_affine_says(file_format, framing, point):
    data = encode(disc(*point), file_format)
    size = (128, 160)
    affine = frame_image(400, 300, size) if framing == "image" else frame_person((200, 140), 2.0, size)
    pixels = crop(data, read_header(data), affine, size)
    np.testing.assert_allclose(middle_of_light(pixels), transform(invert(affine), point), atol=0.15)


def test_a_person_crop_is_black_outside_the_picture_and_right_inside():
    # side 250 px at 1 image px per crop px, centre (0, 15 - 15): the picture's corner lies in the middle of the crop.
    picture = smooth(400, 300) // 2 + 100
    affine = frame_person((0, -15), 1.0, (250, 250))
    pixels = crop(encode(picture), read_header(encode(picture)), affine, (250, 250))
    np.testing.assert_allclose(transform(invert(affine), [0, 0]), [124.5, 124.5])
    assert (pixels[:124] == BLACK).all()
    assert (pixels[:, :124] == BLACK).all()
    # The crop's pixel centres lie half-way between the picture's: four of them mix.
    mixed = (picture[:-1, :-1].astype(int) + picture[1:, :-1] + picture[:-1, 1:] + picture[1:, 1:]) / 4
    np.testing.assert_allclose(pixels[125:, 125:].astype(int), mixed[:125, :125], atol=1)


def test_a_crop_at_full_resolution_is_a_copy():
    picture = smooth(400, 300)
    # side 250 of size 250, its edge on the picture's pixel grid: objpos half-way between pixels.
    affine = frame_person((199.5, 144.5), 1.0, (250, 250))
    pixels = crop(encode(picture), read_header(encode(picture)), affine, (250, 250))
    np.testing.assert_array_equal(pixels[:250], picture[35:285, 75:325])


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 48), (160, 160)])
@pytest.mark.parametrize(("center", "scale"), [((200, 150), 0.4), ((200, 150), 1.3), ((20, 280), 0.8), ((395, 10), 0.2)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_crop_with_a_margin_holds_the_pixels_of_the_crop_without(file_format, center, scale, size):
    data = fine_jpeg(smooth(400, 300)) if file_format == "JPEG" else encode(smooth(400, 300))
    header, affine, margin = read_header(data), frame_person(center, scale, size), (13, 9)
    plain = crop(data, header, affine, size).astype(int)
    wide = crop(data, header, with_margin(affine, margin), (size[0] + 26, size[1] + 18))
    assert wide.shape == (size[1] + 18, size[0] + 26, 3)
    np.testing.assert_allclose(cut_margin(wide, size), plain, atol=1)
    assert np.abs(cut_margin(decode_jpeg(encode_jpeg(wide)), size) - plain).mean() < 1.5


def test_a_margin_is_cut_off_all_around():
    pixels = np.arange(7 * 8 * 3, dtype=np.uint8).reshape(7, 8, 3)
    np.testing.assert_array_equal(cut_margin(pixels, (4, 5)), pixels[1:6, 2:6])
    np.testing.assert_array_equal(cut_margin(pixels, (8, 7)), pixels)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("width", "height"), [(3, 5), (7, 7), (7, 20)])
def test_a_tiny_jpeg_is_shown_whole(width, height, size):
    data = fine_jpeg(smooth(width, height))
    full = Image.open(io.BytesIO(data)).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(crop_whole(data, size).astype(int), np.asarray(full), atol=2)


@pytest.mark.parametrize("has_resizer", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_parts_are_resized_as_pillow_does(monkeypatch, seed, has_resizer):
    if has_resizer:
        pytest.importorskip("cykooz_resizer", reason="there is no wheel of cykooz.resizer for Linux on ARM")
    else:
        monkeypatch.setattr(images, "resizer", None)
    random = np.random.default_rng(seed)
    for _ in range(10):
        (width, height), size = random.integers(1, 300, 2), tuple(random.integers(1, 200, 2).tolist())
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        edges = [np.sort(random.choice([0, side, *random.uniform(0, side, 2)], 2, replace=False)) for side in (width, height)]
        (left, right), (top, bottom) = edges
        steps = (right - left) / size[0], (bottom - top) / size[1]
        data, affine = encode(picture), [[steps[0], 0, left - 0.5 + steps[0] / 2], [0, steps[1], top - 0.5 + steps[1] / 2]]
        expected = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        np.testing.assert_allclose(crop(data, read_header(data), np.array(affine), size).astype(int), np.asarray(expected), atol=1)


def test_a_small_picture_is_enlarged():
    assert crop_whole(encode(Image.new("RGB", (1, 1), (10, 20, 30))), 8).tolist() == [[[10, 20, 30]] * 8] * 8


def test_a_slanted_frame_is_refused():
    data = encode(smooth(40, 30))
    with pytest.raises(ValueError, match="parallel to the axes"):
        crop(data, read_header(data), np.array([[1, 0.1, 0], [-0.1, 1, 0]]), (16, 16))


def test_crops_survive_their_own_jpeg():
    pixels = smooth(220, 220)
    decoded = decode_jpeg(encode_jpeg(pixels))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).mean() < 1
    # Chroma at full resolution: a red dot of one pixel keeps its place and its colour.
    dot = np.zeros((16, 16, 3), dtype=np.uint8)
    dot[5, 9] = (255, 0, 0)
    decoded = decode_jpeg(encode_jpeg(dot)).astype(int)
    assert decoded[5, 9, 0] > 200
    assert decoded[5, 10].max() < 50


# Real pictures


@pytest.mark.parametrize("framing", ["image", "person"])
def test_real_pictures_agree_with_a_full_decode(shared_data, framing):
    pictures = sorted((shared_data / "mpii-subset" / "images").iterdir())[::120]
    assert len(pictures) == 10
    size = (220, 220)
    for path in pictures:
        data = path.read_bytes()
        header = read_header(data)
        assert (header.format, header.orientation) == ("JPEG", 1)
        middle = np.array([header.width / 2, header.height / 2])
        affine = frame_image(header.width, header.height, size) if framing == "image" else frame_person(middle, 3.0, size)
        box = (transform(affine, [(-0.5, -0.5), (219.5, 219.5)]) + 0.5).round(6)
        full = Image.open(io.BytesIO(data)).convert("RGB")
        # Pillow resizes no box outside the picture, so it gets a black margin.
        canvas = Image.new("RGB", (header.width + 2000, header.height + 2000))
        canvas.paste(full, (1000, 1000))
        picture, shift = (full, 0) if framing == "image" else (canvas, 1000)
        expected = picture.resize(size, Image.Resampling.BILINEAR, box=tuple((box + shift).ravel()))
        # Measured: 0.22 to 0.85 of 255; libjpeg's scaling and the filter after it are another low-pass than one filter alone.
        assert np.abs(crop(data, header, affine, size).astype(int) - np.asarray(expected)).mean() < 1.2
