"""The Ray runner, on a real local cluster."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from functools import partial
from pathlib import Path

import pytest
from parts.pace import SLOWNESS

ray = pytest.importorskip("ray")

ZOO = str(Path(__file__).parent / "parts" / "small_zoo.py")


def autoft(*arguments, **environment):
    command = [sys.executable, "-m", "autoft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def scores(run: Path):
    lines = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    return {line["trial"]: line["score"] for line in lines if "score" in line}


@pytest.mark.slow
def test_same_slices_give_the_same_scores_as_inline(tiny_images, tmp_path):
    common = ("-p", ZOO, "--backbones", "small/test_resnet", "--searcher", "random", "--trials", 3, "--time", "3m")
    for runner in ("inline", "ray"):
        done = autoft(
            *("search", tiny_images, *common, "--no-refit", "--workers", 1, "--runner", runner),
            *("--out", tmp_path / runner, "--json"),
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trials"]["failed"] == 0
    inline, distributed = scores(tmp_path / "inline"), scores(tmp_path / "ray")
    assert set(inline) == set(distributed) == {0, 1, 2}
    assert distributed == pytest.approx(inline, abs=1e-6)


@pytest.mark.slow
def test_ray_is_silent_and_sigterm_leaves_a_run_that_goes_on(tiny_images, tmp_path):
    run = tmp_path / "run"
    common = ("-p", ZOO, "--backbones", "small/test_resnet", "--time", "3m", "--runner", "ray")
    command = [sys.executable, "-m", "autoft", *map(str, ("search", tiny_images, *common, "--out", run))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if re.search(r"paused, \d\.\d+ at", line):  # there is a model
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert f"autoft resume {run}" in err
    assert "ray" not in (out + err).replace(str(tmp_path), "").lower()
    before = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    used = max(line.get("elapsed", 0.0) for line in before)
    done = autoft("resume", run, "--time", f"{used + 30 * SLOWNESS:.0f}s", "--json")
    assert done.returncode == 0, done.stderr
    after = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    assert after[: len(before)] == before
    ended = [line["trial"] for line in after if line["event"] in ("finished", "failed")]
    assert len(ended) == len(set(ended))


@pytest.mark.slow
def test_trials_see_distinct_gpus(tiny_images, tmp_path, monkeypatch):
    """Logical GPUs stand in for real ones: what Ray hands each actor is the same."""
    log = tmp_path / "log"
    log.mkdir()
    script = f"""
import threading
import time
import weakref, ray, dataclasses
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
from autoft.engine import engine, execution
from autoft.system.screen import Silent
from autoft.study.study import Study
site = execution.Site
execution.Site = lambda run, machine, origin: site(run, dataclasses.replace(machine, gpus=1.0), origin)
study = Study(data={str(tiny_images)!r}, out={str(tmp_path / "run")!r}, plugins=({ZOO!r},), time=120.0, trials=4,
              backbones=("small/test_resnet",), searcher="random", freeze=("full",), workers=2, runner="ray")
engine.search(study, Silent(), time.time())
"""
    environment = {**os.environ, "AUTOFT_TEST_GPU_LOG": str(log)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    seen = sorted(file.read_text() for file in log.iterdir())
    assert [gpu for gpu in seen if gpu in ("0", "1")] == ["0", "1"], seen


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("roomy", 2), ("full", 1)])
def test_workers_share_logical_gpus_as_is_measured(tmp_path, kind, number):
    """Two GPUs and four workers: no GPU has two before each has one, nor more than are worth it in the end."""
    command = [sys.executable, str(Path(__file__).parent / "parts" / "ray_sharing.py"), str(tmp_path), kind]
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    slices, places = found["slices"], {process: gpu for _, process, gpu, _ in found["slices"]}
    assert [trial for trial, *_ in slices] == list(range(len(slices)))  # each once, whoever gave up its seat
    assert {(process, gpu) for _, process, gpu, _ in slices} == set(places.items())  # a process keeps to its GPU
    assert list(places.values())[:2] == ["0", "1"]
    assert max(together for *_, together in slices) == 2
    last = slices[-12:-4]
    assert {gpu for _, _, gpu, _ in last} == {"0", "1"}
    # One more where the machine was so busy that somebody's seat was given up as late as that.
    assert 2 * number <= len({process for _, process, _, _ in last}) <= 2 * number + 1
    assert len(places) <= 2 * 2 + 4
    assert found["left"] == 1  # a worker that gave up its seat, and what it had was not lost
    news = "2 trials share each GPU: together 2.0 times one alone"
    assert found["said"] == ([news] if number == 2 else [])


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """What came of each fault in `parts/ray_faults.py`, all on one small cluster."""
    command = [sys.executable, str(Path(__file__).parent / "parts" / "ray_faults.py"), tmp_path_factory.mktemp("runs")]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ray" not in done.stderr.lower(), done.stderr  # a report says it, and says it better
    assert len(done.stdout.splitlines()) == 1, done.stdout
    return json.loads(done.stdout)


BREAKING = """
from autoft import WAIT, Searcher, Slice, hookimpl

class Breaking(Searcher):
    name = "breaking"

    def ask(self, problem, ledger, clock):
        if ledger.ranking():
            raise ValueError("no more")
        if ledger.in_flight:
            return WAIT
        number, (probe,) = len(ledger.trials), problem.candidates
        return Slice(probe.trial(number, {}, 0), 0.0, 1.0, clock.deadline)

@hookimpl
def autoft_searchers():
    return [Breaking()]
"""


@pytest.mark.slow
def test_what_a_searcher_raises_is_one_line_that_says_how_to_come_to_the_best_so_far(tiny_images, tmp_path):
    """As without Ray, of which nobody hears."""
    (plugin := tmp_path / "breaking.py").write_text(BREAKING)
    searched = ("--searcher", "breaking", "--backbones", "small/test_resnet", "--freeze", "probe", "--runner", "ray")
    done = autoft("search", tiny_images, "-p", ZOO, "-p", plugin, *searched, "--time", "3m", "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: plugin 'breaking'") and "ValueError: no more" in line
    assert line.endswith(f"the best so far is kept, and `autoft export {tmp_path / 'run'}` hands it over")
    assert "ray" not in done.stderr.replace(str(tmp_path), "").lower()


@pytest.mark.parametrize("kind", ["PluginError", "RunFolderError", "WeightsChanged"])
def test_what_a_worker_raises_that_no_trial_is_to_blame_for_ends_the_search_as_itself(tmp_path, monkeypatch, kind):
    from autoft import PluginError, Slice, Trial
    from autoft.errors import RunFolderError
    from autoft.runners import ray as subject
    from autoft.runners.base import Site
    from autoft.study.record import Machine
    from autoft.train.workshop import WeightsChanged
    from autoft.values.codec import encode

    raised = {one.__name__: one for one in (PluginError, RunFolderError, WeightsChanged)}[kind]

    def refuse(*arguments):
        raise raised("plugin 'mine' changed during the search")

    monkeypatch.setattr("autoft.train.worker.Worker.open", refuse)
    errand = subject._Errand(str(tmp_path), 1, "cpu", (), 0.0, Slice(Trial(0, "b", "f", 64, {}, 0), 0.0, 1.0, 1e12))
    worker = object.__new__(subject._SliceTrainable)  # without Tune around it
    worker.setup({"errand": encode(errand)})
    result = worker.step()
    adapter = subject._Adapter(None, Site(tmp_path, Machine("ray", 1, 1, "cpu"), 0.0), None)
    adapter.on_trial_complete("tune's", result)
    assert str(adapter.error) == "plugin 'mine' changed during the search"
    assert issubclass(raised, type(adapter.error)) and isinstance(adapter.error, PluginError | RunFolderError)
    assert "report" not in result


def test_a_slice_that_a_worker_left_for_a_better_seat_goes_to_the_next(tmp_path):
    from autoft import DONE, Ledger, Report, Slice, Trial
    from autoft.parts.host import Host
    from autoft.runners import ray as subject
    from autoft.runners.base import Site
    from autoft.study.record import Machine
    from autoft.system.screen import Silent
    from autoft.values.codec import decode, encode

    class Search:
        host, screen, ledger = Host.from_refs(()), Silent(), Ledger()

        def __init__(self):
            self.begun, self.told, self.waiting = [], [], []
            self._answers = [DONE, Slice(Trial(0, "b", "f", 64, {}, 0), 0.0, 1.0, 1e12)]

        def ask(self):
            return self._answers.pop()

        def began(self, trial):
            self.begun.append(trial)

        def left(self, slice_):
            self.waiting.append(slice_.trial.id)

        def tell(self, report):
            self.told.append(report.trial)

    search = Search()

    site, mark = Site(tmp_path, Machine("ray", 2, 1, "cuda", 1.0, 0.5, 1), 0.0), tmp_path / subject.WAITING
    adapter = subject._Adapter(search, site, None, str(tmp_path))
    first = adapter.suggest("one")
    assert mark.exists()
    assert adapter.suggest("more") is None  # one a GPU to begin with
    adapter.began("one")
    adapter.died("one", "Traceback of an actor\nautoft.runners.ray.SeatGivenUpError")
    assert (search.told, search.waiting, mark.exists()) == ([], [0], False)
    assert adapter.suggest("two") == first
    adapter.began("two")
    assert (search.begun, mark.exists()) == ([0, 0], False)
    where = subject.Where(0, True, 3.0)
    result = {"report": encode(Report(0, "finished", 1.0, 0.5, 2.0)), "where": encode(where)}
    assert decode(subject.Where, result["where"]) == where
    adapter.on_trial_complete("two", result)
    assert (search.told, adapter.error) == ([0], None)
    assert adapter.suggest("three") == "FINISHED"


@pytest.mark.parametrize("obstacle", ["no place for its sockets", None])
def test_what_was_started_for_ray_ends_where_ray_does_not_start(monkeypatch, obstacle):
    from autoft.errors import StudyError
    from autoft.runners import ray as subject

    class Mps:
        seen = ()

        def start(self):
            Mps.seen = (*Mps.seen, "started")

        def close(self):
            Mps.seen = (*Mps.seen, "closed")

    def refuse(**options):
        raise RuntimeError("no")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(subject, "ray_obstacle", lambda: obstacle)
    monkeypatch.setattr(subject, "_import_worker", lambda: None)
    monkeypatch.setattr(subject.ray, "init", refuse)
    with pytest.raises(StudyError, match="Ray cannot start"):
        subject.RayRunner(Mps()).warm_up(1)
    assert Mps.seen == (() if obstacle else ("started", "closed"))


@pytest.mark.parametrize(("gpus_per_trial", "starts"), [(None, True), (0.5, True), (1.0, False), (2.0, False)])
def test_mps_is_for_searches_that_share_a_gpu(gpus_per_trial, starts):
    from autoft.engine import engine
    from autoft.study.study import Study
    from autoft.system.screen import Silent

    runner = engine._runner_named("ray", Study("photos", gpus_per_trial=gpus_per_trial), Silent())
    assert (runner._mps is not None) == starts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("segv", "the worker process crashed inside a library (SIGSEGV)"),
        ("exit", "the worker process ended itself with exit code 4"),
        ("kill", "the worker process was killed from outside, or a library ended it without a word"),
        ("raise", "ValueError: the slice; traceback in "),
    ],
)
def test_a_lost_worker_is_a_failed_slice_with_its_cause(faults, fault, cause):
    state, said = faults["deaths"][fault]
    assert state == "failed"
    assert said.startswith(cause)


@pytest.mark.slow
def test_a_slice_goes_on_when_memory_runs_out_for_its_worker_and_is_failed_when_it_does_so_again(faults):
    once = ["queued", "started", "lost", "queued", "started", "finished"]
    for trial, events in enumerate((once, [*once[:-1], "lost", "failed"])):
        assert [event for event, number in faults["starved"] if number == trial] == events
    assert faults["starved for ever"].startswith(
        "2 processes lost: the system killed the worker process because memory ran out"
    )


@pytest.mark.parametrize(
    ("said", "kills", "of_memory"),
    [
        ("Task was killed due to the node running low on memory.", 0, True),
        ("The actor died: worker process has died. pid: 1", 1, True),
        ("The actor died: worker process has died. pid: 1", 0, False),
        ("The worker exited with an exit code 4.", 1, False),
    ],
)
def test_memory_is_told_from_other_causes_of_death(monkeypatch, said, kills, of_memory):
    from autoft.runners import deaths

    monkeypatch.setattr(deaths, "oom_kills", lambda: 0)
    accounted = deaths.OomKills()
    monkeypatch.setattr(deaths, "oom_kills", lambda: kills)
    assert deaths.cause_of_death(said, None, partial(accounted.account_for, "one")).of_memory == of_memory


def test_of_workers_killed_for_memory_together_each_is_put_down_to_it(monkeypatch):
    from autoft.runners import deaths

    monkeypatch.setattr(deaths, "oom_kills", lambda: 3)
    accounted, said = deaths.OomKills(), "The actor died: worker process has died. pid: 1"
    monkeypatch.setattr(deaths, "oom_kills", lambda: 5)
    killed = {name: partial(accounted.account_for, name) for name in ("one", "two", "three")}
    ended_itself = deaths.cause_of_death("The worker exited with an exit code 4.", None, killed["one"])
    assert not ended_itself.of_memory
    found = [deaths.cause_of_death(said, None, was).of_memory for was in killed.values()]
    assert found == [True, True, False]


@pytest.mark.parametrize(("killed", "told", "lost"), [("before", [0], []), ("since", [], [0])])
def test_only_what_is_killed_after_a_slice_began_is_why_its_worker_is_lost(monkeypatch, tmp_path, killed, told, lost):
    from autoft import Ledger, Slice, Trial
    from autoft.parts.host import Host
    from autoft.runners import deaths
    from autoft.runners import ray as subject
    from autoft.runners.base import Site
    from autoft.study.record import Machine

    class Search:
        host, ledger = Host.from_refs(()), Ledger()

        def ask(self):
            return Slice(Trial(0, "b", "f", 64, {}, 0), 0.0, 1.0, 1e12)

        def began(self, trial):
            pass

        def tell(self, report):
            told_.append(report.trial)

        def lost(self, trial, error):
            lost_.append(trial)

    kills, told_, lost_ = [3], [], []
    monkeypatch.setattr(deaths, "oom_kills", lambda: kills[0])
    adapter = subject._Adapter(Search(), Site(tmp_path, Machine("ray", 1, 1, "cpu"), 0.0), None)
    adapter.suggest("one")
    kills[0] += killed == "before"
    adapter.began("one")
    kills[0] += killed == "since"
    adapter.died("one", "The actor died: worker process has died. pid: 1")
    assert (adapter.error, told_, lost_) == (None, told, lost)


@pytest.mark.parametrize(
    ("groups", "late", "given_up"),
    [
        ({"ab01000000": "PENDING"}, 1.0, True),
        ({"ab01000000": "PENDING", "cd02000000": "CREATED"}, 1.0, True),  # that of another job
        ({"ab01000000": "CREATED"}, 1.0, False),  # its process starts
        ({"ab01000000": "CREATED"}, 31.0, True),
        ({}, -1.0, False),
    ],
)
def test_past_the_deadline_only_a_worker_that_starts_is_waited_for(monkeypatch, tmp_path, groups, late, given_up):
    """While there is no model. Where no core was ever free for one there is nothing to wait for."""
    from types import SimpleNamespace

    from autoft import Ledger, Slice, Trial
    from autoft.parts.host import Host
    from autoft.runners import ray as subject
    from autoft.runners.base import Site
    from autoft.study.record import Machine

    class Search:
        host, ledger, deadline, told = Host.from_refs(()), Ledger(), 50.0, ()

        def ask(self):
            return Slice(Trial(0, "b", "f", 64, {}, 0), 0.0, 1.0, 60.0)

        def tell(self, report):
            self.told += ((report.event, report.error),)

    monkeypatch.setattr(subject, "start_slowness", lambda: 1.0)
    table = {name: {"state": state} for name, state in groups.items()}
    monkeypatch.setattr(ray.util, "placement_group_table", lambda: table)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))
    search = Search()
    adapter = subject._Adapter(search, Site(tmp_path, Machine("ray", 1, 1, "cpu"), 0.0), None)
    adapter.suggest("one")
    monkeypatch.setattr(adapter, "_now", lambda: 60.0 + late)
    assert adapter.given_up() == given_up
    assert search.told == ((("paused", "no worker was free in time"),) if given_up else ())


def test_what_memory_ended_before_a_slice_began_was_no_process_of_that_slice(monkeypatch):
    """A browser, say, an hour ago. What ends between two that begin may be the first, which is told of later."""
    from autoft.runners import deaths

    kills = [7]
    monkeypatch.setattr(deaths, "oom_kills", lambda: kills[0])
    accounted = deaths.OomKills()
    for slice_ in ("first", "second", "third"):
        kills[0] += 1
        accounted.began(slice_)
    assert not accounted.account_for("third")
    assert accounted.account_for("first")
    assert accounted.account_for("second")
    assert not accounted.account_for("second")
    kills[0] += 1
    assert accounted.account_for("third")
    assert not accounted.account_for("third")


@pytest.mark.slow
def test_every_slice_that_a_worker_takes_is_said_to_begin(faults):
    assert sorted(faults["begun"]) == [0, 1, 2, 3]


@pytest.mark.slow
def test_an_error_in_the_driver_ends_the_search_while_a_slice_runs(faults):
    assert faults["error"]["raised"] == "the driver's own"
    assert faults["error"]["seconds"] < 20  # the slice would have run for a minute
    assert faults["error"]["told"] == []


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["heeding", "deaf"])
def test_a_request_to_stop_reaches_a_worker_in_its_slice(faults, worker):
    assert faults[worker]["seconds"] < 20
    assert faults[worker]["told"] == []


@pytest.mark.slow
def test_a_slice_that_no_worker_takes_is_given_back_at_the_end_of_the_search(faults):
    (report,) = faults["busy"]["told"]
    assert report[:2] == ["paused", "no worker was free in time"]
    assert faults["busy"]["begun"] == []
    assert 1 <= faults["busy"]["seconds"] < 12  # the deadline was after one, and the grace is a minute


@pytest.mark.slow
def test_a_search_goes_on_after_slices_that_no_worker_took_in_time(faults):
    went_on = faults["busy for a while"]
    assert went_on["told"] == 2 * [["paused", "no worker was free in time"]]
    assert sorted(went_on["begun"]) == [0, 1]
    assert went_on["seconds"] > 3  # the deadline of both was after one


@pytest.mark.slow
def test_a_cluster_that_is_up_offers_what_it_has(faults):
    assert faults["free"] == [[2, 0]]  # and not the seven cores that this machine might have
    assert faults["free when busy"] == [[1, 0]]  # one to wait for


@pytest.mark.slow
def test_whoever_had_a_signal_handler_keeps_it(faults):
    assert faults["handlers"]


def test_ray_client_is_refused(monkeypatch):
    from autoft.errors import StudyError
    from autoft.runners.ray import RayRunner

    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    with pytest.raises(StudyError, match="Ray Client"):
        RayRunner().warm_up(1)


def test_what_tune_leaves_in_cycles_is_gone_before_ray_is_shut_down() -> None:
    """One of Ray's references that goes while that is under way ends the process, at once and with code 1."""
    from autoft.runners.ray import RayRunner

    class Left:
        def __init__(self) -> None:
            self.itself = self

    runner, left, seen = RayRunner(), weakref.ref(Left()), []
    runner._connected, runner._leaving = True, threading.Thread(target=lambda: seen.append(left()))
    runner.close()
    assert seen == [None]


def test_imports_ahead_that_fail_are_for_others_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process ends meanwhile: a thread's traceback would come after the last line."""
    from autoft.runners import ray as subject

    def fails(name: str) -> None:
        raise AttributeError(name)

    monkeypatch.setattr(subject.importlib, "import_module", fails)
    subject._import_worker()
