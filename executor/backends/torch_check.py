"""Checks TorchScript before and after it is loaded: nothing in it may touch files, processes or Python.

Loading already runs code: classes in the archive may have a `__setstate__`. So the archive's source is checked
before torch loads it, word by word, and the operators of the loaded graphs again afterwards. The archive is read
with torch's own reader, so that what is checked is what will be loaded.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Final

from keyside.tensorstore.errors import BadModel

__all__ = ["NAMESPACES", "WORDS", "check_archive", "check_graphs", "kind_of"]

# Namespaces of operators that only compute.
NAMESPACES: Final = frozenset(
    {"_quantized", "aten", "mkldnn", "mkldnn_prepacked", "onednn", "prim", "quantized", "sparse", "torchvision"}
)

# Native classes: packed weights. Others open files, run compiled code or talk over the network.
_CLASSES: Final = frozenset({"quantized", "rnn", "sparse"})

# Operators of these namespaces that reach beyond the model.
WORDS: Final = {
    "from_file": "opens a file",
    "save": "writes a file",
    "print": "prints",
    "_print": "prints",
    "Print": "prints",
    "rpc_async": "calls another process",
    "rpc_remote": "calls another process",
    "rpc_sync": "calls another process",
    "PythonOp": "runs Python",
    "IgnoredPythonOp": "runs Python",
}

_COMMENT_OR_STRING: Final = re.compile(r"#[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'")
_STRING: Final = "\x00"  # stands for a string literal in what is left of a source
_AROUND_DOTS: Final = re.compile(r"\s*\.\s*")
_JOINED_STRINGS: Final = re.compile(rf"{_STRING}\s*{_STRING}")
_WORD: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_OPS: Final = re.compile(r"(?<![\w.])ops\b(?:\.(\w+)\.\w+)?", re.ASCII)
_TORCH_CLASSES: Final = re.compile(
    r"\b__torch__\b(?:\.torch\b(?:\.classes\b(\.\w+\.\w+)?|(\.\w+))?|(\.\w+))?", re.ASCII
)
_CLASS_NAMES: Final = re.compile(rb"torch[.\n]classes[.\n](\w+)")
_MUTATING: Final = re.compile(r"[a-z0-9]_$|^out$", re.ASCII)

# What an archive may unpack to: torch compresses source only.
MAX_GROWTH: Final = 4
MAX_SMALL: Final = 64 << 20


def kind_of(blob: bytes) -> str:
    """Return what a file is: `torchscript`, `export`, `pickle` or an empty text."""
    if blob[:2] == b"\x80\x02" or blob[:2] == b"\x80\x04":
        return "pickle"
    if blob[:4] != b"PK\x03\x04":
        return ""
    names = set(_reader(blob).get_all_records())
    if "constants.pkl" in names and "data.pkl" in names:
        return "torchscript"
    if "archive_format" in names or any("exported_program" in name for name in names):
        return "export"
    if "data.pkl" in names:
        return "pickle"
    return ""


def check_archive(blob: bytes) -> bool:
    """Check the source and the names of classes in a TorchScript archive.

    Returns:
        Whether it may change the tensors that it is given.

    Raises:
        BadModel: something in it is not allowed.
    """
    _check_growth(blob)
    reader = _reader(blob)
    mutates = False
    for name in reader.get_all_records():
        if name.startswith(("data/", "constants/")):
            continue
        record = reader.get_record(name)
        if name.endswith(".py"):
            mutates |= _check_source(name, record)
        elif name.endswith(".pkl"):
            for match in _CLASS_NAMES.finditer(record):
                _check_class(match[1].decode())
    return mutates


def _check_growth(blob: bytes) -> None:
    """Refuse an archive that would unpack to far more than it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            total = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise BadModel(f"the blob is a damaged archive: {error}") from None
    if total > MAX_GROWTH * len(blob) + MAX_SMALL:
        raise BadModel(f"the archive of {len(blob):,} bytes would unpack to {total:,}")


def _check_source(name: str, record: bytes) -> bool:
    """Check one file of source; return whether it may change tensors in place."""
    odd = BadModel(f"{name} in the archive is not as torch writes it")
    try:
        source = record.decode("ascii")
    except UnicodeDecodeError:
        raise odd from None
    if '"""' in source or "'''" in source or "\x00" in source:
        raise odd
    literals: list[str] = []

    def blank(match: re.Match[str]) -> str:
        if match[0][0] == "#":
            return ""
        literals.append(match[0][1:-1])
        return _STRING

    text = _COMMENT_OR_STRING.sub(blank, source)
    # What the parser would join, or what no literal of ours has matched, could hide a word.
    if '"' in text or "'" in text or "\\" in text or _JOINED_STRINGS.search(text):
        raise odd
    text = _AROUND_DOTS.sub(".", text)
    words = set(_WORD.findall(text))
    if "getattr" in words:
        # Submodules named by numbers are reached by getattr(self, "0"): these names count as words.
        if any("\\" in literal for literal in literals):
            raise BadModel(f"{name} in the archive has both getattr and escaped characters, which is not allowed")
        words.update(literals)
    for word in sorted(words & WORDS.keys()):
        raise BadModel(f"the model {WORDS[word]} ({word}), which is not allowed; see --allow-code")
    for match in _OPS.finditer(text):
        if match[1] not in NAMESPACES:
            raise BadModel(f"the model uses the operators {match[0]}, which are not allowed; see --allow-code")
    for match in _TORCH_CLASSES.finditer(text):
        if match[1]:
            _check_class(match[1].split(".")[1])
        elif not match[2] and not match[3]:
            raise odd
    return any(_MUTATING.search(word) for word in words if not word.startswith("__"))


def _check_class(namespace: str) -> None:
    if namespace not in _CLASSES:
        raise BadModel(f"the model uses the native class {namespace}, which is not allowed; see --allow-code")


def check_graphs(module: Any) -> None:
    """Check the operators of a loaded module's methods.

    Raises:
        BadModel: one is not allowed.
    """
    for part in module.modules():
        native = part._c  # noqa: SLF001 - torch has no public way to the methods of a loaded module
        for name in native._method_names():  # noqa: SLF001
            for node in _nodes(native._get_method(name).graph):  # noqa: SLF001
                kind = node.kind()
                namespace, _, operator = kind.partition("::")
                if namespace not in NAMESPACES or operator in WORDS:
                    raise BadModel(f"the model uses the operator {kind}, which is not allowed; see --allow-code")


def _nodes(graph: Any) -> Iterator[Any]:
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            blocks.extend(node.blocks())


def _reader(blob: bytes) -> Any:
    import torch

    try:
        return torch._C.PyTorchFileReader(io.BytesIO(blob))  # noqa: SLF001 - what torch.jit.load itself reads with
    except RuntimeError as error:
        raise BadModel(f"the blob is a damaged archive: {' '.join(str(error).split())[:200]}") from None
