from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.tasks.image_classification import ImagePreprocessing
from training.errors import DataError
from training.recipes.digits import digits
from training.tasks.image_classification.digits import Digits
from training.tasks.image_classification.image_folder import ImageFolder
from training.tasks.image_classification.images import hash_images, open_images, split_images

COLOUR = ImagePreprocessing(height=16, width=24, mode="RGB")


def paint(path: Path, seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, "ash" and "birch", with six pictures of many kinds each."""
    root = tmp_path / "trees"
    for label, first in (("ash", 0), ("birch", 100)):
        paint(root / label / "a.png", first)
        paint(root / label / "b.jpg", first + 1, (7, 90))
        paint(root / label / "c.bmp", first + 2, mode="L")
        paint(root / label / "d.gif", first + 3, mode="P")
        paint(root / label / "e.webp", first + 4, mode="RGBA")
        paint(root / label / "deep" / "f.PNG", first + 5, (4, 4))
        (root / label / ".DS_Store").write_text("not a picture, and not ours")
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("beside the classes; in no class")
    return root


def test_pictures_are_prepared_exactly_as_serving_does(folder: Path) -> None:
    images = ImageFolder(folder, COLOUR)
    assert images.labels == ("ash", "birch")
    assert images.targets.tolist() == [0] * 6 + [1] * 6
    files = sorted(path for path in folder.rglob("*/*") if path.is_file() and path.name[0] != ".")
    expected = np.stack([COLOUR.decode(path.read_bytes()) for path in files])
    np.testing.assert_array_equal(images.read(np.arange(12)), expected)
    assert expected.shape == (12, 3, 16, 24)
    # A process that gets the folder sent prepares the same pictures again.
    copy = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(copy.read(np.array([5, 0])), expected[[5, 0]])


def test_digits_from_files_are_the_digits_from_scikit_learn(tmp_path: Path) -> None:
    preprocessing = digits().data.preprocessing
    built_in = Digits(preprocessing)
    pixels = built_in.read(np.arange(len(built_in.targets)))
    for index, (picture, target) in enumerate(zip(pixels, built_in.targets, strict=True)):
        path = tmp_path / built_in.labels[target] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture[0]).save(path)
    from_files = ImageFolder(tmp_path, preprocessing)
    assert from_files.labels == built_in.labels
    ours = sorted(zip(from_files.targets.tolist(), map(bytes, _rows(from_files)), strict=True))
    theirs = sorted(zip(built_in.targets.tolist(), map(bytes, _rows(built_in)), strict=True))
    assert ours == theirs


def _rows(images: Digits | ImageFolder) -> list[np.ndarray]:
    return list(images.read(np.arange(len(images.targets))))


def test_names_and_order_of_files_do_not_matter(folder: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    for label in ("ash", "birch"):
        (renamed / label).mkdir(parents=True)
        files = [path for path in (folder / label).rglob("*") if path.suffix]
        for number, path in enumerate(reversed(files)):
            shutil.copyfile(path, renamed / label / f"{number}.picture")
    one, other = ImageFolder(folder, COLOUR), ImageFolder(renamed, COLOUR)
    assert hash_images(one) == hash_images(other)
    assert split_images(one).hash == split_images(other).hash
    held_out = [split_images(images).held_out for images in (one, other)]
    np.testing.assert_array_equal(one.read(held_out[0]), other.read(held_out[1]))


def break_picture(folder: Path) -> None:
    picture = folder / "birch" / "a.png"
    picture.write_bytes(picture.read_bytes()[:200])


def add_text(folder: Path) -> None:
    (folder / "ash" / "readme.txt").write_text("hello")


def leave_one_class(folder: Path) -> None:
    shutil.rmtree(folder / "birch")


def leave_no_class(folder: Path) -> None:
    shutil.rmtree(folder / "ash")
    shutil.rmtree(folder / "birch")


def empty_class(folder: Path) -> None:
    (folder / "cedar").mkdir()


def too_few(folder: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (folder / "ash" / name).unlink()
    # A copy is not another picture.
    shutil.copyfile(folder / "ash" / "c.bmp", folder / "ash" / "copy.bmp")


def same_in_both(folder: Path) -> None:
    shutil.copyfile(folder / "ash" / "a.png", folder / "birch" / "z.png")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (break_picture, r"birch/a\.png: the image is damaged"),
        (add_text, r"ash/readme\.txt: the body is not an image"),
        (leave_one_class, r"trees holds 1 class folder; expected two or more"),
        (leave_no_class, r"trees holds 0 class folders; expected two or more"),
        (empty_class, r"cedar: the class has no pictures"),
        (too_few, r"class 'ash' has 4 different pictures; expected at least 5"),
        (same_in_both, r"ash/a\.png and .*birch/z\.png are the same picture in two classes"),
        (shutil.rmtree, r"trees: no such folder"),
    ],
)
def test_what_cannot_be_used_is_named(
    folder: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=sentence) as caught:
        ImageFolder(folder, COLOUR)
    assert "\n" not in str(caught.value)


def test_source_and_folder_belong_together(folder: Path) -> None:
    with pytest.raises(DataError, match="--data DIR"):
        open_images(digits(own_data=True).data, None)
    with pytest.raises(DataError, match="drop --data"):
        open_images(digits().data, folder)
