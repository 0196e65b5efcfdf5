"""What each rank did when, from the files of the profiler, whatever lies in the folder."""

import json

from sppo_report.run_folder import Run
from sppo_report.timeline import MAX_RANKS, timeline


def write(folder, rank, stages, steps="3-5"):
    (folder / "profile").mkdir(exist_ok=True)
    text = json.dumps({"rank": rank, "stages": stages})
    (folder / "profile" / f"rank_{rank:04d}_steps_{steps}_stages.json").write_text(text)


def test_starts_are_counted_from_the_first_stage_of_any_rank(tmp_path):
    write(tmp_path, 1, [["rollouts", 101.0, 103.5], ["optimizer step 3", 104.0, 106.0]])
    write(tmp_path, 0, [["rollouts", 100.0, 103.0]])
    assert timeline(Run("a", tmp_path)) == {
        "seconds": 6.0,
        "num_ranks": 2,
        "ranks": [
            {"rank": 0, "stages": [["rollouts", 0.0, 3.0]]},
            {"rank": 1, "stages": [["rollouts", 1.0, 2.5], ["optimizer step 3", 4.0, 2.0]]},
        ],
    }


def test_the_last_recording_is_shown(tmp_path):
    write(tmp_path, 0, [["rollouts", 50.0, 51.0]], steps="9-9")
    write(tmp_path, 0, [["rollouts", 10.0, 12.0]], steps="10-10")
    assert timeline(Run("a", tmp_path))["seconds"] == 1.0


def test_many_ranks_are_thinned(tmp_path):
    for rank in range(150):
        write(tmp_path, rank, [["rollouts", float(rank), rank + 1.0]])
    found = timeline(Run("a", tmp_path))
    assert (found["num_ranks"], len(found["ranks"]), found["seconds"]) == (150, MAX_RANKS, 150.0)
    assert [of_rank["rank"] for of_rank in found["ranks"]][:3] == [0, 2, 4]


def test_what_is_no_recording_is_named(tmp_path):
    run = Run("a", tmp_path)
    assert timeline(run) is None
    for rank, stages in enumerate(([["rollouts", 2.0, 1.0]], [["x"]], "y", [["x", None, 1.0]], [])):
        write(tmp_path, rank, stages)
    (tmp_path / "profile" / "rank_0009_steps_3-5_stages.json").write_text("{")
    assert timeline(run) is None
    assert [problem.split()[0][:9] for problem in run.problems] == [f"rank_{rank:04d}" for rank in (0, 1, 2, 3, 9)]
