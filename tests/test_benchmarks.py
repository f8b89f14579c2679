"""Every benchmark runs and prints figures. What the figures are is for a quiet machine to say."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.programs import build_all
from cluster.running import Shape

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

FIGURES = {
    "startup": {"ours / plain script"},
    "checkpoint_pause": {"pause, ours / save_state", "extra, ours / save_state"},
    "evaluation_memory": {"peak, 10x / 1x"},
    "cleaning": {
        "recall",
        "precision",
        "dropped - not cleaned, points",
        "down-weighted - not cleaned, points",
        "dropped - not cleaned, TF-IDF, points",
        "copies found",
        "others told, share of the texts",
        "duplicates and near: peak, 10x / 1x",
        "label noise: peak, 10x / 1x",
    },
    "text_classification": {
        "ours / default at 32",
        "ours / best at 32",
        "ours / limit at 32",
        "ours - HF Trainer, points",
    },
    "passes": set(),
    "time_spent": set(),
}


SCALE = {
    "last pod, ours / bare at 3",
    "operator CPU ms a job at 3",
    "operator requests a job at 3",
    "looks a job at 3",
    "operator peak MiB at 3",
    "cores with 5 finished jobs",
    "cores with 10,000, by a straight line",
    "MiB with 10,000, by a straight line",
}


TENANTS = {"quiet p99, beside / alone, bare Jobs", "quiet p99, beside / alone, FineTuneJobs"}


@pytest.fixture(scope="module")
def data():
    from debian_texts import Unavailable, debian_texts

    try:
        return debian_texts()
    except Unavailable as reason:
        pytest.skip(str(reason))


def run(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=550).stdout


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.usefixtures("data")
def test_a_benchmark_prints_its_figures(name):
    assert_figures(name, FIGURES[name])


def test_the_operators_benchmarks_print_their_figures():
    build_all(Shape(simulated_nodes=1).programs())
    assert_figures("operator_scale", SCALE)
    assert_figures("operator_tenants", TENANTS)


def assert_figures(name, expected):
    reports = [json.loads(line) for line in run(name, "--json").splitlines()]
    figures = {figure["name"]: figure["value"] for report in reports for figure in report["figures"]}
    assert figures.keys() == expected
    assert all(math.isfinite(value) for value in figures.values())
    assert all(report["rows"] for report in reports)


def test_the_gpu_benchmark_says_if_there_is_no_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "No GPU here" in run("gpu_tokens")


def test_the_data_set_is_large_and_every_text_has_one_label(data):
    from debian_texts import read_texts

    texts, labels = read_texts(data)
    assert len(texts) >= 20_000
    assert len(set(texts)) == len(texts)
    assert len(set(labels)) >= 10


def test_a_table_lines_up_and_says_whether_a_bound_is_met(capsys):
    from measure import Report

    report = Report("Title", ("side", "rate"))
    report.add("ours", 12.345)
    report.add("HF Trainer", 1000)
    report.figure("ratio", 1.2, at_least=1.1)
    report.figure("pause", 0.3, at_most=0.25)
    report.print(as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Title",
        "side         rate",
        "ours         12.3",
        "HF Trainer  1,000",
        "ratio: 1.200 (wanted ≥ 1.1: met)",
        "pause: 0.300 (wanted ≤ 0.25: NOT MET)",
    ]
