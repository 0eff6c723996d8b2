"""The table of micro-benchmarks and the comparison of two runs, with synthetic runs."""

import json
from copy import deepcopy

import pytest

from ppdm_bench.report.tables import micro

ENVIRONMENT = {"cpu": "C", "threads": 2, "torch": "2.13", "python": "3.11", "commit": "a" * 40, "dirty": False}


def raw():
    """Return a run as pytest-benchmark writes it; most of it is not kept."""
    puzzle = {
        "name": "test_puzzle[2-64]",
        "group": "puzzle",
        "stats": {"q1": 0.0019, "median": 0.002, "q3": 0.00211111, "rounds": 3, "data": [0.0019, 0.002, 0.0022]},
        "extra_info": {
            "beside": {
                "copy": {"seconds": [0.0009, 0.001, 0.0011], "ratio": [1.9, 2.0, 2.1]},
                "einops": {"seconds": [0.0019, 0.002, 0.0021], "ratio": [0.9, 1.0, 1.1]},
            },
            "share_of_copy_bandwidth": 0.5,
        },
    }
    alone = puzzle | {"name": "test_forward", "group": "projector", "extra_info": {}}
    machine = {"node": "secret", "environment": ENVIRONMENT}
    return {"machine_info": machine, "datetime": "2026-01-01", "benchmarks": [puzzle, alone], "version": "5"}


def run(**times):
    """Return a kept run; ``puzzle`` are the quartiles of its seconds, ``ratio`` those of its ratio to a copy."""
    made = micro.trimmed(raw())
    found = made["benchmarks"]["puzzle: puzzle [2-64]"]
    found["seconds"] = times.get("puzzle", found["seconds"])
    found["beside"]["copy"]["ratio"] = times.get("ratio", found["beside"]["copy"]["ratio"])
    return made


def test_the_kept_part_of_a_run_is_small_and_names_no_machine():
    kept = micro.trimmed(raw())
    assert kept["environment"] == ENVIRONMENT
    assert list(kept["benchmarks"]) == ["puzzle: puzzle [2-64]", "projector: forward"]
    assert kept["benchmarks"]["puzzle: puzzle [2-64]"]["seconds"] == [0.0019, 0.002, 0.002111]
    assert "secret" not in json.dumps(kept)
    assert '"data"' not in json.dumps(kept)


def test_the_table_has_a_row_per_benchmark_and_compared_library():
    text = micro.micro_page(micro.trimmed(raw())).to_markdown()
    assert (
        "| puzzle: puzzle [2-64] | 2.00 (1.90 to 2.11) | copy | 1.00 (0.900 to 1.10) | 2.00× (1.90× to 2.10×) | 50% |"
        in text
    )
    assert (
        "| puzzle: puzzle [2-64] | 2.00 (1.90 to 2.11) | einops | 2.00 (1.90 to 2.10) | 1.00× (0.900× to 1.10×) | – |"
        in text
    )
    assert "| projector: forward | 2.00 (1.90 to 2.11) | – | – | – | – |" in text
    assert "2 threads" in text
    assert "commit aaaaaaaaaa." in micro.micro_page(micro.trimmed(raw())).to_text()


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({}, []),
        ({"puzzle": [0.0029, 0.003, 0.0031]}, ["puzzle: puzzle [2-64]: slower, 1.50 times as long"]),
        ({"puzzle": [0.0009, 0.001, 0.0011]}, ["puzzle: puzzle [2-64]: faster, 0.50 times as long"]),
        ({"puzzle": [0.0020, 0.003, 0.0040]}, []),  # the interquartile ranges overlap, so it may be noise
        ({"puzzle": [0.00212, 0.00213, 0.00214]}, []),  # the ranges do not overlap, but the change is small
        ({"ratio": [3.9, 4.0, 4.1]}, ["puzzle: puzzle [2-64] relative to copy: slower, 2.00 times as long"]),
    ],
)
def test_a_change_is_reported_if_it_is_large_and_not_noise(times, words):
    head, *told = micro.compare(run(**times), run())
    assert told == words
    assert head.startswith("Against the saved run (times and ratios)")
    assert f"{len(words) or 'no'} changes in 2 benchmarks" in head


def test_on_another_machine_only_ratios_are_compared():
    slow = run(puzzle=[0.0029, 0.003, 0.0031], ratio=[3.9, 4.0, 4.1])
    slow["environment"]["cpu"] = "D"
    head, *told = micro.compare(slow, run())
    assert "ratios only, because the cpu differs" in head
    assert told == ["puzzle: puzzle [2-64] relative to copy: slower, 2.00 times as long"]


def test_a_benchmark_that_is_missing_is_reported():
    less = deepcopy(run())
    del less["benchmarks"]["projector: forward"]
    assert micro.compare(less, run())[1:] == ["projector: forward: not in this run"]


def test_a_run_is_saved_with_its_table_and_compared_with_the_one_it_replaces(tmp_path, capsys):
    (tmp_path / "raw.json").write_text(json.dumps(raw()))
    words = [
        str(tmp_path / "raw.json"),
        "--saved",
        str(tmp_path / "kept" / "bench.json"),
        "--out",
        str(tmp_path / "kept"),
    ]
    micro.main(words)
    assert "no saved run" in capsys.readouterr().out
    kept = json.loads((tmp_path / "kept" / "bench.json").read_text())
    assert kept == micro.trimmed(raw())
    assert (tmp_path / "kept" / "bench.md").read_text() == micro.micro_page(kept).to_markdown()
    kept["benchmarks"]["projector: forward"]["seconds"] = [1, 1, 1]
    (tmp_path / "kept" / "bench.json").write_text(json.dumps(kept))
    micro.main(words)
    assert "projector: forward: faster" in capsys.readouterr().out


def test_json_that_is_not_a_run_is_refused():
    with pytest.raises(ValueError, match="pytest-benchmark wrote for benchmarks/micro"):
        micro.trimmed({"benchmarks": []})
