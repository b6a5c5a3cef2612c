"""Writes synthetic runs of the study's size with all variants, analyses them, and prints time and memory.

Each run has 100 prompts of 100 tokens with 16 candidate sets in 6 geometries: 15 runs are 14 million rows.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from nucleoscope.workflow.command_line import Parser, report_errors

sys.path.insert(
    0, str(Path(__file__).parents[1] / "tests")
)  # what draws and writes such files is shared with the tests


def write_runs(folder: Path, runs: int, prompts: int) -> None:
    """Runs of up to five models on data sets of their own, with all files that the analyses read."""
    import variant_files
    from nucleoscope.store import results, tokens
    from nucleoscope.variants import CANDIDATE_SETS, GEOMETRIES

    sets, geometries = [each.name for each in CANDIDATE_SETS], [each.name for each in GEOMETRIES[:6]]
    for number in range(runs):
        table = variant_files.draw_run(number, prompts, 100, level=0.05, sets=sets, geometries=geometries)
        nulls = variant_files.draw_nulls(table[table["geometry"].isin(["raw", "all_but_top_3"])], number, 2000)
        names = f"model {number % 5}", f"data {number // 5}"
        written = variant_files.write_run(folder, table, *names, nulls, variant_files.draw_vocabulary(number))
        tokens.convert(written / results.MEASUREMENTS)  # a run writes it with its measurements


def main() -> None:
    """Prints the seconds of each analysis, and the largest memory of this process and of those that it started."""
    options = Parser(__doc__)
    options.add_whole_number("runs", 1, 100, default=15, help="number of runs")
    options.add_whole_number("prompts", 1, 10**5, default=100, help="prompts per run")
    given = options.parse_args()
    with report_errors(given.debug, interrupted="interrupted"), tempfile.TemporaryDirectory() as folder:
        from nucleoscope.stats import candidate_tables, explained, null_models, specification
        from nucleoscope.store import results

        write_runs(Path(folder), given.runs, given.prompts)
        runs, _ = candidate_tables.find_measured(folder, results.load_readable(folder))
        for name, compute in (
            ("specification curve", specification.compute_specifications),
            ("null models", null_models.compute_null_statistics),
            ("explained variance", explained.compute_explained),
        ):
            start, used = time.perf_counter(), _count_cpu()
            compute(runs, jobs=None)
            print(f"{name}: {time.perf_counter() - start:.0f} s, {_count_cpu() - used:.0f} s of CPU", flush=True)
        own, others = (
            resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(f"memory: {own:.0f} MiB in this process, at most {others:.0f} MiB in each of the others")


def _count_cpu() -> float:
    """Seconds of all cores, of this process and of those that have ended."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
