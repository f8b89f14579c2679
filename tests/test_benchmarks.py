"""Every benchmark of the trainer runs and prints figures. What they are is for a quiet machine to say."""

import sys

import pytest

from figures import BENCHMARKS, assert_figures, run_quickly

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
    "distillation": {"distilled - alone, points, mean of the seeds", "distilled - alone, points, worst seed"},
    "pruning": {"steps saved, share", "same winner, share of the searches"},
    "passes": set(),
    "time_spent": set(),
}


@pytest.fixture(scope="module")
def data():
    from debian_texts import Unavailable, debian_texts

    try:
        return debian_texts()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.usefixtures("data")
def test_a_benchmark_prints_its_figures(name):
    assert_figures(name, FIGURES[name])


@pytest.mark.parametrize("name", ["gpu_tokens", "gpu_samples"])
def test_a_benchmark_of_a_gpu_says_if_there_is_none(name):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "No GPU here" in run_quickly(name)


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
