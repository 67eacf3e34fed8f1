"""What costs seconds is not imported by commands that do not need it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

HEAVY = ("torch", "timm", "ray", "onnx", "onnxruntime", "sklearn", "torchvision")

# Runs `python -m autoft ARGS` in this interpreter and then says which modules it has imported.
RUNNER = """
import runpy, sys
sys.argv = ["autoft", *sys.argv[1:]]
try:
    runpy.run_module("autoft", run_name="__main__", alter_sys=True)
    code = 0
except SystemExit as exit:
    code = exit.code or 0
print("MODULES", code, *sorted({name.partition(".")[0] for name in sys.modules}))
"""

needs_command_line = pytest.mark.skipif(
    importlib.util.find_spec("autoft.__main__") is None, reason="autoft has no command line yet"
)


def imported(code: str, *arguments: str) -> list[str]:
    """The last line a program prints, in words."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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
    marker, exit_code, *modules = imported(RUNNER, *arguments)
    assert marker == "MODULES"
    assert int(exit_code) == code
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize("module", ["autoft", "autoft.hookspecs", "autoft.parts", "autoft.host", "autoft.codec"])
def test_the_ground_floor_imports_nothing_heavy(module: str) -> None:
    names = imported(f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))")
    assert not {*HEAVY, "pydantic", "numpy"} & set(names)


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
