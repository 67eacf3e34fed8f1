from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from autoft.bundle.licenses import NOTICE, SHIPPED, write_licenses
from autoft.bundle.sources import without_place
from autoft.study.study import PERMISSIVE
from autoft.values.backbone import Backbone, InputSpec
from autoft.values.bundle import LICENSES

FIRST_WORDS = {"apache-2.0": "Apache License", "mit": "MIT License", "bsd-3-clause": "BSD 3-Clause License"}


def written(folder: Path, licence: str, source: str = "hf-hub:timm/net") -> dict[str, str]:
    write_licenses(folder, Backbone("zoo/net", 1, InputSpec(8), license=licence, source=source))
    return {path.name: path.read_text(encoding="utf-8") for path in (folder / LICENSES).iterdir()}


@pytest.mark.parametrize("licence", SHIPPED)
def test_a_shipped_licence_goes_in_with_its_whole_text(licence: str, tmp_path: Path) -> None:
    found = written(tmp_path, licence)
    assert set(found) == {NOTICE, "apache-2.0.txt", f"{licence}.txt"}
    assert FIRST_WORDS[licence] in found[f"{licence}.txt"]
    assert "WITHOUT WARRANT" in found[f"{licence}.txt"] or "WARRANTIES" in found[f"{licence}.txt"]
    assert f"is in {licence}.txt" in found[NOTICE]
    for words in ("zoo/net", "hf-hub:timm/net", "pretraining data", "test_vectors", "verify.py"):
        assert words in found[NOTICE]


def test_what_is_shipped_is_permissive_and_has_a_text() -> None:
    assert set(SHIPPED) <= set(PERMISSIVE)
    texts = {path.name for path in (files("autoft.bundle") / "licenses").iterdir()}
    assert texts == {f"{licence}.txt" for licence in SHIPPED}


def test_the_texts_name_no_author_of_something_else() -> None:
    for licence in ("mit", "bsd-3-clause"):
        text = (files("autoft.bundle") / "licenses" / f"{licence}.txt").read_text(encoding="utf-8")
        assert text.count("Copyright (c)") == text.count("Copyright (c) the copyright holders\n") == 1


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "isc", "../../etc/passwd", "other"])
def test_a_licence_that_is_not_shipped_is_named_and_said_to_be_elsewhere(licence: str, tmp_path: Path) -> None:
    found = written(tmp_path, licence)
    assert set(found) == {NOTICE, "apache-2.0.txt"}
    assert f"licence: {licence}\n" in found[NOTICE]
    assert "not in this folder. Read it at the source" in found[NOTICE]


@pytest.mark.parametrize("licence", ["unknown", ""])
def test_an_unknown_licence_is_called_unknown(licence: str, tmp_path: Path) -> None:
    found = written(tmp_path, licence, source="")
    assert "licence: unknown\n" in found[NOTICE]
    assert "source:  not given" in found[NOTICE]
    assert "Nobody has said" in found[NOTICE]


def test_writing_again_gives_the_same(tmp_path: Path) -> None:
    assert written(tmp_path, "mit") == written(tmp_path, "mit")


def install(place: Path, **named: str) -> None:
    """A package as pip leaves it; `named` files, with their content, lie in its dist-info."""
    info = place / "some_weights-1.0.dist-info"
    lines = []
    for name, content in {"METADATA": "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n", **named}.items():
        (info / name).parent.mkdir(parents=True, exist_ok=True)
        (info / name).write_text(content, encoding="utf-8")
        lines.append(f"{info.name}/{name},,\n")
    (info / "RECORD").write_text("".join(lines) + f"{info.name}/LICENSE.gone,,\n../LICENSE,,\n", encoding="utf-8")


def test_notices_of_the_package_of_the_weights_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"LICENSE": "Copyright (c) 2020, Jos\u00e9", "licenses/sub/NOTICE.md": "by us", "top_level.txt": "x"}
    install(tmp_path / "site", **files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    backbone = Backbone("zoo/net", 1, InputSpec(8), license="apache-2.0", source="pypi:some-weights")
    write_licenses(tmp_path, backbone)
    place = tmp_path / LICENSES
    found = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert found == {NOTICE, "apache-2.0.txt", "some-weights/LICENSE", "some-weights/sub/NOTICE.md"}
    assert (place / "some-weights/LICENSE").read_text(encoding="utf-8") == files["LICENSE"]
    notice = (place / NOTICE).read_text(encoding="utf-8")
    assert (
        "pass them on with the weights:\n        some-weights/LICENSE\n        some-weights/sub/NOTICE.md\n" in notice
    )
    assert "Get them at the source" not in notice


@pytest.mark.parametrize("source", ["pypi:no-such-package-here", "pypi:", "hf-hub:timm/net", "../pypi:pytest", ""])
def test_without_the_package_the_notice_says_that_notices_are_elsewhere(source: str, tmp_path: Path) -> None:
    found = written(tmp_path, "mit", source)
    assert set(found) == {NOTICE, "apache-2.0.txt", "mit.txt"}
    assert "are not in this folder" in found[NOTICE] and "Get them at the source" in found[NOTICE]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/me/net.pth", "net.pth"),
        ("~/weights/net.pth", "net.pth"),
        ("file:///home/me/net.pth", "net.pth"),
        (r"C:\Users\me\net.pth", "net.pth"),
        (r"\\server\share\me\net.pth", "net.pth"),
        ("https://example.org/weights/net.pth", "https://example.org/weights/net.pth"),
        ("hf-hub:timm/net.in1k", "hf-hub:timm/net.in1k"),
        ("pypi:some-package", "pypi:some-package"),
        ("", ""),
    ],
)
def test_only_a_place_is_cut_off_a_source(source: str, shown: str) -> None:
    assert without_place(source) == shown
