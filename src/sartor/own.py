# SPDX-License-Identifier: Apache-2.0
"""The user's own classes, given as ``path.py:Class``."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

__all__ = ["absolute", "content_digest", "is_own", "load_own"]


def is_own(text: str) -> bool:
    """Tell whether `text` is of the form ``path.py:Class``; what follows ``remote:`` may look like it."""
    return not text.startswith(("remote:", "datasheet:", "hf:")) and (".py:" in text or text.endswith(".py"))


def absolute(text: str) -> str:
    """Return ``path.py:Class``, or ``hf:`` and a folder, so that it is found from anywhere; other names as they are."""
    if text.startswith("hf:") and Path(text[3:]).is_dir():
        return f"hf:{Path(text[3:]).absolute()}"
    if not is_own(text):
        return text
    place, _, name = text.rpartition(":")
    return f"{Path(place).absolute()}:{name}"


def content_digest(text: str) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of the file that ``path.py:Class`` names."""
    return hashlib.sha256(Path(text.rpartition(":")[0]).read_bytes()).hexdigest()[:12]


def load_own(text: str, kind: str) -> type:
    """Return the class that ``path.py:Class`` names; `kind` ("space", "target", ...) is for the messages.

    The file is run, as `python path.py` would run it, with its folder importable meanwhile. Giving a file
    twice gives the same class, unless the file changed.

    Raises:
        ValueError: one line, for text of another form, a missing file or class, something that is not a
            class, or any exception of the file itself, with its line.
    """
    place, _, name = text.rpartition(":")
    if not place.endswith(".py") or not name.isidentifier():
        raise ValueError(f"{kind} {text!r} is not of the form path.py:Class, such as mine.py:MyClass")
    path = Path(place)
    if not path.is_file():
        raise ValueError(f"{kind} {text!r}: there is no file {place}")
    module = _module(path, f"{kind} {text!r}")
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        reason = "is not a class" if hasattr(module, name) else "is not defined"
        classes = ", ".join(own) or "none"
        raise ValueError(f"{kind} {text!r}: {name} {reason} in {place}; its classes: {classes}")
    return found


def _module(path: Path, what: str) -> ModuleType:
    """Run the file at `path` as a module of its own name, once for each content."""
    path = path.resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what}: {path} cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()[:12]
    name = f"sartor_own_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look classes up there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{what}: {path.name}{_line(error, path)} raises {_said(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _line(error: BaseException, path: Path) -> str:
    """Return where in the file the error arose, as ", line 3", or "" if that cannot be told."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.lineno else ""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _said(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
