"""What the package imports is what it asks for: a library that only the tests install would be missing elsewhere."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import ddfm

SHIPPED_WITH = {
    "anyio": "fastapi",
    "pydantic": "fastapi",
    "starlette": "fastapi",
}  # come with it


def imported() -> set[str]:
    """Top-level names of all modules that the package imports, anywhere in its files."""
    names = set()
    for path in Path(ddfm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"ddfm", "msvcrt"}


def test_every_import_is_a_dependency():
    asked = [line for line in requires("ddfm") or [] if not re.search(r"extra == .dev.", line)]
    known = {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in asked}
    installed = packages_distributions()
    for name in sorted(imported()):
        distributions = {d.lower().replace("_", "-") for d in installed.get(SHIPPED_WITH.get(name, name), [])}
        assert not distributions or distributions & known, f"{name} is imported but not asked for"
