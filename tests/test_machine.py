"""What the machine offers, and how it is shared out."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoft import Ledger, Report, Slice, StudyError, Trial
from autoft.study import machine
from autoft.study.machine import GIB, MIB, WORKER_BYTES, Resources, Slowness, share_out, worker_memory
from autoft.study.study import Study
from autoft.system.cgroups import cpu_quota, memory_left
from autoft.system.screen import Silent
from autoft.values.trial import Clock, Queued


class Notes(Silent):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def shared(*nodes, runner="ray", need=WORKER_BYTES, **study):
    notes = Notes()
    return share_out(Study("data", **study), runner, nodes, need, notes), notes.lines


def test_one_worker_a_core_without_a_word():
    found, said = shared(Resources(2, 0, 22 * GIB))
    assert (found.device, found.workers, found.threads, found.gpus, said) == ("cpu", 2, 1, 0.0, [])


def test_memory_limits_the_workers_and_is_named():
    found, (line,) = shared(Resources(64, 0, 14 * GIB))
    assert (found.workers, found.threads) == (9, 7)
    assert "9 workers and not 64: each needs 1.5 GiB, and 14.0 GiB are free" in line
    assert shared(Resources(4, 0, 12 * GIB), need=5 * GIB)[0].workers == 2
    assert shared(Resources(4, 0, -GIB))[0].workers == 1  # one is always tried


def test_asked_for_workers_are_not_taken_away_for_memory():
    assert shared(Resources(8, 0, 2 * GIB), workers=4)[0].workers == 4


def test_more_workers_than_cores_share_them():
    found, said = shared(Resources(2, 0, 22 * GIB), workers=3)
    assert (found.workers, found.threads, said) == (3, 1, [])
    assert found.cpus * 3 <= 2


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(1, 4, 1 / 4), (2, 3, 1 / 2), (2, 2, 1.0), (4, 2, 1.0), (2, 5, 1 / 3)]
)
def test_workers_share_gpus_so_that_all_find_a_place(gpus, workers, share):
    found, said = shared(Resources(8, gpus, 100 * GIB), workers=workers)
    assert found.gpus == pytest.approx(share)
    assert (found.device, found.workers) == ("cuda", workers)
    assert bool(said) == (workers > gpus)


@pytest.mark.parametrize(
    ("cores", "gpus", "most", "workers", "share"),
    [
        (16, 1, 4, 4, 1 / 4),
        (2, 1, 4, 2, 1 / 2),
        (32, 4, 4, 16, 1 / 4),
        (10, 4, 4, 10, 1 / 3),
        (4, 8, 4, 8, 1.0),  # one each, whatever cores there are
        (16, 2, 1, 2, 1.0),  # a cluster that others use too
    ],
)
def test_where_nothing_is_said_as_many_may_share_a_gpu_as_there_are_cores(cores, gpus, most, workers, share):
    found, said = shared(Resources(cores, gpus, 100 * GIB, most))
    assert (found.device, found.workers, found.gpus, said) == ("cuda", workers, pytest.approx(share), [])
    assert found.measured == (gpus if workers > gpus else 0)
    assert found.sure == gpus
    assert found.workers * found.cpus <= max(cores, workers)


def test_memory_limits_those_that_share_a_gpu_too():
    found, (line,) = shared(Resources(16, 1, 5 * GIB, 4))
    assert (found.workers, found.measured) == (3, 1)
    assert "3 workers and not 4: each needs 1.5 GiB" in line
    assert shared(Resources(16, 1, 2 * GIB, 4))[0].measured == 0


@pytest.mark.parametrize("study", [{"gpus_per_trial": 0.5}, {"workers": 2}])
def test_a_number_is_kept_to_and_nothing_is_measured(study):
    found, _ = shared(Resources(16, 1, 100 * GIB, 4), **study)
    assert (found.workers, found.gpus, found.measured, found.sure) == (2, 0.5, 0, 2)


def test_inline_no_gpu_is_shared():
    found, said = shared(Resources(16, 2, 100 * GIB, 4), runner="inline")
    assert (found.workers, found.threads, found.gpus, found.measured, said) == (1, 16, 1.0, 0, [])


def test_one_worker_a_gpu_also_with_fewer_cores_than_gpus():
    found, said = shared(Resources(4, 8, 100 * GIB))
    assert (found.workers, found.threads, said) == (8, 1, [])


def test_more_gpus_a_trial_than_there_are_is_refused():
    with pytest.raises(StudyError, match=r"asks for more than there is here, 1 GPU$"):
        shared(Resources(8, 1, 100 * GIB), gpus_per_trial=2.0)


def test_a_worker_does_not_reach_over_machines():
    found, (line,) = shared(Resources(3, 0, 50 * GIB), Resources(3, 0, 50 * GIB), workers=3)
    assert (found.workers, found.threads) == (2, 2)
    assert "2 workers and not 3" in line


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(StudyError, match="no worker fits into 0 cores and 0 GPUs; use --runner inline"):
        shared(Resources(0, 0, GIB))


def test_inline_is_one_worker_with_all_cores():
    found, said = shared(Resources(6, 0, GIB), runner="inline", workers=4)
    assert (found.workers, found.threads, said) == (1, 6, [])


def test_what_a_worker_needs_is_measured():
    ledger = Ledger()
    assert worker_memory(ledger) == WORKER_BYTES
    for number, peak in enumerate((900, 2000)):
        trial = Trial(number, "b", "full", 64, {}, 0)
        ledger.record(Queued(number, Slice(trial, 0.0, 1.0, 9.0), Clock(0.0, 9.0)))
        ledger.record(Report(number, "finished", 1.0, 0.5, 1.0, {"peak_rss_mib": peak}))
    assert worker_memory(ledger) == 2000 * MIB


def control_groups(root: Path, membership: str, files: dict[str, str]) -> Path:
    for name, text in ({"proc/self/cgroup": membership} | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {f"{V2}/cpu.max": "150000 100000"}, 1.5),
        ("0::/", {f"{V2}/cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        # the limit is two levels up, and tighter than the one beside the process
        (
            "0::/pod/app/step",
            {f"{V2}/pod/cpu.max": "200000 100000", f"{V2}/pod/app/step/cpu.max": "400000 100000"},
            2.0,
        ),
        # the path is the host's, of which the container sees nothing but its own root
        ("0::/host/docker/1234", {f"{V2}/cpu.max": "300000 100000"}, 3.0),
        (
            "4:memory:/x\n3:cpu,cpuacct:/job/1\n0::/",
            {f"{V2}/cpu/job/cpu.cfs_quota_us": "250000", f"{V2}/cpu/job/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        ("3:cpu:/", {f"{V2}/cpu/cpu.cfs_quota_us": "-1", f"{V2}/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cpu_quotas(tmp_path, membership, files, quota):
    assert cpu_quota(control_groups(tmp_path, membership, files)) == quota


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        (
            "0::/a/b",
            {
                f"{V2}/a/b/memory.max": "max",
                f"{V2}/a/b/memory.current": "50",
                f"{V2}/a/memory.max": "1000",
                f"{V2}/a/memory.current": "700",
                f"{V2}/a/memory.stat": "anon 300\ninactive_file 400",
            },
            700,
        ),
        (
            "4:memory:/job",
            {
                f"{V2}/memory/job/memory.limit_in_bytes": "1000",
                f"{V2}/memory/job/memory.usage_in_bytes": "900",
                f"{V2}/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 100",
            },
            200,
        ),
        ("0::/", {}, None),
    ],
)
def test_memory_limits(tmp_path, membership, files, left):
    assert memory_left(control_groups(tmp_path, membership, files)) == left


def test_cores_are_those_of_the_quota(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.4)
    assert machine.cores() == 1
    monkeypatch.setattr(machine, "cpu_quota", lambda: 1e6)
    assert machine.cores() >= 1


@pytest.mark.parametrize(
    ("load", "others", "crowding"),
    [
        (0.5, 0.0, 1.0),
        (0.5, 3.0, 1.0),  # a core is left
        (0.5, 5.0, 1.5),  # they have just begun
        (3.0, 8.0, 2.25),
        (10.0, 0.0, 2.0),  # they come and go
        (10.0, None, 2.0),  # the system does not say
        (1.0, None, 1.0),
    ],
)
def test_how_crowded_a_machine_of_four_cores_is(monkeypatch, load, others, crowding):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "_felt", lambda: 1.0)
    assert Slowness(own=3.0, others=lambda: others)() == crowding
    monkeypatch.setattr(machine, "_felt", lambda: 0.5)
    assert Slowness(own=3.0, others=lambda: others)() == (1 + crowding) / 2


@pytest.mark.parametrize(
    ("others", "waits", "felt"),
    [
        ((2, 2), 0.5, 1.0),  # a fair share of two cores
        ((2, 2), 0.9, 1.0),
        ((2, 2), 0.2, 0.4),  # that of a session of its own
        ((2, 2), 0.0, 0.25),
        ((2, 3), 0.2, 0.4),
        ((2, 1), 0.0, 1.0),  # those that made the machine crowded have gone meanwhile
        ((1, 2), 0.0, 1.0),  # or before
        ((None, None), 0.0, 1.0),
    ],
)
def test_how_much_of_the_others_is_felt_is_measured_once(monkeypatch, others, waits, felt):
    readings = iter((*others, 2, 2))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "OtherTasks", lambda: lambda: next(readings))
    monkeypatch.setattr(machine, "waiting", lambda seconds: waits)
    measured = machine._Felt()
    assert measured() == pytest.approx(felt)
    if felt < 1.0:
        monkeypatch.setattr(machine, "waiting", lambda seconds: 1 / 0)
        assert measured() == pytest.approx(felt), "which is kept"


def test_what_was_gone_before_it_could_be_measured_says_nothing_of_what_comes(monkeypatch):
    readings = iter((2, 1, 2, 2))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "OtherTasks", lambda: lambda: next(readings))
    monkeypatch.setattr(machine, "waiting", lambda seconds: 0.2)
    measured = machine._Felt()
    assert (measured(), measured()) == (1.0, pytest.approx(0.4))


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_in_bytes(monkeypatch, platform, unit):
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(machine.sys, "platform", platform)
    assert machine.peak_memory() >= peak * unit
    assert machine.peak_memory() < 2 * peak * unit
