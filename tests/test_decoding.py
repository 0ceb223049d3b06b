"""decoding.py: the process decodes as this one does; a picture that kills or keeps it is found, and its neighbours are not touched."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from posepipe import decoding
from posepipe.decoding import Decoder
from posepipe.views import View, decode

MAX_PIXELS = 10**6
VIEWS = [View((32, 32)), View((48, 48))]

# Runs in each decoder's process before anything else. A picture with a marker in its bytes does what the marker says.
CUSTOMIZE = """
import os, signal, sys, time
if "posepipe.decoding" in sys.orig_argv:
    from posepipe import images
    read_header = images.read_header

    def is_first(name):
        path = os.path.join({folder!r}, name)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def read(data, *arguments):
        if b"CRASH" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"ONCE" in data and is_first("once"):
            os.kill(os.getpid(), signal.SIGKILL)
        if b"LEAVE" in data:
            os._exit(3)
        if b"RAISE" in data:
            raise ZeroDivisionError("a bug of a decoder")
        if b"LONG" in data:
            raise ZeroDivisionError("long " * 100_000)
        if b"HANG" in data:
            signal.pause()
        if b"SLOW" in data:
            time.sleep(1.2)
        if b"PRINT" in data:
            print("a library says hello")
            os.write(1, b"and so does its C code")
        return read_header(data, *arguments)

    images.read_header = read
"""


def picture(grey, marker=b"", size=(40, 30), **options):
    """A picture of one grey; what follows the end of an image is passed over by its decoder."""
    sink = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(sink, options.pop("format", "PNG"), **options)
    return sink.getvalue() + marker


def smooth(width=400, height=300):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * x / width, 255 * y / height, 100 + 0 * x], axis=-1).astype(np.uint8))


def encode(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def greys(found):
    """What became of pictures of one grey: that grey, or the status."""
    return [int(each.crops[0][5, 5, 0]) if each.status == "ok" else each.status for each in found]


def requests(*pictures, views=VIEWS):
    return [(data, views, MAX_PIXELS) for data in pictures]


@pytest.fixture(scope="module")
def decoder():
    found = Decoder()
    yield found
    found.close()


@pytest.fixture
def customized(tmp_path, monkeypatch):
    """A decoder whose process does what markers say."""
    (tmp_path / "sitecustomize.py").write_text(CUSTOMIZE.format(folder=str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = Decoder()
    yield found
    found.close()


# The same as in this process


EXIF = Image.Exif()
EXIF[0x0112] = 6
KINDS = {
    "jpeg": encode(smooth(), "JPEG", quality=95),
    "png": encode(smooth(), "PNG"),
    "grey jpeg": encode(smooth().convert("L"), "JPEG", quality=95),
    "cmyk jpeg": encode(smooth().convert("CMYK"), "JPEG", quality=95),
    "turned jpeg": encode(smooth(), "JPEG", quality=95, exif=EXIF),
    "16 bits": encode(Image.fromarray(np.arange(120_000, dtype=np.uint32).reshape(300, 400).astype(np.uint16)), "PNG"),
    "empty": b"",
    "page": b"<html></html>",
    "truncated": encode(smooth(), "JPEG", quality=95)[:2000],
    "too large": encode(Image.new("1", (1001, 1000)), "PNG"),
    "floats": encode(Image.fromarray(np.zeros((10, 20), dtype=np.float32)), "TIFF"),
}
PERSON_VIEWS = [View((64, 40)), View((48, 64), (200.25, 140.5), 0.8), View((32, 32), (10.0, 290.0), 1.5)]


def test_the_process_finds_what_this_one_does(decoder):
    found = dict(zip(KINDS, decoder.decode_all(requests(*KINDS.values(), views=PERSON_VIEWS)), strict=True))
    statuses = {name: each.status for name, each in found.items()}
    bad = {"empty": "empty", "page": "not_an_image", "truncated": "truncated", "too large": "too_large", "floats": "unsupported"}
    assert statuses == {name: bad.get(name, "ok") for name in KINDS}
    for name, each in found.items():
        expected = decode(KINDS[name], PERSON_VIEWS, MAX_PIXELS)
        for attribute in ("status", "detail", "width", "height"):
            assert getattr(each, attribute) == getattr(expected, attribute)
        assert len(each.crops) == len(each.crop_to_image) == (0 if name in bad else 3)
        for ours, theirs in zip((*each.crops, *each.crop_to_image), (*expected.crops, *expected.crop_to_image), strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def test_none_asked_is_none_answered(decoder):
    assert list(decoder.decode_all([])) == []


def test_big_answers_and_big_pictures_do_not_block_one_another(decoder):
    # Far more than a pipe holds, both ways at the same time.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    data = encode(noise, "BMP")
    views = [View((512, 512)), View((512, 512), (300.0, 300.0), 1.0)]
    found = list(decoder.decode_all(requests(*[data] * 20, views=views)))
    expected = decode(data, views)
    assert [each.status for each in found] == ["ok"] * 20
    assert all(np.array_equal(each.crops[1], expected.crops[1]) for each in found)


def test_memory_of_big_pictures_is_given_back(decoder, monkeypatch):
    small, big = picture(1), encode(Image.effect_noise((600, 600), 90), "PNG")
    monkeypatch.setattr(decoding, "_KEPT", 2**16)
    monkeypatch.setattr(decoding, "MOST", 1)
    assert [each.status for each in decoder.decode_all(requests(big, small, big))] == ["ok"] * 3
    assert [os.fstat(memory).st_size > 0 for memory in decoder._memory] == [False, True, False]


def test_pictures_are_taken_as_they_are_needed(decoder):
    taken = []

    def some():
        for request in requests(*[picture(grey) for grey in range(50)]):
            taken.append(request)
            yield request

    found = decoder.decode_all(some())
    assert greys([next(found)]) == [0]
    assert len(taken) == decoding.MOST * (1 + decoding.AHEAD)
    assert greys(found) == list(range(1, 50))


def test_big_pictures_are_sent_alone(decoder, monkeypatch):
    pictures = [picture(grey) for grey in range(20)]
    pictures[2] = encode(Image.effect_noise((600, 600), 90), "PNG")
    monkeypatch.setattr(decoding, "MOST_BYTES", len(pictures[2]))
    assert [len(together) for together in decoding._cut(requests(*pictures))] == [3, 8, 8, 1]
    assert greys(decoder.decode_all(requests(*pictures)))[3:] == list(range(3, 20))


def test_who_stops_in_the_middle_leaves_no_answers_to_the_next(decoder):
    def gone():
        yield from requests(*[picture(grey) for grey in (10, 20, 30)])
        raise RuntimeError("the storage is gone")

    with pytest.raises(RuntimeError, match="the storage is gone"):
        list(decoder.decode_all(gone()))
    assert greys(decoder.decode_all(requests(picture(40), picture(50)))) == [40, 50]
    rows = decoder.decode_all(requests(*[picture(grey) for grey in range(60, 70)]))
    assert greys([next(rows)]) == [60]
    rows.close()
    assert greys(decoder.decode_all(requests(picture(80)))) == [80]


# Pictures that kill


@pytest.mark.parametrize("place", [0, 4, 9], ids=["first", "middle", "last"])
def test_a_picture_that_kills_is_found_and_its_neighbours_are_intact(customized, place):
    pictures = [picture(grey, b"CRASH" if grey == place else b"") for grey in range(10)]
    found = list(customized.decode_all(requests(*pictures)))
    assert greys(found) == ["decoder_crashed" if grey == place else grey for grey in range(10)]
    assert found[place].detail == "killed by SIGSEGV"
    assert (found[place].crops, found[place].width) == ([], None)


def test_pictures_that_kill_one_after_the_other_are_all_found(customized):
    marks = {2: b"CRASH", 3: b"CRASH", 4: b"LEAVE", 7: b"CRASH"}
    found = list(customized.decode_all(requests(*[picture(grey, marks.get(grey, b"")) for grey in range(8)])))
    assert greys(found) == [0, 1, *["decoder_crashed"] * 3, 5, 6, "decoder_crashed"]
    assert [found[place].detail for place in (3, 4)] == ["killed by SIGSEGV", "ended with status 3"]


def test_only_pictures_that_kill_leave_a_decoder_that_works(customized):
    assert greys(customized.decode_all(requests(picture(1, b"CRASH")))) == ["decoder_crashed"]
    assert greys(customized.decode_all(requests(picture(2)))) == [2]


def test_a_process_that_something_else_kills_blames_nobody(customized):
    assert greys(customized.decode_all(requests(*[picture(grey, b"ONCE" if grey == 3 else b"") for grey in range(6)]))) == list(range(6))


def test_who_was_sent_beside_a_picture_that_kills_is_not_suspected_for_that(customized):
    # 5 is in the process when 2 kills it, and dies by something else when it is sent again.
    marks = {2: b"CRASH", 5: b"ONCE"}
    found = customized.decode_all(requests(*[picture(grey, marks.get(grey, b"")) for grey in range(7)]))
    assert greys(found) == [0, 1, "decoder_crashed", 3, 4, 5, 6]


def test_a_process_that_is_killed_between_two_shards_blames_nobody(decoder):
    assert greys(decoder.decode_all(requests(picture(1)))) == [1]
    os.kill(decoder._process.pid, signal.SIGKILL)
    assert greys(decoder.decode_all(requests(*[picture(grey) for grey in range(2, 7)]))) == list(range(2, 7))


def test_what_was_answered_before_a_death_is_read_after_it():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            theirs.send(b'{"found": []}')
            ours.send(b"what it never reads")
        assert decoding._receive_message(ours, 1.0) == {"found": []}
        assert decoding._receive_message(ours, 1.0) is None


def test_an_answer_that_is_none_is_not_waited_for_again():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(b'{"found": [')
        assert decoding._receive_message(ours, 60.0) is None
        with pytest.raises(TimeoutError):
            decoding._receive_message(ours, 0.01)


def test_a_picture_that_hangs_is_found_after_a_while(customized, monkeypatch):
    assert greys(customized.decode_all(requests(picture(0)))) == [0], "it has started"
    monkeypatch.setattr(decoding, "TIMEOUT", 6.0)  # each start of the process is within it
    found = list(customized.decode_all(requests(picture(1), picture(2, b"HANG"), picture(3), picture(4))))
    assert greys(found) == [1, "decoder_crashed", 3, 4]
    assert found[1].detail == "no answer in 6 s"


def test_pictures_that_take_long_together_are_not_taken_for_one_that_hangs(customized, monkeypatch):
    assert greys(customized.decode_all(requests(picture(0)))) == [0], "it has started"
    monkeypatch.setattr(decoding, "TIMEOUT", 3.0)
    pid = customized._process.pid
    assert greys(customized.decode_all(requests(*[picture(grey, b"SLOW") for grey in range(4)]))) == [0, 1, 2, 3]
    assert customized._process.pid == pid


def test_an_exception_that_nobody_foresaw_is_a_row_too(customized):
    found = list(customized.decode_all(requests(picture(1), picture(2, b"RAISE"), picture(3))))
    assert greys(found)[::2] == [1, 3]
    assert found[1].status in ("decoder_crashed", "corrupt")


def test_whatever_an_exception_says_comes_back_as_a_detail(customized):
    found = list(customized.decode_all(requests(picture(1), picture(2, b"LONG"), picture(3))))
    assert greys(found)[::2] == [1, 3]
    assert (found[1].status, found[1].detail[:30]) == ("corrupt", "ZeroDivisionError: long long l")
    assert len(found[1].detail) == decoding._MAX_DETAIL


def test_what_a_decoder_prints_does_not_get_between_the_answers(customized):
    assert greys(customized.decode_all(requests(*[picture(grey, b"PRINT") for grey in range(5)]))) == list(range(5))


# Its end


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_process_ends_when_it_is_closed():
    found = Decoder()
    assert greys(found.decode_all(requests(picture(1)))) == [1]
    pid = found._process.pid
    assert is_running(pid)
    found.close()
    assert not is_running(pid)


def test_the_process_ends_when_its_parent_dies():
    code = (
        "import os, sys\nfrom posepipe.decoding import Decoder\nfrom posepipe.views import View\nfound = Decoder()\n"
        "print(found._process.pid, flush=True)\nlist(found.decode_all([(b'', [View((8, 8))], 100)]))\nos.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    deadline = time.monotonic() + 60
    while is_running(int(parent.stdout)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(int(parent.stdout))
