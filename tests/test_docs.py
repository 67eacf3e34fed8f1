"""The documents are true: commands and snippets in the README run, names in it exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from parts.pace import seconds

from autoft import Regression, Targets
from autoft.bundle.tail import tail_problem
from autoft.shell.cli import cli
from autoft.tasks.forms.table import answering

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, re.MULTILINE)
PLUGINS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"), re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# The documents give budgets for people; the same commands run here with less time, and but for the search that is
# resumed they end after a few trials.
RESUMED = "autoft search photos/ --time 30m"
SHORTER = {"1m": seconds(45), "2m": seconds(45), "30m": seconds(30), "+10m": f"+{seconds(15)}"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the repository to a command, with the reader's own photos/ and their table in it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("bag", "sandal"):
        shutil.copytree(ROOT / "examples" / "fashion" / name, folder / "photos" / name)
    images = sorted((folder / "photos").glob("*/*.png"))
    labels = [f"{path.parent.name}{'|even' if number % 2 else ''}" for number, path in enumerate(images)]
    lines = [f"{path.relative_to(folder / 'photos')},{label}," for path, label in zip(images, labels, strict=True)]
    (folder / "photos" / "data.csv").write_text("\n".join(["image,label,split", *lines]))
    return folder


def run(command, place, **environment):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)


def autoft(line, place):
    words = [SHORTER.get(word, word) for word in shlex.split(line)]
    assert words[0] == "autoft"
    if words[1] == "search" and line != RESUMED:
        words += ["--trials", "3"]
    done = run([sys.executable, "-m", "autoft", *words[1:]], place)
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done


def test_ci_installs_and_tests_as_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = next(line for line in COMMANDS if "pytest" in line).split(" && ")
    assert install.removeprefix("pip install ") in ci
    assert test in ci


@pytest.mark.slow
def test_readme_commands_run(place):
    """In the order in which they stand; a run folder in the text stands for the first one the reader has."""
    ran = 0
    for line in COMMANDS:
        line = line.split(" && ")[-1]
        if not line.startswith("autoft"):
            continue
        for named in re.findall(r"runs/photos-\S+", line):
            line = line.replace(named, str(sorted((place / "runs").glob("photos-*"))[0]))
        autoft(line, place)
        ran += 1
    assert ran == 9


@pytest.mark.slow
def test_commands_of_the_handoff_page_run_in_a_bundle(place):
    """After the README's, in the bundle that they leave."""
    bundle = sorted((place / "runs").glob("photos-*/export"))[0]
    lines = re.findall(r"^\$ (.+)$", (ROOT / "docs" / "handoff.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        command = [sys.executable, *words[1:]] if words[0] == "python" else [sys.executable, "-m", *words]
        done = run(command, bundle)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "PASS" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", ["examples/README.md", "examples/custom_backbone/README.md", "plugins/autoft-lite/README.md"]
)
def test_commands_of_the_other_documents_run(place, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("autoft")]
    assert lines
    for line in lines:
        is_endless = line.startswith("autoft search") and "--time" not in line
        autoft(f"{line} --time 30m" if is_endless else line, place)


@pytest.mark.slow
def test_python_snippets_run(place, tmp_path):
    search, deploy, conformance = SNIPPETS
    done = run([sys.executable, "-c", search.replace('"1m"', f'"{seconds(45)}", trials=3')], place)
    assert done.returncode == 0, done.stderr
    assert "export/model.onnx" in done.stdout
    shutil.copytree(sorted((place / "runs").glob("fashion-*/export"))[-1], tmp_path / "export")
    shutil.copy(next((ROOT / "examples" / "fashion" / "bag").iterdir()), tmp_path / "photo.png")
    done = run([sys.executable, "-c", deploy], tmp_path)
    assert done.returncode == 0, done.stderr
    label, probability = done.stdout.rsplit(maxsplit=1)
    assert (ROOT / "examples" / "fashion" / label).is_dir()
    assert 0.1 <= float(probability) <= 1
    (tmp_path / "test_my_zoo.py").write_text(conformance)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_zoo.py"]
    done = run(command, tmp_path, PYTHONPATH=str(ROOT / "examples" / "custom_backbone"))
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The plugin on docs/plugins.md, as the file that it is."""
    file = tmp_path_factory.mktemp("plugin") / "kinds.py"
    file.write_text("\n".join(PLUGINS))
    return file


@pytest.mark.parametrize("number", range(5))
def test_a_block_of_the_plugin_page_passes_its_checks_alone(number, tmp_path):
    (tmp_path / "block.py").write_text(PLUGINS[number])
    checked = run([sys.executable, "-m", "autoft.testing", "block.py"], tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.strip().endswith("Conformance passed")


def test_the_tail_on_the_plugin_page_is_one():
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^  ```\n(.*?)^  ```", text, re.DOTALL | re.MULTILINE)

    class Logarithms(Regression):
        answers = lambda self, outputs, calibration: np.exp(outputs) * np.array([1.5, 20.0], np.float32)  # noqa: E731
        tail = lambda self, calibration: example  # noqa: E731

    task = Logarithms().on(Targets("logarithms", "numbers", ("one", "two")))
    outputs = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    assert tail_problem(answering(task), outputs) is None


def test_blocks_of_the_plugin_page_load_alone_and_together(kinds):
    (kinds.parent / "told.py").write_text(PLUGINS[5])
    listed = run([sys.executable, "-m", "autoft", "plugins", "-p", kinds.name, "-p", "told.py"], kinds.parent)
    assert listed.returncode == 0, listed.stderr
    assert "zoo own, freeze strategy last, searcher turns, exporter script, metric kappa" in listed.stdout


@pytest.mark.slow
def test_plugin_page_search_runs(place, kinds):
    shutil.copy(kinds, place)
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\$ (autoft search .+)$", text, re.MULTILINE)
    autoft(line, place)
    assert (place / "slices.txt").read_text().count("own/tiny")


def test_every_command_stands_in_the_readme():
    assert set(re.findall(r"^\| `autoft (\w+)", README, re.MULTILINE)) == set(cli.list_commands(None))


def test_every_flag_in_the_readme_exists():
    text = CliRunner().invoke(cli, ["search", "--help"]).output
    rows = re.findall(r"^\| `(--[^`]+)`", README, re.MULTILINE) + re.findall(r", `(--[^`]+)` \|", README)
    for flag in {word for row in rows for word in re.findall(r"--[a-z-]+", row)}:
        assert flag in text, flag


def test_links_lead_somewhere():
    for document in (
        "README.md",
        "ARCHITECTURE.md",
        "docs/handoff.md",
        "docs/plugins.md",
        "benchmarks/README.md",
        "plugins/autoft-lite/README.md",
        "plugins/autoft-lora/README.md",
        "plugins/autoft-optuna/README.md",
    ):
        text = (ROOT / document).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("http"):
                assert ((ROOT / document).parent / target).exists(), f"{document}: {target}"


def test_map_names_every_module():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "autoft").glob("*.py") if not path.stem.startswith("_")}
    packages = {path.parent.name for path in (ROOT / "autoft").glob("*/__init__.py")}
    map_ = text[text.index("## The map") : text.index("## The contracts")]
    missing = {name for name in modules | packages if not re.search(rf"`{name}/?`", map_)}
    assert not missing
