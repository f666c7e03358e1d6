import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fragile_neurons import ImageData, InputError, load_data
from fragile_neurons.data.batches import batches
from fragile_neurons.data.catalogue import count_images
from fragile_neurons.data.folders import parse_size

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)


def load(root: Path, **options: Any) -> ImageData:
    return load_data(f"folder:{root}", **options)


def pixels(data: ImageData) -> np.ndarray:
    return np.asarray(data.images)


def in_order(data: ImageData) -> np.ndarray:
    """The pixels in the order of the split, not of the sample."""
    return pixels(data)[np.argsort(data.indices)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of grey images, 6 x 4: four cats and three dogs."""
    for name, count in (("dog", 3), ("cat", 4)):
        for number in range(count):
            save(tmp_path / "data" / name / f"{number}.png", noise(6, 4, seed=10 * len(name) + number))
    return tmp_path / "data"


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand from its specification: signature, IHDR, IDAT, IEND."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return pack(">I", len(content)) + kind + content + pack(">I", zlib.crc32(kind + content))

    header = pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# -- which files, in which order


def test_classes_and_files_are_sorted_by_their_characters(tmp_path: Path) -> None:
    names = ["ä/1.png", "b/10.png", "b/2.png", "b/A/1.png", "Z/1.png", "a b/é.png", "a b/f.png", "猫/1.png"]
    for value, name in enumerate(names):
        save(tmp_path / name, np.full((2, 2), value, np.uint8))
    data = load(tmp_path)
    assert data.classes == ("Z", "a b", "b", "ä", "猫")
    # by hand: capitals first, "10" before "2" before "A", accents and others last
    expected = [
        "Z/1.png",
        "a b/f.png",
        "a b/é.png",
        "b/10.png",
        "b/2.png",
        "b/A/1.png",
        "ä/1.png",
        "猫/1.png",
    ]
    assert [names[value] for value in in_order(data)[:, 0, 0, 0]] == expected
    assert data.labels[np.argsort(data.indices)].tolist() == [0, 1, 1, 2, 2, 2, 3, 4]
    assert count_images(f"folder:{tmp_path}", "test") == 8


def test_the_order_does_not_depend_on_how_the_system_lists_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, scandir = load(root), os.scandir

    class Reversed(list[Any]):
        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __next__(self) -> Any:
            if not self:
                raise StopIteration
            return self.pop(0)

        def close(self) -> None:
            pass

    monkeypatch.setattr(
        os, "scandir", lambda path: Reversed(sorted(scandir(path), key=lambda entry: entry.name)[::-1])
    )
    assert load(root).sha256 == plain.sha256


def test_hidden_files_and_folders_and_files_beside_the_classes_are_not_looked_at(root: Path) -> None:
    before = load(root)
    (root / "README.md").write_text("about")
    for name in ("cat/.DS_Store", "cat/.hidden/1.png", ".git/config", "dog/._0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    assert load(root).sha256 == before.sha256
    assert load(root).classes == ("cat", "dog")


@pytest.mark.parametrize("limit", [None, 12])
def test_images_are_those_saved_in_the_order_of_the_sample(tmp_path: Path, limit: int | None) -> None:
    whole = noise(20, 3, 5, 7)
    labels = np.repeat([0, 1], [12, 8])
    for number, (image, label) in enumerate(zip(whole, labels, strict=True)):
        save(tmp_path / f"class{label}" / f"{number:02}.png", image.transpose(1, 2, 0))
    data = load(tmp_path, limit=limit, seed=3)
    memory = ImageData(whole, labels, ("class0", "class1")).sample(limit, 3)
    assert np.array_equal(data.indices, memory.indices)
    assert np.array_equal(pixels(data), pixels(memory))
    assert data.sha256 == memory.sha256 == load(tmp_path, limit=limit, seed=3).sha256
    assert data.sha256 != load(tmp_path, limit=limit, seed=4).sha256
    assert (data.name, data.split, data.classes) == (f"folder:{tmp_path}", "test", ("class0", "class1"))
    images, handed = data[2:5]
    assert torch.equal(images, torch.from_numpy(pixels(memory)[2:5]).float() / 255)
    assert handed.tolist() == memory.labels[2:5].tolist()


@pytest.mark.parametrize(
    "name", ["x" * 255, "🐈", "👩‍🔬 at work", "Screenshot 9.41\u202fAM", "猫", "<b>&", "[red]"]
)
def test_class_folders_may_have_any_readable_name(root: Path, name: str) -> None:
    save(root / name / f"{name[:20]}.png", noise(6, 4))
    assert name in load(root).classes
    assert len(load(root)) == 8


def test_a_class_without_images_is_kept(root: Path) -> None:
    (root / "bird").mkdir()
    data = load(root)
    assert data.classes == ("bird", "cat", "dog")
    assert np.bincount(data.labels).tolist() == [0, 4, 3]


def test_one_image_of_one_class_is_enough(tmp_path: Path) -> None:
    save(tmp_path / "only" / "1.png", noise(1, 1))
    data = load(tmp_path)
    assert (data.images.shape, data.classes, data.labels.tolist()) == ((1, 1, 1, 1), ("only",), [0])
    assert [batch.count for batch in batches(data, 8, CPU)] == [1]


# -- splits


def test_splits_are_the_folders_of_their_names(root: Path, tmp_path: Path) -> None:
    for split, shade in (("train", 1), ("val", 2), ("test", 3)):
        save(tmp_path / "three" / split / "cat" / "1.png", np.full((2, 2), shade, np.uint8))
        data = load(tmp_path / "three", split=split)
        assert (data.split, data.classes) == (split, ("cat",))
        assert pixels(data).max() == shade
    assert load(root, split="test").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "split", "allowed"),
    [
        (("train", "val"), "test", "train, val"),
        (("train", "val"), "dev", "train, val"),
        (("cat", "dog"), "train", "test"),
        (("cat", "train"), "train", "test"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    tmp_path: Path, folders: tuple[str, ...], split: str, allowed: str
) -> None:
    for folder in folders:
        save(tmp_path / folder / "cat" / "1.png", noise(2, 2))
    with pytest.raises(
        InputError, match=rf"no such split\n.*given: +{split} of .*\n.*allowed: {allowed}\n.*PATH/train"
    ):
        load(tmp_path, split=split)


@pytest.mark.parametrize("kind", ["missing", "file", "too long"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x" * 300 if kind == "too long" else kind)
    if kind == "file":
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"there is no such folder\n.*given.*\n.*existing folder\n.*check"):
        load(path)


@pytest.mark.parametrize("folders", [(), ("cat",), ("cat", "dog"), ("test",)])
def test_no_images_at_all_are_refused(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=r"there are no images\n.*given.*folders inside\n.*PATH/cat/1\.png"):
        load(tmp_path)
    with pytest.raises(InputError, match="there are no images"):
        count_images(f"folder:{tmp_path}", "test")


# -- what is accepted


def palette(path: Path, colours: np.ndarray) -> None:
    image = Image.fromarray(colours).quantize(16)
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == "P"


def test_grey_and_colour_together_become_colour(root: Path) -> None:
    colour = noise(6, 4, 3)
    save(root / "dog" / "colour.png", colour)
    whole = in_order(load(root))
    assert whole.shape == (8, 3, 6, 4)
    assert np.array_equal(whole[-1], colour.transpose(2, 0, 1))
    for channel in range(3):
        assert np.array_equal(whole[0, channel], noise(6, 4, seed=30))


@pytest.mark.parametrize(
    "kind", ["opaque RGBA", "opaque LA", "palette", "one bit", "bmp", "tiff", "webp", "ppm", "gif"]
)
def test_still_images_without_loss_are_read_as_they_were_saved(tmp_path: Path, kind: str) -> None:
    colour, path = noise(6, 4, 3), tmp_path / "c" / "1.png"
    path.parent.mkdir()
    if kind == "opaque RGBA":
        save(path, np.dstack([colour, np.full((6, 4), 255, np.uint8)]))
    elif kind == "opaque LA":
        colour = np.repeat(colour[:, :, :1], 3, axis=2)
        save(path, np.dstack([colour[:, :, 0], np.full((6, 4), 255, np.uint8)]))
    elif kind == "palette" or kind == "gif":
        colour = noise(4, 3)[noise(6, 4) % 4]
        palette(path := path.with_suffix(".gif" if kind == "gif" else ".png"), colour)
    elif kind == "one bit":
        colour = np.repeat(colour[:, :, :1] // 128 * 255, 3, axis=2)
        save(path, colour[:, :, 0], mode="1")
    elif kind == "webp":
        save(path.with_suffix(".webp"), colour, lossless=True)
    else:
        save(path.with_suffix(f".{kind}"), colour)
    found = pixels(load(tmp_path))[0].transpose(1, 2, 0)
    assert np.array_equal(np.broadcast_to(found, (6, 4, 3)), colour)
    assert found.shape[2] == (1 if kind == "one bit" else 3)


def test_a_file_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    Image.fromarray(noise(6, 4, 3)).save(tmp_path / "c" / "really.png", format="JPEG")
    with Image.open(tmp_path / "c" / "really.png") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(pixels(load(tmp_path))[0], expected)


# -- what is refused


def transparent(path: Path) -> None:
    pixels = noise(6, 4, 4)
    pixels[..., 3] = 255
    pixels[2, 2, 3] = 254
    save(path, pixels)


def transparent_palette(path: Path) -> None:
    Image.fromarray(noise(6, 4) % 4).convert("P").save(path, transparency=1)


def animation(path: Path) -> None:
    first, second = (Image.fromarray(noise(6, 4, seed=seed)) for seed in (1, 2))
    first.save(path, format="GIF", save_all=True, append_images=[second])


def pages(path: Path) -> None:
    first, second = (Image.fromarray(noise(6, 4, seed=seed)) for seed in (1, 2))
    first.save(path, format="TIFF", save_all=True, append_images=[second])


def cut(path: Path, format: str) -> None:
    Image.fromarray(noise(64, 64, 3)).save(path, format=format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupted(path: Path) -> None:
    save(path, noise(64, 64, 3))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def outside(path: Path) -> None:
    save(path.parent.parent.parent / "outside.png", noise(6, 4))
    path.symlink_to(path.parent.parent.parent / "outside.png")


def relative_outside(path: Path) -> None:
    save(path.parent.parent.parent / "outside.png", noise(6, 4))
    path.symlink_to("../../outside.png")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "transparent": (transparent, "it is transparent: lay it on a background first"),
    "transparent palette": (transparent_palette, "it is transparent"),
    "CMYK": (lambda path: save(path, noise(6, 4, 3), "CMYK", format="JPEG"), "its mode is CMYK: save it as"),
    "16-bit grey": (lambda path: save(path, noise(6, 4).astype(np.uint16)), "its mode is I;16: save it as"),
    "16-bit RGB": (
        lambda path: path.write_bytes(png(4, 6, 16, 2, bytes(6 * 25))),
        "it has 16 bits a channel",
    ),
    "16-bit with alpha": (lambda path: path.write_bytes(png(4, 6, 16, 4, bytes(6 * 17))), "it has 16 bits"),
    "float": (lambda path: save(path, noise(6, 4).astype(np.float32), format="TIFF"), "its mode is F"),
    "animation": (animation, "it has 2 frames"),
    "pages": (pages, "it has 2 frames"),
    "half a PNG": (lambda path: cut(path, "PNG"), "."),
    "half a JPEG": (lambda path: cut(path, "JPEG"), "truncated"),
    "corrupted": (corrupted, "."),
    "empty": (lambda path: path.write_bytes(b""), "cannot identify image file 'file'"),
    "text": (lambda path: path.write_text("<html>sign in</html>"), "cannot identify image file 'file'"),
    "format": (lambda path: save(path, noise(6, 4), format="ICO"), "cannot identify image file 'file'"),
    "bomb": (lambda path: path.write_bytes(png(30_000, 30_000, 8, 2, b"")), "900000000 pixels.*bomb"),
    "smaller bomb": (lambda path: path.write_bytes(png(12_000, 12_000, 8, 0, b"")), "144000000 pixels.*bomb"),
    "fifo": (os.mkfifo, "it is not a file"),
    "broken link": (lambda path: path.symlink_to("nowhere.png"), "it is not a file"),
    "circular link": (lambda path: path.symlink_to(path.name), "it is not a file"),
    "link out": (outside, "it is a link that leads out of the folder"),
    "relative link out": (relative_outside, "it is a link that leads out of the folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_used_is_named_with_its_reason_or_left_out(root: Path, kind: str) -> None:
    before = load(root)
    make, reason = BAD[kind]
    make(root / "dog" / "x.png")  # after all others, so that their places stay
    with pytest.raises(
        InputError,
        match=rf"1 of 8 images cannot be used\n.*given: +{root}\n +dog/x\.png: .*{reason}.*\n"
        r".*allowed: still images .*8 bits a channel\n.*--skip-bad",
    ):
        load(root)
    data = load(root, skip_bad=True)
    assert len(data.excluded) == 1
    assert data.excluded[0].startswith("dog/x.png: ")
    assert sorted(data.indices) == list(range(7))
    assert np.array_equal(in_order(data), in_order(before))
    assert data.labels[np.argsort(data.indices)].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_skipping_leaves_the_places_of_the_others_unchanged(root: Path) -> None:
    whole = load(root)
    decoded = pixels(whole)
    (root / "cat" / "1.png").write_bytes(b"damaged")
    (root / "dog" / "0.png").write_bytes(b"damaged")
    data = load(root, skip_bad=True)
    kept = ~np.isin(whole.indices, [1, 4])  # cats are 0 to 3, dogs 4 to 6
    assert np.array_equal(data.indices, whole.indices[kept])
    assert np.array_equal(data.labels, whole.labels[kept])
    assert np.array_equal(pixels(data), decoded[kept])
    assert sorted(text.split(":")[0] for text in data.excluded) == ["cat/1.png", "dog/0.png"]
    assert whole.excluded == ()


@pytest.mark.parametrize(("bad", "dots"), [(10, False), (11, True)])
def test_up_to_ten_files_are_listed(root: Path, bad: int, dots: bool) -> None:
    for number in range(bad):
        (root / "dog" / f"bad{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match=f"{bad} of {bad + 7} images cannot be used") as error:
        load(root)
    assert str(error.value).count("dog/bad") == 10
    assert ("\n           ...\n" in str(error.value)) == dots


def test_nothing_is_left_to_skip_to_where_every_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 1 images cannot be used"):
        load(tmp_path, skip_bad=True)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"line\nbreak.png", b"\x1b[31m.png", "\u202egnp".encode()])
def test_file_names_that_would_garble_a_message_are_listed_escaped(root: Path, name: bytes) -> None:
    (root / "dog" / "0.png").rename(os.fsdecode(os.fsencode(root / "dog") + b"/" + name))
    with pytest.raises(InputError, match="its name is not UTF-8 text, or has control characters") as error:
        load(root)
    assert ascii("dog/" + os.fsdecode(name)) in str(error.value)
    assert os.fsdecode(name) not in str(error.value)
    assert len(load(root, skip_bad=True)) == 6


def test_class_folders_of_unreadable_names_are_refused(root: Path) -> None:
    os.mkdir(os.fsencode(root) + b"/\xff\xfe")
    with pytest.raises(
        InputError, match=r"class folder cannot be used\n.*udcff.*\n.*UTF-8.*\n.*rename or copy"
    ):
        load(root)


def test_links_inside_the_folder_are_followed(root: Path) -> None:
    (root / "dog" / "9.png").symlink_to("../cat/0.png")
    (root / "tom").symlink_to("cat")
    data = load(root)
    assert data.classes == ("cat", "dog", "tom")
    whole = in_order(data)
    assert len(whole) == 12
    assert np.array_equal(whole[7], whole[0])
    assert np.array_equal(whole[8:], whole[:4])


def test_class_folders_that_lead_out_are_refused(root: Path, tmp_path: Path) -> None:
    save(tmp_path / "other" / "1.png", noise(6, 4))
    (root / "other").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match=r"class folder cannot be used\n.*'other'\n.*lead out.*\n.*copy"):
        load(root)


def test_a_link_to_itself_beside_the_classes_is_no_class(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    assert load(root).classes == ("cat", "dog")


def test_a_folder_that_cannot_be_listed_is_never_left_out_silently(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = root
    monkeypatch.chdir(root / "dog")
    for _ in range(17):  # 17 x 251 characters are more than a path may have
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    with pytest.raises(InputError, match=r"a folder of images cannot be read\n.*too long\n.*\n.*permissions"):
        load(place)


# -- sizes


def test_mixed_sizes_are_refused_with_a_size_that_works(root: Path) -> None:
    save(root / "dog" / "wide.png", noise(2, 9))
    with pytest.raises(
        InputError, match=r"2 different sizes\n.*: 6x4, 2x9 \(height x width.*\n.*one size\n.*--resize 6x4$"
    ):
        load(root)
    resized = in_order(load(root, resize="6x4"))
    assert resized.shape == (8, 1, 6, 4)
    assert np.array_equal(resized[:7], in_order(load_without(root, "dog/wide.png")))


def load_without(root: Path, name: str) -> ImageData:
    (root / name).unlink()
    return load(root)


@pytest.mark.parametrize(
    ("text", "size"), [("32", (32, 32)), ("32x48", (32, 48)), (" 7 ", (7, 7)), ("1x1", (1, 1))]
)
def test_sizes_are_a_side_or_height_and_width(root: Path, text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size
    assert load(root, resize=text).images.shape == (7, 1, *size)


def test_shrinking_by_half_keeps_smooth_images_smooth(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 128, 2, dtype=np.uint8)[None], 32, axis=0)
    save(tmp_path / "c" / "1.png", ramp)
    found = pixels(load(tmp_path, resize="16x32"))[0, 0].astype(int)
    # a ramp of 2 per pixel has 4 per pixel at half its size, whatever the weights of a symmetric filter
    assert (np.diff(found[:, 2:-2], axis=1) == 4).all()
    assert (found == found[0]).all()


@pytest.mark.parametrize(
    "text", ["", "0", "0x5", "5x0", "-3", "3.5", "32x", "x32", "32X48", "1e3", "4097", "999999", "big"]
)
def test_texts_that_are_no_size_are_refused(root: Path, text: str) -> None:
    with pytest.raises(
        InputError, match=r"this is not a size\n.*\n.*height x width, up to 4096\n.*--resize 32x48"
    ):
        load(root, resize=text)


@pytest.mark.parametrize("option", [{"resize": "8"}, {"skip_bad": True}])
@pytest.mark.parametrize("name", ["mnist", "npz:x.npz"])
def test_resizing_and_skipping_are_refused_for_other_data(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=rf"for folders of images\n.*with {name}\n.*folder:PATH\n.*leave the"
    ):
        load_data(name, **option)


# -- one part after the other


def test_nothing_is_decoded_until_it_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, opened = load(root), list[Path]()
    image_open = Image.open

    def counted(path: Path, **options: Any) -> Image.Image:
        opened.append(path)
        return image_open(path, **options)

    monkeypatch.setattr(Image, "open", counted)
    assert count_images(f"folder:{root}", "test") == 7
    chosen = data.take(np.array([6, 2, 1, 0])).images[1:3]
    assert opened == []
    assert chosen.shape == (2, 1, 6, 4)
    files = [root / name for name in ("cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png")]
    files += [root / name for name in ("dog/0.png", "dog/1.png", "dog/2.png")]
    np.asarray(chosen)
    assert opened == [files[row] for row in data.indices[[2, 1]]]
    opened.clear()
    data[0:3]
    assert opened == [files[row] for row in data.indices[:3]]


@pytest.mark.parametrize("change", ["removed", "damaged", "a link out"])
def test_an_image_that_changed_since_is_said(root: Path, tmp_path: Path, change: str) -> None:
    data = load(root)
    (root / "cat" / "0.png").unlink()
    if change == "damaged":
        (root / "cat" / "0.png").write_bytes(b"damaged")
    if change == "a link out":
        outside(root / "cat" / "0.png")
    with pytest.raises(
        InputError,
        match=r"has changed since the run was planned\n.*cat/0\.png: .*\n.*as they were\n.*new run",
    ):
        data[:]


def test_twenty_thousand_small_files_are_listed_without_opening_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in range(10):
        save(tmp_path / str(label) / "0.png", noise(1, 1, seed=label))
        for number in range(1, 2_000):
            os.link(tmp_path / str(label) / "0.png", tmp_path / str(label) / f"{number}.png")
    image_open, opened = Image.open, list[Path]()

    def counted(path: Path, **options: Any) -> Image.Image:
        opened.append(path)
        return image_open(path, **options)

    monkeypatch.setattr(Image, "open", counted)
    assert count_images(f"folder:{tmp_path}", "test") == 20_000
    data = load(tmp_path, limit=100)
    assert len(opened) == 100  # each of the sample once, the others never
    assert np.bincount(data.labels).tolist() == [10] * 10


def test_classes_beside_splits_are_refused_and_one_class_named_train_is_not(tmp_path: Path) -> None:
    for name in ("train", "bus"):
        save(tmp_path / name / "0.png", noise(4, 4))
    assert load_data(f"folder:{tmp_path}").classes == ("bus", "train")
    save(tmp_path / "val" / "0.png", noise(4, 4))
    with pytest.raises(InputError, match=r"mixes splits and classes\n.*bus, train, val"):
        load_data(f"folder:{tmp_path}")


def test_a_photograph_with_a_preview_behind_it_is_the_photograph(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 90, np.uint8)
    preview = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        photograph = Image.fromarray(pixels)
        photograph.save(tmp_path / label / "0.jpg", "MPO", save_all=True, append_images=[preview])
    data = load_data(f"folder:{tmp_path}")
    assert np.abs(np.asarray(data.images).astype(int) - 90).max() <= 1


READ_ALL = """
import resource, sys, torch
import fragile_neurons as fn
from fragile_neurons.data.batches import batches

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak()
data = fn.load_data(f"folder:{sys.argv[1]}")
data.sha256
for batch in batches(data, 64, torch.device("cpu")):
    pass
print(len(data), peak() - before)
"""


@pytest.mark.parametrize(
    ("images", "megabytes"), [(8_000, 60), pytest.param(100_000, 110, marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_images(tmp_path: Path, images: int, megabytes: int) -> None:
    """8,000 images are 94 MB of pixels, 100,000 are 1.2 GB; what grows is the list of names."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for label in ("cat", "dog"):
        first = tmp_path / label / "0.png"
        first.parent.mkdir()
        Image.fromarray(pixels).save(first)
        for number in range(1, images // 2):
            os.link(first, first.with_name(f"{number}.png"))
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, grown = done.stdout.split()
    assert int(count) == images
    assert float(grown) < megabytes
