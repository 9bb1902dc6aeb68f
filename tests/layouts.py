"""Layouts of published data sets, as files to make: the table of docs/data.md and its tests.

``python tests/layouts.py`` writes the table; a test compares it with the page.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import meta_mat

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "data.md"
BEGIN, END = "<!-- made by tests/layouts.py -->\n", "<!-- end -->\n"

Files = dict[str, str | bytes]


def under(folder: str, files: Files) -> Files:
    return {f"{folder}{name}": text for name, text in files.items()}


def renamed(train: str, val: str) -> Files:
    return {name.replace("train/", f"{train}/").replace("val/", f"{val}/"): "" for name in SPLIT}


BACKSLASH = "\\"
A, B = "n01440764", "n02102040"
SOLUTION = "ImageId,PredictionString\n" + "".join(
    f"ILSVRC2012_val_{number:08d},{wnid} 85 1 499 272 \n" for number, wnid in ((1, B), (2, A))
)
LIST = f"ILSVRC2012_val_00000001.JPEG {B}\nILSVRC2012_val_00000002.JPEG {A}\n"
NUMBERS = LIST.replace(A, "0").replace(B, "1")  # positions among the sorted ids
# The kit has numbers of its own: here B is 1.
KIT: Files = {
    "ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(2012, {1: (B, "dog"), 2: (A, "tench")}, 3),
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "1\n2\n",
}
KIT_TAR = under("ILSVRC2012_devkit_t12.tar.gz!", KIT)
TRAIN: Files = {f"train/{A}/{A}_{number}.JPEG": "" for number in (18, 7)} | {
    f"train/{B}/{B}_4.JPEG": ""
}
FLAT = {f"val/ILSVRC2012_val_{number:08d}.JPEG": "" for number in (1, 2)}
VAL_TAR = {name.replace("val/", "ILSVRC2012_img_val.tar!"): "" for name in FLAT}
CLASS_TARS = {f"train/{name.split('/')[1]}.tar!{name.split('/')[2]}": "" for name in TRAIN}
# Expected: each image and its class.
OF_TRAIN = {f"{A}_18.JPEG": A, f"{A}_7.JPEG": A, f"{B}_4.JPEG": B}
OF_VAL = {"ILSVRC2012_val_00000001.JPEG": B, "ILSVRC2012_val_00000002.JPEG": A}
SPLIT = {"train/cat/1.jpg": "", "train/dog/2.jpg": "", "val/cat/3.jpg": "", "val/dog/4.jpg": ""}
OF_SPLIT = ({"1.jpg": "cat", "2.jpg": "dog"}, {"3.jpg": "cat", "4.jpg": "dog"})
WHOLE = {f"{name}/{number}.jpg": "" for name, number in (("cat", 1), ("cat", 2), ("dog", 3))}
WHOLE |= {"dog/4.jpg": ""}
OF_WHOLE = {"1.jpg": "cat", "2.jpg": "cat", "3.jpg": "dog", "4.jpg": "dog"}
FLAT_PETS = {f"pets/{number}.jpg": "" for number in range(1, 5)}
VAL_FOLDERS = {name: "" for name in SPLIT if name.startswith("val/")}
HF: Files = {
    f"data/train_images_0.tar.gz!{A}_18_{A}.JPEG": "",
    f"data/train_images_1.tar.gz!{A}_7_{A}.JPEG": "",
    f"data/train_images_1.tar.gz!{B}_4_{B}.JPEG": "",
    f"data/val_images.tar.gz!ILSVRC2012_val_00000001_{B}.JPEG": "",
    f"data/val_images.tar.gz!ILSVRC2012_val_00000002_{A}.JPEG": "",
    "data/test_images.tar.gz!ILSVRC2012_test_00000001.JPEG": "",
    "classes.py": "IMAGENET2012_CLASSES = {}",
}
OF_HF = (
    {f"{A}_18_{A}.JPEG": A, f"{A}_7_{A}.JPEG": A, f"{B}_4_{B}.JPEG": B},
    {f"ILSVRC2012_val_00000001_{B}.JPEG": B, f"ILSVRC2012_val_00000002_{A}.JPEG": A},
)
TINY: Files = {
    "wnids.txt": f"{B}\n{A}\n",
    "words.txt": f"{A}\ttench, Tinca tinca\n{B}\tEnglish springer\n",
    f"train/{A}/{A}_boxes.txt": f"{A}_0.JPEG\t0\t10\t63\t58\n",
    f"train/{A}/images/{A}_0.JPEG": "",
    f"train/{B}/{B}_boxes.txt": f"{B}_0.JPEG\t0\t10\t63\t58\n",
    f"train/{B}/images/{B}_0.JPEG": "",
    "val/val_annotations.txt": f"val_0.JPEG\t{B}\t0\t32\t44\t62\nval_1.JPEG\t{A}\t5\t0\t57\t31\n",
    "val/images/val_0.JPEG": "",
    "val/images/val_1.JPEG": "",
    "test/images/test_0.JPEG": "",
}
OF_TINY = ({f"{A}_0.JPEG": A, f"{B}_0.JPEG": B}, {"val_0.JPEG": B, "val_1.JPEG": A})
KAGGLE: Files = {
    "LOC_synset_mapping.txt": f"{A} tench, Tinca tinca\n{B} English springer\n",
    "LOC_train_solution.csv": f"ImageId,PredictionString\n{A}_18,{A} 1 2 3 4 \n",
    "LOC_val_solution.csv": SOLUTION,
    "LOC_sample_submission.csv": "ImageId,PredictionString\n",
    f"ILSVRC/Annotations/CLS-LOC/train/{A}/{A}_18.xml": "<annotation/>",
    "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": "<annotation/>",
    "ILSVRC/ImageSets/CLS-LOC/val.txt": "ILSVRC2012_val_00000001 1\nILSVRC2012_val_00000002 2\n",
    **{f"ILSVRC/Data/CLS-LOC/{name}": "" for name in TRAIN | FLAT},
    "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": "",
}


@dataclass(frozen=True)
class Layout:
    """Files to make, and the images and classes that ``prepare`` must find in them.

    ``ARCHIVE!MEMBER`` is a member of an archive; files without text are images.
    """

    files: Files
    train: dict[str, str] | None
    val: dict[str, str]
    source: str = "."  # below the folder with these files
    labels: str | None = None  # the same
    val_percent: float = 10
    strays: tuple[str, ...] = ()


def unsplit(files: Files, images: dict[str, str], **settings: Any) -> Layout:
    """A layout without splits: ``prepare`` holds out some of the images."""
    return Layout(files, images, {}, **settings)


LAYOUTS = {
    "class folders": Layout(SPLIT, *OF_SPLIT),
    "class folders in a folder": Layout(under("pets/", SPLIT), *OF_SPLIT),
    "`training/`, `validation/`": Layout(renamed("training", "validation"), *OF_SPLIT),
    "`Train/`, `Val/`": Layout(renamed("Train", "Val"), *OF_SPLIT),
    "`TRAIN/`, `TEST/`": Layout(renamed("TRAIN", "TEST"), *OF_SPLIT),
    "`training_set/training_set/`, `test_set/test_set/`": Layout(
        renamed("training_set/training_set", "test_set/test_set"), *OF_SPLIT
    ),
    "`train_images/`, `val_images/`": Layout(renamed("train_images", "val_images"), *OF_SPLIT),
    "`val/` and an unlabelled `test/`": Layout({**SPLIT, "test/9.jpg": ""}, *OF_SPLIT),
    "images in folders below the class": Layout(
        {name.replace("/1", "/images/1").replace("/3", "/a/b/3"): "" for name in SPLIT}, *OF_SPLIT
    ),
    "other formats: AVIF, JPEG 2000": Layout(
        {name.replace("1.jpg", "1.avif").replace("4.jpg", "4.jp2"): "" for name in SPLIT},
        {"1.avif": "cat", "2.jpg": "dog"},
        {"3.jpg": "cat", "4.jp2": "dog"},
    ),
    "macOS's and Windows' files beside them": Layout(
        {
            **SPLIT,
            "__MACOSX/train/cat/._1.jpg": "",
            "train/__MACOSX/cat/._1.jpg": "",
            "train/cat/Thumbs.db": "x",
            "val/.DS_Store": "x",
            "val/dog/desktop.ini": "x",
        },
        *OF_SPLIT,
    ),
    "class folders without a split": unsplit(WHOLE, OF_WHOLE),
    "class folders without a split, in folders": unsplit(under("pets/images/", WHOLE), OF_WHOLE),
    "class folders beside `__MACOSX/`": unsplit({**WHOLE, "__MACOSX/cat/._1.jpg": ""}, OF_WHOLE),
    "a class named like a split": unsplit(
        {name.replace("cat/", "train/"): "" for name in WHOLE},
        {name: label.replace("cat", "train") for name, label in OF_WHOLE.items()},
    ),
    "a flat folder and `labels=FILE`": unsplit(
        {**FLAT_PETS, "pets.csv": "image,label\n1,a cat\n2,a cat\n3.jpg,dog\n4.jpg,dog\n"},
        {"1.jpg": "a cat", "2.jpg": "a cat", "3.jpg": "dog", "4.jpg": "dog"},
        source="pets",
        labels="pets.csv",
    ),
    "a flat folder with `labels.csv`": unsplit(
        {**FLAT_PETS, "pets/labels.csv": "1.jpg,cat\n2.jpg,cat\n3.jpg,dog\n4.jpg,dog\n"}, OF_WHOLE
    ),
    "a flat folder, WordNet ids in the names": unsplit(
        {f"{A}_1.JPEG": "", f"{A}_2.JPEG": "", f"{B}_3.JPEG": "", f"{B}_4.JPEG": ""},
        {f"{A}_1.JPEG": A, f"{A}_2.JPEG": A, f"{B}_3.JPEG": B, f"{B}_4.JPEG": B},
    ),
    "flat splits with `train.txt`, `val.txt`": Layout(
        {
            "train/1.jpg": "",
            "train/2.jpg": "",
            "val/3.jpg": "",
            "val/4.jpg": "",
            "train.txt": "train/1.jpg cat\ntrain/2.jpg dog\n",
            "val.txt": "val/3.jpg cat\nval/4.jpg dog\n",
        },
        *OF_SPLIT,
    ),
    "ILSVRC unpacked, `LOC_val_solution.csv`": Layout(
        {**TRAIN, **FLAT, "LOC_val_solution.csv": SOLUTION}, OF_TRAIN, OF_VAL
    ),
    "ILSVRC unpacked, Caffe's `val.txt`": Layout(
        {**TRAIN, **FLAT, "val.txt": NUMBERS}, OF_TRAIN, OF_VAL
    ),
    "ILSVRC unpacked, `val/val.txt` with WordNet ids": Layout(
        {**TRAIN, **FLAT, "val/val.txt": LIST}, OF_TRAIN, OF_VAL
    ),
    "ILSVRC unpacked, TensorFlow's list of WordNet ids": Layout(
        {**TRAIN, **FLAT, "imagenet_2012_validation_synset_labels.txt": f"{B}\n{A}\n"},
        OF_TRAIN,
        OF_VAL,
    ),
    "ILSVRC unpacked, `labels=FILE`": Layout(
        {**TRAIN, **FLAT, "mine/list": LIST.replace(" ", "\t")},
        OF_TRAIN,
        OF_VAL,
        labels="mine/list",
    ),
    "ILSVRC unpacked, development kit unpacked": Layout({**TRAIN, **FLAT, **KIT}, OF_TRAIN, OF_VAL),
    "ILSVRC unpacked, development kit as a tar": Layout(
        {**TRAIN, **FLAT, **KIT_TAR}, OF_TRAIN, OF_VAL
    ),
    "ILSVRC unpacked, `labels=` the kit's ground truth": Layout(
        {**TRAIN, **FLAT, **under("kit/", KIT)},
        OF_TRAIN,
        OF_VAL,
        labels="kit/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
    ),
    "ILSVRC, training images unpacked and the validation tar": Layout(
        {
            **{name.replace("train/", "ILSVRC2012_img_train/"): "" for name in TRAIN},
            **VAL_TAR,
            **KIT_TAR,
        },
        OF_TRAIN,
        OF_VAL,
    ),
    "ILSVRC, `train/` of class tars": Layout(
        {**CLASS_TARS, **FLAT, "LOC_val_solution.csv": SOLUTION}, OF_TRAIN, OF_VAL
    ),
    "class tars beside their unpacked folders": Layout(
        {**TRAIN, **CLASS_TARS, **FLAT, "val.txt": LIST},
        OF_TRAIN,
        OF_VAL,
        strays=(f"train/{A}.tar", f"train/{B}.tar"),
    ),
    "class tars without a split, compressed": unsplit(
        {name.replace("/", ".tar.gz!"): "" for name in WHOLE}, OF_WHOLE
    ),
    "Kaggle's ILSVRC": Layout(KAGGLE, OF_TRAIN, OF_VAL),
    "Kaggle's ILSVRC, given at `ILSVRC`": Layout(KAGGLE, OF_TRAIN, OF_VAL, "ILSVRC"),
    "Kaggle's ILSVRC, given at `Data`": Layout(KAGGLE, OF_TRAIN, OF_VAL, "ILSVRC/Data"),
    "Kaggle's ILSVRC, given at `CLS-LOC`": Layout(KAGGLE, OF_TRAIN, OF_VAL, "ILSVRC/Data/CLS-LOC"),
    "Kaggle's ILSVRC as a zip": Layout(
        under("imagenet.zip!", KAGGLE), OF_TRAIN, OF_VAL, "imagenet.zip"
    ),
    "Hugging Face's tars": Layout(HF, *OF_HF),
    "Hugging Face's tars, given at `data`": Layout(HF, *OF_HF, "data"),
    "Tiny ImageNet": Layout(TINY, *OF_TINY),
    "Tiny ImageNet's zip": Layout(
        under("tiny-imagenet-200.zip!tiny-imagenet-200/", TINY), *OF_TINY, "tiny-imagenet-200.zip"
    ),
    "a zip of class folders": Layout(under("pets.zip!", SPLIT), *OF_SPLIT, "pets.zip"),
    "a zip with `__MACOSX/`": Layout(
        {**under("a.zip!pets/", SPLIT), "a.zip!__MACOSX/pets/train/cat/._1.jpg": ""},
        *OF_SPLIT,
        "a.zip",
    ),
    "a zip with Windows' separators": Layout(
        {f"a.zip!{name.replace('/', BACKSLASH)}": "" for name in SPLIT}, *OF_SPLIT, "a.zip"
    ),
    "a tar of class folders": Layout(under("pets.tar!./pets/", SPLIT), *OF_SPLIT, "pets.tar"),
    "a tar without a split": unsplit(under("pets.tgz!pets/", WHOLE), OF_WHOLE, source="pets.tgz"),
    "`train.tar`, `val.tar`": Layout(
        {name.replace("/", ".tar!", 1): "" for name in SPLIT}, *OF_SPLIT
    ),
    "`train.zip`, `val.zip` with folders of these names": Layout(
        {f"{name[: name.index('/')]}.zip!{name}": "" for name in SPLIT}, *OF_SPLIT
    ),
    "validation alone: `val/`": Layout(VAL_FOLDERS, None, OF_SPLIT[1]),
    "validation alone: a folder named `val`": Layout(VAL_FOLDERS, None, OF_SPLIT[1], "val"),
    "validation alone: `val_percent=100`": Layout(WHOLE, None, OF_WHOLE, val_percent=100),
    "validation alone: a flat folder and the development kit": Layout(
        {**FLAT, **KIT_TAR}, None, OF_VAL, "val"
    ),
    "validation alone: a flat folder and a list": Layout(
        {"ILSVRC2012_img_val/ILSVRC2012_val_00000001.JPEG": "", "val.txt": LIST},
        None,
        {"ILSVRC2012_val_00000001.JPEG": B},
        "ILSVRC2012_img_val",
    ),
    "validation alone: Kaggle's `val`": Layout(KAGGLE, None, OF_VAL, "ILSVRC/Data/CLS-LOC/val"),
    "validation alone: the tar in a folder with the kit": Layout(
        {**VAL_TAR, **KIT_TAR}, None, OF_VAL
    ),
    "validation alone: the tar itself, the kit beside it": Layout(
        {**VAL_TAR, **KIT}, None, OF_VAL, "ILSVRC2012_img_val.tar"
    ),
    "validation alone: numbered classes without names": Layout(
        {**FLAT, "val.txt": NUMBERS},
        None,
        {name: "10"[label == A] for name, label in OF_VAL.items()},
    ),
}


def make(root: Path, files: Files) -> None:
    """Write the files; images are small, and each has its own name as content."""
    archives: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for name, text in files.items():
        data = (text or f"image {name}").encode() if isinstance(text, str) else text
        archive, _, member = name.partition("!")
        path = root / archive
        path.parent.mkdir(parents=True, exist_ok=True)
        if member:
            archives[archive].append((member, data))
        else:
            path.write_bytes(data)
    for archive, members in archives.items():
        if archive.endswith(".zip"):
            with zipfile.ZipFile(root / archive, "w") as packed:
                for at, (member, data) in enumerate(members):
                    packed.writestr(member, data, zipfile.ZIP_DEFLATED if at % 2 else None)
            continue
        with tarfile.open(root / archive, "w" if archive.endswith(".tar") else "w:gz") as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def table() -> str:
    lines = ["| layout | one of its images | `source=` |", "|---|---|---|"]
    for name, layout in LAYOUTS.items():
        image = next(path for path, text in layout.files.items() if text == "")
        within = image.split("!")[0]
        given = layout.source if layout.source != "." else "the folder"
        if layout.source != "." and within != layout.source:
            given += "/"
        if layout.labels:
            given += f" labels={layout.labels}"
        lines.append(f"| {name} | `{image.replace('!', ' → ')}` | {given} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """The page with its table replaced by the current one."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
