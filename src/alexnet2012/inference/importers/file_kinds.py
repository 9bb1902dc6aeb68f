"""Tell from its content, not from its name, what a file is that should hold a model."""

from __future__ import annotations

from codecs import BOM_UTF8, getincrementaldecoder
from enum import Enum
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from alexnet2012.utils.text import printable
from alexnet2012.utils.untrusted import open_regular

HEAD = 4096  # bytes that are read of every file
MAX_SAFETENSORS_HEADER = 100_000_000  # bytes, as in safetensors
_TORCH_LEGACY = bytes.fromhex("8002 8a0a 6cfc 9c46 f920 6aa8 5019")  # torch.save before 1.6
_AGAIN = "copy or download it again"
_SAVE = "in the program that made it, save model.state_dict() with torch.save"
# First bytes of other formats, and what a user can do instead.
_SIGNATURES = {
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"7z\xbc\xaf": "is a 7z archive; unpack it",
    b"Rar!": "is a RAR archive; unpack it",
    b"\x89HDF": f"is an HDF5 file, as of Keras; {_SAVE}",
    b"\x93NUMPY": f"is a NumPy array; {_SAVE}",
    b"GGUF": f"is a GGUF file; {_SAVE}",
    b"\x89PNG": "is a PNG image, not a model",
    b"\xff\xd8\xff": "is a JPEG image, not a model",
    b"GIF8": "is a GIF image, not a model",
    b"%PDF": "is a PDF document, not a model",
    b"\x7fELF": "is a program, not a model",
}
_PAGE = f"is a web page (HTML), often a login or error page; {_AGAIN}"
_TEXTS = {  # beginnings in lower case, without blanks before them
    b"version https://git-lfs": "is a Git LFS pointer, not the model itself; run git lfs pull",
    b"/annex/objects": "is a git-annex pointer, not the model itself; run git annex get",
    b"<?xml": f"is an XML text, often the error message of a server; {_AGAIN}",
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"<head": _PAGE,
    b"<script": _PAGE,
    b"<!--": _PAGE,
    b"{": f"is a JSON text, not a model; {_AGAIN}",
    b"[": f"is a JSON text, not a model; {_AGAIN}",
}
_ONNX_PRODUCERS = (b"pytorch", b"onnx", b"tf2onnx", b"skl2onnx", b"keras2onnx", b"alexnet2012")


class FileKind(Enum):
    """The formats that can be read; ``other`` may be a ``.caffemodel``, which has no signature."""

    torch = "torch"
    safetensors = "safetensors"
    onnx = "onnx"
    prototxt = "prototxt"
    other = "other"


_WITHOUT_WEIGHTS = {
    FileKind.onnx: f"is an ONNX graph; {_SAVE}",
    FileKind.prototxt: "is the text of a Caffe network; give the .caffemodel with its weights",
}


def file_kind(path: Path) -> FileKind:
    """The format of a file of weights.

    Raises:
        ValueError: the file is something else; the message says what, and what to do.
        OSError: it cannot be read.
    """
    kind = network_kind(path)
    if (message := _WITHOUT_WEIGHTS.get(kind)) is not None:
        raise ValueError(message)
    return kind


def network_kind(path: Path) -> FileKind:
    """The format of a file that describes a network, with weights or without.

    Raises:
        ValueError: the file is something else; the message says what, and what to do.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
    if not head:
        raise ValueError(f"is empty; {_AGAIN}")
    if not any(head):
        raise ValueError(f"begins with zeros, as an interrupted download does; {_AGAIN}")
    if head.startswith(b"PK"):
        _check_zip(path)
        return FileKind.torch
    if head.startswith(_TORCH_LEGACY):
        return FileKind.torch
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= MAX_SAFETENSORS_HEADER:
        if 8 + header > path.stat().st_size:
            raise ValueError(f"is an incomplete safetensors file; {_AGAIN}")
        return FileKind.safetensors
    for signature, message in _SIGNATURES.items():
        if head.startswith(signature):
            raise ValueError(message)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise ValueError(f"is a plain pickle, which could run any code; {_SAVE}")
    if head[257:262] == b"ustar":
        raise ValueError("is a tar archive; unpack it")
    if head[4:8] == b"TFL3":
        raise ValueError(f"is a TensorFlow Lite model; {_SAVE}")
    if path.suffix == ".onnx" or (
        head[0] == 8 and any(name in head[:64].lower() for name in _ONNX_PRODUCERS)
    ):
        return FileKind.onnx
    return FileKind.prototxt if _is_prototxt(head) else FileKind.other


def _check_zip(path: Path) -> None:
    """Check that a zip archive is one that ``torch.save`` wrote."""
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"is a damaged or incomplete zip archive; {_AGAIN}") from error
    names = [member.filename for member in members]
    folders = {name.partition("/")[0] for name in names}
    root = next(iter(folders)) if len(folders) == 1 else None
    if f"{root}/constants.pkl" in names:
        raise ValueError(f"is a TorchScript program; {_SAVE}")
    if "serialized_exported_program.json" in names or f"{root}/models/model.json" in names:
        raise ValueError(f"is a program of torch.export; {_SAVE}")
    if f"{root}/data.pkl" in names:
        if any(member.compress_type != ZIP_STORED for member in members):
            raise ValueError(f"was packed again by another program; {_AGAIN}")
        return
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(f"is an archive of NumPy arrays; {_SAVE}")
    example = f", such as {_shortened(names[0])}" if names else ""
    raise ValueError(f"is a zip archive of {len(names)} files{example}; unpack it")


def _is_prototxt(head: bytes) -> bool:
    """Whether a file is the text of a Caffe network; ValueError if it is another text."""
    start = head.removeprefix(BOM_UTF8).lstrip()[:1000].lower()
    for signature, message in _TEXTS.items():
        if start.startswith(signature):
            raise ValueError(message)
    try:  # the head may end within a character
        text = getincrementaldecoder("utf-8-sig")().decode(head).strip()
    except UnicodeDecodeError:
        return False
    lines = text.splitlines() or [""]
    if not all(line.replace("\t", "").isprintable() for line in lines):
        return False
    if "layer" in text and "{" in text:
        return True
    raise ValueError(f"is a text ({_shortened(lines[0])}), not a model; {_AGAIN}")


def _shortened(text: str) -> str:
    """Untrusted text for an error message."""
    return printable(text if len(text) <= 60 else f"{text[:59]}…")
