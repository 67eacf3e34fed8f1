from __future__ import annotations

import errno
import hashlib
import logging
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import autoft
from autoft.errors import BackboneUnavailable, PluginError, StudyError
from autoft.parts import hookspecs
from autoft.parts import host as host_module
from autoft.parts.host import Host
from autoft.parts.plugins import PluginRef, file_ref, plugin_versions
from autoft.shell import doctor
from autoft.values.codec import decode, encode

SPEC = autoft.InputSpec(32)


class TinyZoo(autoft.Zoo):
    def __init__(self, name: str = "tiny", models: tuple[str, ...] = ("tiny/a", "tiny/b")) -> None:
        self.name, self.models = name, models

    def backbones(self) -> Iterable[autoft.Backbone]:
        return (autoft.Backbone(model, 10, SPEC) for model in self.models)

    def build(self, backbone: autoft.Backbone) -> autoft.Network:
        raise BackboneUnavailable(f"{backbone.name}: no weights here; put them there")


class Plugin:
    """An object with one hook for zoos."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self.give = give

    @autoft.hookimpl
    def autoft_zoos(self) -> Any:
        return self.give()


class Tracker:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.seen = error, []

    @autoft.hookimpl
    def autoft_slice_ended(self, report: autoft.Report) -> None:
        self.seen.append(report)
        if self.error:
            raise self.error


importable = Plugin(lambda: [TinyZoo("importable", ())])

FILE = """
import autoft

class FileZoo(autoft.Zoo):
    name = "{zoo}"
    def backbones(self): return [autoft.Backbone("{zoo}/x", 1, autoft.InputSpec(32))]
    def build(self, backbone): raise NotImplementedError

@autoft.hookimpl
def autoft_zoos(): return [FileZoo()]
"""


METRIC = """
import autoft

@autoft.hookimpl
def autoft_metrics():
    return [autoft.Metric.of(autoft.MetricFacts("accuracy"), lambda judged, targets: 0.5, form="one_of")]
"""


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "BUILTINS", ())
    monkeypatch.setattr(host_module.plugins, "entry_point_refs", lambda: iter(()))
    monkeypatch.delenv("AUTOFT_DISABLE_PLUGINS", raising=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str, str], None]:
    """Install a distribution with one entry point: `install(distribution, entry name, module source)`."""
    monkeypatch.undo()
    monkeypatch.setattr(host_module, "BUILTINS", ())
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution: str, name: str, source: str) -> None:
        module = distribution.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[autoft]\n{name} = {module}\n")

    return install


def write(folder: Path, name: str, source: str) -> str:
    (folder / name).write_text(source)
    return str(folder / name)


def with_zoos(*parts: object) -> Host:
    return Host.discover(objects=[Plugin(lambda: list(parts))])


def test_a_file_is_a_plugin(tmp_path: Path) -> None:
    host = Host.discover([write(tmp_path, "mine.py", FILE.format(zoo="mine"))])
    assert [backbone.name for backbone in host.backbones()] == ["mine/x"]
    assert host.warnings() == []
    assert host.inline_only == ()
    (line,) = host.table()
    assert (line.name, line.kind, line.status, line.adds) == ("mine", "file", "ok", ("zoo mine",))


def test_recorded_plugins_load_again_from_json(tmp_path: Path) -> None:
    files = [write(tmp_path, "one.py", FILE.format(zoo="one")), write(tmp_path, "two.py", FILE.format(zoo="two"))]
    host = Host.discover(files)
    refs = [decode(PluginRef, encode(ref)) for ref in host.refs]
    assert list(Host.from_refs(refs).parts(autoft.Zoo)) == list(host.parts(autoft.Zoo)) == ["one", "two"]


def test_an_entry_point_is_a_plugin(installed: Callable[[str, str, str], None]) -> None:
    installed("autoft-alpha", "alpha", FILE.format(zoo="alpha"))
    host = Host.discover()
    line = next(line for line in host.table() if line.name == "alpha")
    assert (line.distribution, line.version, line.kind, line.status) == ("autoft-alpha", "1.5", "entry_point", "ok")
    assert "alpha" in Host.from_refs(host.refs).parts(autoft.Zoo)


def test_an_installed_plugin_is_asked_for_what_a_search_asks_only_where_that_may_take_long(
    installed: Callable[[str, str, str], None],
) -> None:
    installed("autoft-alpha", "alpha", FILE.format(zoo="alpha").replace("return [autoft.Backbone", "return 1 / 0, ["))
    host = Host.discover()
    lines = [{line.name: line for line in table} for table in (host.table(), host.table(asked={"entry_point"}))]
    quick, asked = (table["alpha"] for table in lines)
    assert (quick.status, asked.status) == ("ok", "failed")
    assert "failed in backbones() of zoo 'alpha': ZeroDivisionError" in (asked.cause or "")
    assert (doctor.check_plugins().status, "backbones()" in doctor.check_plugins().detail) == ("warn", True)


def test_a_metric_of_a_tasks_name_is_no_good_in_the_table_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_module, "BUILTINS", ("autoft.builtin.tasks",))
    file = write(tmp_path, "mine.py", METRIC)
    line = next(line for line in Host.discover([file]).table() if line.name == "mine")
    assert line.status == "failed"
    assert "both offer metric 'accuracy'" in (line.cause or "")


def test_a_plugin_that_raises_on_import_is_isolated(installed: Callable[[str, str, str], None]) -> None:
    installed("autoft-beta", "beta", "import no_such_module_at_all")
    installed("autoft-gamma", "gamma", "raise SystemExit(3)")
    installed("autoft-alpha", "alpha", FILE.format(zoo="alpha"))
    host = Host.discover()
    assert "alpha" in host.parts(autoft.Zoo)
    beta = next(line for line in host.warnings() if "beta" in line)
    for word in ("'beta'", "'autoft-beta'", "1.5", "ModuleNotFoundError", "-p no:beta"):
        assert word in beta
    assert "SystemExit" in next(line for line in host.warnings() if "gamma" in line)
    failed = {line.name: line for line in host.table()}["beta"]
    assert failed.status == "failed"
    assert "Traceback" in (failed.traceback or "")
    with pytest.raises(StudyError, match=r"no zoo is called 'beta'.*'autoft-beta'.*no_such_module.*-p no:beta"):
        host.part(autoft.Zoo, "beta")


def test_one_entry_point_name_in_two_distributions_names_both(installed: Callable[[str, str, str], None]) -> None:
    installed("autoft-alpha", "same", FILE.format(zoo="alpha"))
    installed("autoft-beta", "same", FILE.format(zoo="beta"))
    host = Host.discover()
    (line,) = [line for line in host.warnings() if "same" in line]
    assert "'autoft-alpha'" in line
    assert "'autoft-beta'" in line


def test_a_missing_distribution_is_asked_for_with_its_version() -> None:
    ref = PluginRef("lost", "entry_point", "autoft_lost", "autoft-lost", "2.1")
    with pytest.raises(PluginError, match=r"autoft-lost==2\.1"):
        Host.from_refs([ref])


def test_another_version_than_recorded_is_said_and_no_worker_takes_it(
    installed: Callable[[str, str, str], None],
) -> None:
    installed("autoft-alpha", "alpha", FILE.format(zoo="alpha"))
    before = PluginRef("alpha", "entry_point", "autoft_alpha", "autoft-alpha", "1.4")
    (line,) = Host.recorded([before]).warnings()
    assert "1.4" in line
    assert "1.5" in line
    with pytest.raises(PluginError, match=r"began with autoft-alpha 1\.4 and now finds autoft-alpha 1\.5"):
        Host.from_refs([before])


def test_a_worker_takes_no_file_that_has_changed_since_the_driver_read_it(tmp_path: Path) -> None:
    mine = Path(write(tmp_path, "mine.py", FILE.format(zoo="mine")))
    host = Host.discover([str(mine)])
    assert Host.from_refs(host.refs).refs == host.refs
    mine.write_text(FILE.format(zoo="mine") + "raise SystemExit('it ran')")
    with pytest.raises(PluginError, match=r"plugin 'mine' .* changed during the search.*put it back.*autoft resume"):
        Host.from_refs(host.refs)


def test_a_recorded_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"gone\.py"):
        Host.from_refs([PluginRef("gone", "file", str(tmp_path / "gone.py"))])


def test_plugins_are_switched_off_by_flag_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path, f"{name}.py", FILE.format(zoo=name)) for name in ("one", "two", "three")]
    monkeypatch.setenv("AUTOFT_DISABLE_PLUGINS", "two, nobody")
    host = Host.discover([*files, "no:one"])
    assert list(host.parts(autoft.Zoo)) == ["three"]
    assert {line.name: line.status for line in host.table()} == {"three": "ok", "one": "disabled", "two": "disabled"}
    assert "nobody" in host.warnings()[0]
    with pytest.raises(StudyError, match="switched off"):
        host.part(autoft.Zoo, "one")


def test_a_switched_off_plugin_is_not_imported(tmp_path: Path) -> None:
    host = Host.discover([write(tmp_path, "bad.py", "raise RuntimeError('no')"), "no:bad"])
    assert host.warnings() == []


@pytest.mark.parametrize("selection", ["no:min", "missing.py"])
def test_a_wrong_selection_is_a_study_error(tmp_path: Path, selection: str) -> None:
    with pytest.raises(StudyError) as caught:
        Host.discover([write(tmp_path, "mine.py", FILE.format(zoo="mine")), selection])
    assert ("mine" if selection == "no:min" else "missing.py") in str(caught.value)


def test_an_unknown_hook_fails_the_plugin_and_no_other(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad.py", "import autoft\n@autoft.hookimpl\ndef autoft_zooos(): return []\n")
    host = Host.discover([bad, write(tmp_path, "good.py", FILE.format(zoo="good"))])
    assert list(host.parts(autoft.Zoo)) == ["good"]
    assert "no hook is called 'autoft_zooos'; did you mean 'autoft_zoos'?" in host.warnings()[0]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("x = 1\n", "hookimpl"),
        ("def autoft_zoos(): return []\n", "autoft_zoos is not marked @autoft.hookimpl"),
        ("import autoft\n@autoft.hookimpl\ndef searchers(): return []\n", "did you mean 'autoft_searchers'?"),
        ("import autoft\n@autoft.hookimpl\ndef autoft_zoos(extra): return []\n", "extra"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_what_is_no_plugin_says_why(tmp_path: Path, source: str, word: str) -> None:
    host = Host.discover([write(tmp_path, "bad.py", source)])
    assert host.refs == ()
    assert word in host.warnings()[0]
    assert "\n" not in host.warnings()[0]


def test_two_parts_of_one_name_blame_both(installed: Callable[[str, str, str], None]) -> None:
    installed("autoft-alpha", "alpha", FILE.format(zoo="twin"))
    installed("autoft-beta", "beta", FILE.format(zoo="twin"))
    with pytest.raises(PluginError, match=r"'autoft-alpha'.*'autoft-beta'.*zoo 'twin'"):
        Host.discover().parts(autoft.Zoo)
    assert "twin" not in Host.discover(["no:beta"]).parts(autoft.Searcher)


@pytest.mark.parametrize(
    "returned", [None, "tiny", 3, ["tiny"], [object()], TinyZoo(), [TinyZoo("")], [TinyZoo("a/b")]]
)
def test_a_hook_that_returns_nonsense_is_blamed(returned: object) -> None:
    host = Host.discover(objects=[Plugin(lambda: returned)])
    with pytest.raises(PluginError, match=r"plugin 'Plugin'.*autoft_zoos.* must return.*-p no:Plugin"):
        host.parts(autoft.Zoo)
    (line,) = host.table()
    assert line.status == "failed"


def test_a_hook_that_raises_is_blamed_and_spares_the_other_kinds() -> None:
    host = Host.discover(objects=[Plugin(lambda: 1 / 0)])
    with pytest.raises(PluginError, match=r"plugin 'Plugin'.*ZeroDivisionError.*-p no:Plugin"):
        host.parts(autoft.Zoo)
    assert host.parts(autoft.Searcher) == {}


def test_parts_come_in_the_order_of_their_plugins_and_once(tmp_path: Path) -> None:
    files = [write(tmp_path, f"p{name}.py", FILE.format(zoo=name)) for name in "cab"]
    host = Host.discover(files)
    assert list(host.parts(autoft.Zoo)) == ["c", "a", "b"]
    assert host.part(autoft.Zoo, "a") is host.parts(autoft.Zoo)["a"]


MANY = """
from autoft import *
from autoft import hookimpl

class Mine(FreezeStrategy):
    def __init__(self, name="mine"): self.name = name
    def space(self): return Space({space})
    def plan(self, stages, params): return Plan((), GradientHead(1e-3))

class Own(Zoo):
    name = "own"
    def backbones(self): return [{backbones}]
    def build(self, backbone): raise BackboneUnavailable(backbone.name)

@hookimpl
def autoft_freeze_strategies(): return [{strategies}]

@hookimpl
def autoft_zoos(): return [Own()]
"""


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"space": '{"lr": Float(1.0, 0.1)}'}, "space() of freeze strategy 'mine': ValueError: lr: `low <= high`"),
        ({"space": '{"lr": Float(0, 1, log=True)}'}, "ValueError: lr: a logarithmic range starts above 0"),
        ({"space": '{"lr": (0.1, 1.0)}'}, "TypeError: lr: a dimension is a Float, an Int or a Choice, not (0.1, 1.0)"),
        ({"space": '{"lr": Float(0, 1)}, ({"lr": 2},)'}, "start {'lr': 2}: lr=2 lies outside"),
        ({"space": '{"lr": Float(0, 1)}, ({"rl": 1},)'}, "start {'rl': 1}: ['lr'] missing"),
        ({"backbones": 'Backbone("other/x", 1, InputSpec(32))'}, "it lists 'other/x'; the names of its backbones are"),
        ({"backbones": 'Backbone("own/x", 1.5, InputSpec(32))'}, "parameters: Input should be a valid integer"),
        (
            {"strategies": 'Mine("one"), Mine("one")'},
            "two parts called 'one', each a freeze strategy; give",
        ),
    ],
)
def test_what_a_search_would_refuse_is_found_beforehand(tmp_path: Path, given: dict[str, str], says: str) -> None:
    parts = {"space": "{}", "backbones": "", "strategies": "Mine()"} | given
    source = MANY
    for name, text in parts.items():
        source = source.replace(f"{{{name}}}", text)
    host = Host.discover([write(tmp_path, "many.py", source)])
    with pytest.raises(PluginError) as caught:
        host.check()
    assert says in str(caught.value)
    (line,) = host.table()
    assert line.status == "failed"
    assert says in (line.cause or "")


def test_a_run_that_goes_on_asks_no_part_for_what_only_a_new_search_needs(tmp_path: Path) -> None:
    source = MANY.replace("{space}", "1 / 0").replace("{backbones}", "1 / 0").replace("{strategies}", "Mine()")
    host = Host.recorded([file_ref(write(tmp_path, "many.py", source))])
    assert (list(host.parts(autoft.Zoo)), list(host.parts(autoft.FreezeStrategy))) == (["own"], ["mine"])
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        host.check()
    twice = write(tmp_path, "twice.py", source.replace("[Mine()]", "[Mine(), Mine()]"))
    with pytest.raises(PluginError, match="two parts called 'mine'"):
        Host.recorded([file_ref(twice)])


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the built-in strategies, and nothing else."""
    monkeypatch.setattr(host_module, "BUILTINS", ("autoft.builtin.freeze",))


@pytest.mark.usefixtures("built_in")
def test_a_file_of_a_builtins_name_is_to_be_renamed_and_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, "freeze.py", FILE.format(zoo="mine"))
    with pytest.raises(PluginError, match=r"the name 'freeze' is taken by plugin 'freeze' of .*'autoft'.*; rename"):
        Host.discover([file]).check()
    both = r"would switch off both .*'autoft'.* and .*freeze\.py.*; rename"
    with pytest.raises(StudyError, match=f"^-p no:freeze {both}"):
        Host.discover([file, "no:freeze"])
    monkeypatch.setenv("AUTOFT_DISABLE_PLUGINS", "freeze")
    with pytest.raises(StudyError, match=f"^'freeze' in AUTOFT_DISABLE_PLUGINS {both}"):
        Host.discover([file])
    monkeypatch.delenv("AUTOFT_DISABLE_PLUGINS")
    recorded = Host.discover().refs
    with pytest.raises(PluginError, match=r"taken by plugin 'freeze' of .*'autoft'.*; rename the file"):
        Host.recorded(recorded, [file])


def test_a_file_that_is_given_twice_is_not_to_be_renamed(tmp_path: Path) -> None:
    file = write(tmp_path, "x.py", FILE.format(zoo="x"))
    with pytest.raises(PluginError, match=r"x\.py.* failed to load: it is given twice; give it once"):
        Host.discover([file, file]).check()
    with pytest.raises(PluginError, match=r"x\.py.*: it is given twice; give it once"):
        Host.recorded([], [file, file])


def test_two_files_of_one_name_are_refused_by_a_run_that_goes_on_too(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
    one, two = (write(tmp_path / folder, "x.py", FILE.format(zoo="x")) for folder in "ab")
    for make in (lambda: Host.discover([one, two]).check(), lambda: Host.recorded([file_ref(one)], [one, two])):
        with pytest.raises(PluginError, match=r"b/x\.py\).*the name 'x' is taken by plugin 'x' \(.*a/x\.py\); rename"):
            make()


@pytest.mark.usefixtures("built_in")
def test_a_part_of_a_builtins_name_is_to_be_renamed(tmp_path: Path) -> None:
    source = MANY.replace("{space}", "{}").replace("{backbones}", "").replace("{strategies}", 'Mine("probe")')
    with pytest.raises(PluginError) as caught:
        Host.discover([write(tmp_path, "many.py", source)]).check()
    assert str(caught.value).endswith("give yours another `name`, or switch a plugin off with -p no:many")


def test_an_unknown_part_suggests_the_near_one() -> None:
    with pytest.raises(StudyError, match="did you mean 'tiny'"):
        with_zoos(TinyZoo()).part(autoft.Zoo, "tinny")


def test_addresses_must_start_with_their_zoo() -> None:
    with pytest.raises(PluginError, match="other/a"):
        with_zoos(TinyZoo(models=("other/a",))).backbones()
    with pytest.raises(PluginError, match="twice"):
        with_zoos(TinyZoo(models=("tiny/a", "tiny/a"))).backbones()


def test_building_lets_through_what_is_unavailable_and_blames_the_rest() -> None:
    host = with_zoos(TinyZoo())
    with pytest.raises(BackboneUnavailable):
        host.build(host.backbones()[0])
    broken = TinyZoo()
    broken.build = lambda backbone: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        with_zoos(broken).build(host.backbones()[0])


def test_a_failing_tracker_is_one_warning_and_spares_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Second(Tracker):
        pass

    bad, good = Tracker(OSError("disk")), Second()
    host = Host.discover(objects=[bad, good])
    trial = autoft.Trial(0, "z/b", "f", 32, {}, 0)
    report = autoft.Report(0, "finished", 1.0, 0.5, 1.0)
    with caplog.at_level(logging.WARNING, "autoft"):
        host.tell(hookspecs.autoft_slice_ended, trial, report)
        host.tell(hookspecs.autoft_slice_ended, trial, report)
    assert good.seen == [report, report]
    assert len(bad.seen) == 2
    (record,) = caplog.records
    assert "'Tracker'" in record.getMessage()
    assert "OSError: disk" in record.getMessage()


def test_an_object_that_no_worker_can_import_stays_inline() -> None:
    host = with_zoos(TinyZoo())
    assert host.inline_only == ("Plugin",)
    with pytest.raises(PluginError, match=r"give the object again.*-p no:Plugin"):
        Host.from_refs(host.refs)


def test_such_an_object_can_be_given_again_on_resume() -> None:
    plugin = Plugin(lambda: [TinyZoo()])
    assert list(Host.from_refs(Host.discover(objects=[plugin]).refs, [plugin]).parts(autoft.Zoo)) == ["tiny"]


def test_an_importable_object_goes_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(importable=importable))
    host = Host.discover(objects=[importable])
    assert host.inline_only == ()
    assert list(Host.from_refs(host.refs).parts(autoft.Zoo)) == ["importable"]


def test_discovering_and_the_table_import_nothing_heavy() -> None:
    code = (
        "import sys; from autoft.parts.host import Host; Host.discover().table();"
        "sys.exit(str(sorted({'torch','timm','ray','onnx','onnxruntime','sklearn'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_plugins_are_named_for_a_stranger_without_their_place(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("# nothing")
    digest = hashlib.sha256(b"# nothing").hexdigest()
    refs = (
        PluginRef("timm", "builtin", "autoft.builtin.timm_zoo", "autoft", "0.1.0"),
        PluginRef("lite", "entry_point", "autoft_lite", "autoft-lite", "0.2.0"),
        file_ref(str(file)),
    )
    assert plugin_versions(refs) == {"plugin lite": "autoft-lite 0.2.0", "plugin mine": f"mine.py, SHA-256 {digest}"}


def test_a_stranger_is_told_every_version_and_content_that_a_run_has_used(
    tmp_path: Path, installed: Callable[[str, str, str], None]
) -> None:
    installed("autoft-alpha", "alpha", FILE.format(zoo="alpha"))
    first, second = FILE.format(zoo="mine"), FILE.format(zoo="mine") + "# changed"
    mine = Path(write(tmp_path, "mine.py", first))
    recorded = [PluginRef("alpha", "entry_point", "autoft_alpha", "autoft-alpha", "1.4"), file_ref(str(mine))]
    mine.write_text(second)
    host = Host.recorded(recorded)
    begun, now = (f"mine.py, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}" for text in (first, second))
    assert plugin_versions(host.refs) == {
        "plugin alpha": "autoft-alpha 1.5; earlier in this run: autoft-alpha 1.4",
        "plugin mine": f"{now}; earlier in this run: {begun}",
    }
    assert f"the run used {begun} as plugin 'mine'; here it is {now}" in host.warnings()
    again = [decode(PluginRef, encode(ref)) for ref in host.refs]
    assert plugin_versions(Host.recorded(again).refs) == plugin_versions(host.refs)
    assert Host.recorded(again).warnings() == []
    mine.write_text(first)  # and back: both have had a part in it
    assert plugin_versions(Host.recorded(again).refs)["plugin mine"] == f"{begun}; earlier in this run: {now}"


def test_a_file_that_has_only_moved_is_the_same_plugin(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    old, new = (write(tmp_path / folder, "mine.py", FILE.format(zoo="mine")) for folder in ("old", "new"))
    host = Host.recorded([file_ref(old)], [new])
    assert (host.refs[0].location, host.refs[0].earlier, host.warnings()) == (new, (), [])


def test_of_a_file_whose_content_an_older_version_did_not_record_nothing_is_claimed(tmp_path: Path) -> None:
    mine = write(tmp_path, "mine.py", FILE.format(zoo="mine"))
    host = Host.recorded([PluginRef("mine", "file", mine)])
    assert (host.refs[0].sha256, host.refs[0].earlier, host.warnings()) == (file_ref(mine).sha256, (), [])


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write(tmp_path, "mine.py", FILE.format(zoo="mine"))
    ref = file_ref(mine)

    def refuse(path: Path) -> str:  # as `chmod 0` does to who is not root
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("autoft.parts.plugins.sha256", refuse)
    with pytest.raises(StudyError, match=r"mine\.py cannot be read: Permission denied"):
        file_ref(mine)
    with pytest.raises(PluginError, match=r"cannot be read \(Permission denied\); say where it is"):
        Host.from_refs([ref])
