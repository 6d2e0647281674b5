# SPDX-License-Identifier: GPL-2.0-or-later
"""No module uses a name that it neither defines nor imports."""
import builtins
import dis
import importlib
import pkgutil
import types
import unittest
from pathlib import Path
from typing import Iterator

import sandbox  # noqa: F401 (where the modules are found)

import fork


def functions(code: types.CodeType) -> Iterator[types.CodeType]:
    """A module's code, and that of all functions in it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from functions(each)


def unknown(text: str, known: set[str]) -> list[str]:
    """The global names that a module's text loads and does not have."""
    return sorted({f"{code.co_name}: {each.argval}"
                   for code in functions(compile(text, "module", "exec"))
                   for each in dis.get_instructions(code)
                   if each.opname == "LOAD_GLOBAL"
                   and each.argval not in known
                   and not hasattr(builtins, each.argval)})


class Names(unittest.TestCase):
    def test_defined(self) -> None:
        for found in pkgutil.iter_modules(fork.__path__):
            module = importlib.import_module(f"fork.{found.name}")
            with self.subTest(found.name):
                self.assertEqual(unknown(
                    Path(str(module.__file__)).read_text(), set(vars(module))),
                    [])

    def test_finds(self) -> None:
        self.assertEqual(unknown("def f():\n    return tip(g)\n", {"g"}),
                         ["f: tip"])


if __name__ == "__main__":
    unittest.main()
