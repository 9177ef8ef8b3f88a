"""Which names of TensorRT our code takes, and which names a TensorRT has.

`uses(source)` reads Python source and returns every name taken from TensorRT's module or from a value annotated with
one of the classes of `trt_moe.compile.trt_types`. It follows annotations of arguments, variables and results only, and
complains where a value that TensorRT handed out has none, so that nothing goes unseen.

`names_of(folder, work)` imports the bindings of a TensorRT whose libraries are not here: they link against an empty
library built for them, which is enough to list what they define, and to run nothing.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from trt_moe.compile import trt_types

CLASSES = frozenset(name for name in vars(trt_types) if name[0].isupper() and name not in ("Any", "TypeAlias"))
_MODULES = ("trt", "_trt")
# Of Python, not of TensorRT.
_OF_ENUMS = ("name", "value", "__members__")

Names = dict[str, list[str]]
"""Names by class; "" has those of the module."""


@dataclass(frozen=True)
class Use:
    """A name taken from a class ("" is the module) in a function; `flavour` is None where every flavour needs it."""

    owner: str
    name: str
    flavour: str | None
    line: int


@dataclass
class _Scope:
    function: str
    types: dict[str, str] = field(default_factory=dict)


def missing(uses: list[Use], names: Names, flavour: str) -> list[Use]:
    """The uses that a TensorRT does not have, of those that its flavour needs."""
    return [use for use in uses if use.flavour in (None, flavour) and use.name not in names.get(use.owner, ())]


def uses(source: str) -> list[Use]:
    """Every name that the source takes from TensorRT.

    Raises:
        ValueError: an attribute is taken from a value of TensorRT that has no annotation.
    """
    tree = ast.parse(source)
    reader = _Reader(tree)
    reader.visit(tree)
    return reader.found


class _Reader(ast.NodeVisitor):
    def __init__(self, tree: ast.Module) -> None:
        self.found: list[Use] = []
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self.results = {node.name: kind for node in functions if (kind := _class_of(node.returns))}
        # Attributes of self, whatever the class; and those that our subclasses of TensorRT's classes add.
        self.fields: dict[str, str] = {}
        self.own: set[tuple[str, str]] = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Attribute)
                and _class_of(node.annotation)
            ):
                self.fields[node.target.attr] = _class_of(node.annotation)
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    owner = _chain(base)[1][-1:] if _chain(base)[1] else []
                    assigned = [part for part in ast.walk(node) if isinstance(part, ast.Attribute)]
                    stored = [part.attr for part in assigned if isinstance(part.ctx, ast.Store)]
                    self.own |= {(name, attribute) for name in owner for attribute in stored}
        self.scopes = [_Scope("")]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope = _Scope(node.name if len(self.scopes) == 1 else self.scopes[1].function, dict(self.scopes[-1].types))
        for argument in (*node.args.args, *node.args.kwonlyargs):
            if kind := _class_of(argument.annotation):
                scope.types[argument.arg] = kind
        self.scopes.append(scope)
        self.generic_visit(node)
        self.scopes.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            root, names = _chain(base)
            if isinstance(root, ast.Name) and root.id in _MODULES and names:
                for part in node.body:
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                        self._take(names[-1], part.name, part)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name) and (kind := _class_of(node.annotation)):
            self.scopes[-1].types[node.target.id] = kind
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            _, names = _chain(node.value.func)
            called = names[-1] if names else getattr(node.value.func, "id", "")
            if called in self.results:
                self.scopes[-1].types[node.targets[0].id] = self.results[called]
            elif self._owner(node.value.func) is not None:
                # Without an annotation its attributes cannot be looked up, so none may be taken.
                self.scopes[-1].types.setdefault(node.targets[0].id, "?")
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        root, names = _chain(node)
        if isinstance(root, ast.Name) and (root.id in _MODULES or any(name in _MODULES for name in names)):
            taken = names if root.id in _MODULES else names[names.index(next(n for n in names if n in _MODULES)) + 1 :]
            for owner, name in zip(["", *taken], taken, strict=False):
                if name not in _OF_ENUMS:
                    self._take(owner, name, node)
            return
        if (owner := self._owner(node)) is not None:
            name = names[1] if isinstance(root, ast.Name) and root.id == "self" else names[0]
            if owner == "?":
                raise ValueError(f"line {node.lineno}: annotate the value that {name!r} is taken from")
            if (owner, name) not in self.own:
                self._take(owner, name, node)
            return
        if isinstance(root, ast.Call) and self._owner(root.func) is not None and names[0] not in _OF_ENUMS:
            raise ValueError(f"line {node.lineno}: give the value that {names[0]!r} is taken from a name and a type")
        self.generic_visit(node)

    def _owner(self, node: ast.expr) -> str | None:
        """The class that the first attribute of a chain is taken from."""
        root, names = _chain(node)
        if not names or not isinstance(root, ast.Name):
            return None
        if root.id == "self" and len(names) > 1:
            return self.fields.get(names[0])
        return self.scopes[-1].types.get(root.id)

    def _take(self, owner: str, name: str, node: ast.AST) -> None:
        function = self.scopes[1].function if len(self.scopes) > 1 else ""
        flavour = {"rtx": "tensorrt_rtx", "classic": "tensorrt"}.get(function.rsplit("_", 1)[-1])
        self.found.append(Use(owner, name, flavour, getattr(node, "lineno", 0)))


def _chain(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """`a.b.c` as the expression a and the names b, c."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node, names


def _class_of(annotation: ast.expr | None) -> str:
    """The class that an annotation `Class` or `Class | None` names, "" for any other."""
    if isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    return annotation.id if isinstance(annotation, ast.Name) and annotation.id in CLASSES else ""


_LIST = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = {"": dir(module)}
for name in dir(module):
    if isinstance(getattr(module, name), type):
        names[name] = dir(getattr(module, name))
print(json.dumps(names))
"""


def names_of(module: str, folder: Path | None = None, libraries: Path | None = None) -> Names:
    """Names of an importable module, in a process of its own.

    Args:
        module: to import.
        folder: where it was installed, if not in this Python.
        libraries: where the libraries are that it is linked against.
    """
    environment = {**os.environ}
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    done = subprocess.run(
        [sys.executable, "-c", _LIST, module], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} of {folder}: {done.stderr}")
    names: Names = json.loads(done.stdout)
    return names


def empty_libraries(bindings: Path, folder: Path) -> Path:
    """Write libraries that have every function the bindings' module wants of TensorRT's, and do nothing."""
    folder.mkdir()
    module = next(bindings.rglob("tensorrt.so"))
    text = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", str(module)], capture_output=True, text=True, check=True
    )
    functions = re.findall(r" UND (\w*(?:Infer|NvOnnx|PluginRegistry|getLogger|NvOnnxParser)\w*)\b", text.stdout)
    source = "\n".join(f'extern "C" void* {name}() {{ return nullptr; }}' for name in sorted(set(functions)))
    library = folder / "empty.so"
    compiler = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(compiler, input=source, text=True, check=True)
    for name in re.findall(r"\[(libnv\w+\.so\.\d+)\]", text.stdout):
        (folder / name).symlink_to(library.name)
    return folder
