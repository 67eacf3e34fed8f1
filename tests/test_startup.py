"""What costs seconds is not imported by commands that do not need it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "ray", "onnx", "onnxruntime", "sklearn", "torchvision")

# Runs `python -m autoft ARGS` in this interpreter and says when it ends which modules it has imported.
RUNNER = """
import atexit, runpy, sys
sys.argv = ["autoft", *sys.argv[1:]]
atexit.register(lambda: print("MODULES", *sorted({name.partition(".")[0] for name in sys.modules})))
runpy.run_module("autoft", run_name="__main__", alter_sys=True)
"""

# What unloading torch and its tensors takes at the end of a run, by an object that nobody lets go of before.
UNLOADING = """
import sys, threading, time
from autoft.__main__ import main

class Slow:
    def __del__(self):
        time.sleep(60)

sys.slow = Slow()
threading.Thread(target=time.sleep, args=(60,)).start()
sys.argv = ["autoft", "search"]
main()
"""

needs_command_line = pytest.mark.skipif(
    importlib.util.find_spec("autoft.__main__") is None, reason="autoft has no command line yet"
)


def imported(program: str, *arguments: str, code: int = 0) -> list[str]:
    """The last line a program prints, in words; it ends with `code`."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines()[-1].split()


@needs_command_line
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["search", "--help"], 0),
        (["plugins"], 0),
        (["plugins", "--json"], 0),
        (["no-such-command"], 2),
        (["search"], 2),
        (["search", "no/such/folder", "--time", "banana"], 2),
    ],
)
def test_a_light_command_imports_nothing_heavy(arguments: list[str], code: int) -> None:
    marker, *modules = imported(RUNNER, *arguments, code=code)
    assert marker == "MODULES"
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize(
    "module",
    [
        *("autoft", "autoft.parts.hookspecs", "autoft.parts.base", "autoft.parts.host", "autoft.values.codec"),
        "autoft.shell.commands.run",
    ],
)
def test_the_ground_floor_imports_nothing_heavy(module: str) -> None:
    names = imported(f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))")
    assert not {*HEAVY, "pydantic", "numpy"} & set(names)


def test_the_flags_of_a_search_cost_no_more_than_their_declarations() -> None:
    """Help and a usage error of `search` wait for them."""
    names = imported("import sys, autoft.study.study; print(*[n for n in sys.modules if n.startswith('autoft.')])")
    assert set(names) == {"autoft.errors", "autoft.study", "autoft.study.options", "autoft.study.study"}


def test_the_package_alone_imports_no_part_of_itself() -> None:
    names = imported("import sys, autoft; print(*[name for name in sys.modules if name.startswith('autoft')])")
    assert names == ["autoft"]


def test_a_public_name_is_imported_when_asked_for() -> None:
    names = imported(
        "import sys, autoft; autoft.StudyError; print(*[n for n in sys.modules if n.startswith('autoft')])"
    )
    assert names == ["autoft", "autoft.errors"]


@needs_command_line
def test_python_m_autoft_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "autoft", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout


@needs_command_line
def test_a_command_that_is_done_leaves_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", UNLOADING], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert "Missing argument 'DATA'" in done.stderr
