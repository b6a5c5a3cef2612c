"""Items in several processes."""

import math
import os

import pytest

from nucleoscope.stats import parallel


@pytest.mark.parametrize("jobs", [1, 2, None])
def test_the_number_of_processes_does_not_matter(jobs):
    assert parallel.map_parallel(math.sqrt, iter([4, 9, 16]), jobs) == [2, 3, 4]
    assert parallel.map_parallel(math.sqrt, [], jobs) == []


def test_an_error_in_another_process_is_raised_here():
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        parallel.map_parallel(math.sqrt, [1, -1], 2)


def test_systems_that_do_not_tell_which_cores_a_process_may_use_are_no_hindrance(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert parallel.map_parallel(abs, [-1], None) == [1]
    assert parallel.count_cores() >= 1


@pytest.mark.parametrize(("given", "expected"), [("2", 2), ("64", 4), ("", 4), ("0", 4), ("2,1", 4)])
def test_a_job_uses_only_the_cores_that_it_was_given(monkeypatch, given, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert parallel.count_cores() == expected


@pytest.mark.parametrize(("cores", "jobs", "expected"), [(8, 2, "4"), (2, 2, "1"), (1, 3, "1")])
def test_processes_share_the_cores(monkeypatch, cores, jobs, expected):
    monkeypatch.setattr(parallel, "count_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    before = dict(os.environ)
    found = parallel.map_parallel(os.getenv, parallel.THREADS * jobs, jobs)
    assert found == [expected, expected, "1"] * jobs  # the user's own limit stays
    assert dict(os.environ) == before
