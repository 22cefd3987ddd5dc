from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest

from continual.launch import devices
from continual.launch.devices import dealt_gpu


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"GPU-{i}"))
    monkeypatch.setattr(devices, "PATIENCE", 0.05)


def _hold(folder, numbers, release):
    with dealt_gpu(folder) as gpu:
        numbers.put(gpu)
        release.wait(30)


@pytest.mark.parametrize("dies", [False, True])
def test_each_job_has_a_gpu_of_its_own_and_the_third_waits(two_gpus, tmp_path, dies):
    context = multiprocessing.get_context("fork")
    numbers, releases = context.Queue(), [context.Event() for _ in range(3)]
    jobs = [context.Process(target=_hold, args=(tmp_path, numbers, release)) for release in releases]
    dealt = []
    for job in jobs[:2]:
        job.start()
        dealt.append(numbers.get(timeout=30))
    assert sorted(dealt) == [0, 1]
    jobs[2].start()
    jobs[2].join(0.3)
    assert numbers.empty()
    jobs[0].kill() if dies else releases[0].set()
    jobs[0].join()
    assert numbers.get(timeout=30) == dealt[0]
    for job, release in zip(jobs[1:], releases[1:], strict=True):
        release.set()
        job.join()


def test_an_error_gives_the_gpu_back(two_gpus, tmp_path):
    def fail():
        with dealt_gpu(tmp_path):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with dealt_gpu(tmp_path) as gpu:
        assert gpu == 0
