"""Cleaning as a job asks for it: what is planted in real files is found, told and treated as the job says."""

import json
import random

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import tiny
from finetune_api.errors import SpecError
from finetune_api.load import parse_job
from finetune_trainer.cleaning.contents import Contents
from finetune_trainer.data.prepare import prepare_slices
from finetune_trainer.data.read import Samples
from finetune_trainer.errors import DataError
from finetune_trainer.tasks import task_of
from tiny import merged, process_of

TOPICS = {
    "sea": ["wave", "boat", "harbour", "salt", "tide", "sailor", "net", "gull", "storm", "anchor", "deck", "mast"],
    "wood": ["tree", "leaf", "root", "bark", "moss", "fern", "path", "deer", "owl", "acorn", "branch", "shade"],
    "town": ["street", "shop", "tram", "square", "window", "clock", "crowd", "bridge", "market", "tower", "lamp"],
}


def essay(topic, chosen, *, length=14):
    return " ".join(chosen.choices(TOPICS[topic], k=length))


def essays(count, *, seed=0):
    chosen = random.Random(seed)
    names = list(TOPICS)
    return [{"text": essay(names[index % 3], chosen), "label": names[index % 3]} for index in range(count)]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(folder, rows, cleaning, **more):
    """A job of text classification on ``rows``; ``more`` is laid over its ``data``."""
    source = write_rows(folder / "data.jsonl", rows)
    data = {"source": f"file://{source}", "cleaning": cleaning, "split": {"train": 8, "validation": 2}, **more}
    return tiny.job(folder, "text-classification", {"data": data})


def cleaned(wanted, run, **place):
    """What is prepared, and the findings and the summary in the run's folder."""
    process = process_of(wanted, run, **place)
    prepared = prepare_slices(wanted.spec, task_of(wanted.spec), process.context, process.check_in)
    return prepared, *record_of(process.context.run)


def record_of(run):
    lines = [json.loads(line) for line in run.findings.read_text().splitlines()]
    return lines, json.loads(run.cleaning.read_text())


def told(lines, *names):
    return [tuple(line.get(name) for name in names) for line in lines]


def origins(prepared):
    return {piece.origin(index) for piece in prepared.slices.values() for index in range(len(piece.rows))}


# Texts ----------------------------------------------------------------------------------------------------------------


def test_what_lacks_something_is_left_out_and_named(tmp_path):
    rows = essays(30)
    planted = [
        {"text": " \n", "label": "sea"},
        {"text": None, "label": "sea"},
        {"text": "a boat", "label": None},
        {"text": "a boat", "label": " "},
    ]
    prepared, lines, summary = cleaned(
        job(tmp_path, [*rows[:5], *planted, *rows[5:]], {"empty": "drop"}), tmp_path / "r"
    )
    assert told(lines, "kind", "outcome", "source", "origin", "why") == [
        ("empty", "dropped", "source", f"data.jsonl:{line}", why)
        for line, why in ((6, "text is empty"), (7, "text is null"), (8, "label is null"), (9, "label is empty"))
    ]
    assert summary["read"] == {"source": 34}
    assert summary["found"] == [{"kind": "empty", "outcome": "dropped", "source": "source", "samples": 4}]
    assert origins(prepared) == {f"data.jsonl:{line}" for line in range(1, 35)} - {
        f"data.jsonl:{n}" for n in (6, 7, 8, 9)
    }
    assert prepared.labels == ("sea", "town", "wood")


def test_an_empty_label_says_none_of_them_where_there_may_be_several(tmp_path):
    rows = [{"text": f"text {index}", "label": ["a", "b", ""][index % 3]} for index in range(12)]
    wanted = job(tmp_path, [*rows, {"text": "x", "label": None}], {"empty": "drop"}, multiLabel=True)
    prepared, lines, _ = cleaned(wanted, tmp_path / "r")
    assert told(lines, "why") == [("label is null",)]
    assert len(origins(prepared)) == 12


@pytest.mark.parametrize("cleaning", [None, {"duplicates": "drop"}, {"empty": "error"}], ids=str)
def test_without_being_asked_an_empty_sample_is_an_error(tmp_path, cleaning):
    wanted = job(tmp_path, [*essays(6), {"text": " ", "label": "sea"}], cleaning or {"empty": "error"})
    with pytest.raises(DataError, match=r"^data.jsonl:7: spec.data.columns.text: is empty"):
        cleaned(wanted, tmp_path / "r")


def test_nothing_but_empty_samples(tmp_path):
    wanted = job(tmp_path, [{"text": " ", "label": "sea"}], {"empty": "drop"})
    with pytest.raises(DataError, match=r"spec.data.source: .* has no sample that is complete"):
        cleaned(wanted, tmp_path / "r")


PLANTED = {
    "the same": lambda text: text,
    "another case, other blanks": lambda text: "  " + text.upper().replace(" ", "  "),
}
NEAR = {
    "a word more": lambda text: text + " indeed",
    "punctuation": lambda text: text.replace(" ", ", "),
    "a word replaced": lambda text: " ".join(["Other", *text.split()[1:]]),
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_duplicates_are_told_with_what_they_duplicate(tmp_path, change):
    rows = essays(30)
    rows += [{**rows[3], "text": change(rows[3]["text"])}, {"text": change(rows[4]["text"]), "label": "sea"}]
    prepared, lines, summary = cleaned(job(tmp_path, rows, {"duplicates": "drop"}), tmp_path / "r")
    assert told(lines, "kind", "outcome", "origin", "twin", "conflict") == [
        ("duplicate", "dropped", "data.jsonl:31", "data.jsonl:4", False),
        ("duplicate", "dropped", "data.jsonl:32", "data.jsonl:5", True),
    ]
    assert lines[1]["why"] == 'the same content, but the label "sea" where the other has "wood"'
    assert summary["conflicts"] == 1
    assert origins(prepared) == {f"data.jsonl:{line}" for line in range(1, 31)}


@pytest.mark.parametrize("change", NEAR.values(), ids=NEAR)
def test_near_duplicates_are_told_with_what_they_are_like(tmp_path, change):
    rows = essays(30)
    rows += [{**rows[3], "text": change(rows[3]["text"])}, {"text": change(rows[4]["text"]), "label": "sea"}]
    wanted = job(tmp_path, rows, {"nearDuplicates": {"threshold": 0.7}})
    prepared, lines, _ = cleaned(wanted, tmp_path / "r")
    assert told(lines, "kind", "outcome", "origin", "twin", "conflict") == [
        ("nearDuplicate", "dropped", "data.jsonl:31", "data.jsonl:4", False),
        ("nearDuplicate", "reported", "data.jsonl:32", "data.jsonl:5", True),  # the label may tell of what differs
    ]
    assert "data.jsonl:31" not in origins(prepared)
    assert "data.jsonl:32" in origins(prepared)


def test_a_report_changes_nothing(tmp_path):
    rows = [*essays(30), essays(1)[0], {"text": essays(2)[1]["text"] + " indeed", "label": "wood"}]
    cleaning = {"duplicates": "report", "nearDuplicates": {"action": "report"}}
    prepared, lines, _ = cleaned(job(tmp_path, rows, cleaning), tmp_path / "r")
    assert told(lines, "kind", "outcome", "origin") == [
        ("duplicate", "reported", "data.jsonl:31"),
        ("nearDuplicate", "reported", "data.jsonl:32"),
    ]
    plain = job(tmp_path / "plain", rows, None)
    process = process_of(plain, tmp_path / "p")
    other = prepare_slices(plain.spec, task_of(plain.spec), process.context, process.check_in)
    assert {name: piece.rows.tolist() for name, piece in prepared.slices.items()} == {
        name: piece.rows.tolist() for name, piece in other.slices.items()
    }


ERRORS = {
    "duplicates": (
        {"duplicates": "error"},
        "duplicates",
        "data.jsonl:31 has the same content (data.jsonl:1)",
    ),
    "near duplicates": (
        {"duplicates": "drop", "nearDuplicates": {"action": "error"}},
        "nearDuplicates.action",
        "data.jsonl:32 has almost the same content (data.jsonl:2)",
    ),
}


@pytest.mark.parametrize(("cleaning", "field", "first"), ERRORS.values(), ids=ERRORS)
def test_an_error_names_the_field_and_the_first_and_lists_all(tmp_path, cleaning, field, first):
    rows = [*essays(30), essays(1)[0], {"text": essays(2)[1]["text"] + " indeed", "label": "wood"}]
    wanted = job(tmp_path, rows, cleaning)
    for _ in range(2):  # from the cache as well
        with pytest.raises(DataError) as error:
            cleaned(wanted, tmp_path / "r")
        found = f"spec.data.cleaning.{field}: is error, and 1 were found: {first}"
        assert str(error.value) == f"{found}; all are listed in cleaning.jsonl in the run's folder"
    lines, _ = record_of(process_of(wanted, tmp_path / "r").context.run)
    assert "refused" in {line["outcome"] for line in lines}


def with_brought(folder, cleaning):
    """30 essays, of which the test set has one (and one of its own twice) and the validation set nearly another."""
    rows = essays(30)
    test = [*essays(9, seed=1), rows[0], essays(1, seed=1)[0]]
    validation = [*essays(9, seed=2), {**rows[1], "text": rows[1]["text"] + " indeed"}, test[1]]
    more = {
        "validationSource": f"file://{write_rows(folder / 'dev.jsonl', validation)}",
        "testSource": f"file://{write_rows(folder / 'test.jsonl', test)}",
    }
    return job(folder, rows, cleaning, **more)


def test_what_is_measured_by_is_dropped_from_what_is_trained_on(tmp_path):
    cleaning = {"duplicates": "drop", "nearDuplicates": {}, "leakage": "drop"}
    prepared, lines, _ = cleaned(with_brought(tmp_path, cleaning), tmp_path / "r")
    assert told(lines, "kind", "outcome", "source", "origin", "twin") == [
        ("duplicate", "reported", "testSource", "test.jsonl:11", "test.jsonl:1"),
        ("leak", "dropped", "validationSource", "dev.jsonl:11", "test.jsonl:2"),
        ("leak", "dropped", "source", "data.jsonl:1", "test.jsonl:10"),
        ("leak", "dropped", "source", "data.jsonl:2", "dev.jsonl:10"),
    ]
    assert {name: len(piece.rows) for name, piece in prepared.slices.items()} == {
        "train": 28,
        "validation": 10,
        "test": 11,
    }


def test_leakage_is_an_error_unless_it_is_to_be_dropped(tmp_path):
    with pytest.raises(DataError) as error:
        cleaned(with_brought(tmp_path, {"duplicates": "drop"}), tmp_path / "r")
    assert str(error.value).startswith(
        "spec.data.cleaning.leakage: is error, and 2 were found: dev.jsonl:11 has the same content,"
        " in spec.data.testSource (test.jsonl:2)"
    )


def test_pairs_of_texts_are_duplicates_only_as_pairs(tmp_path):
    rows = [{"text": "one two", "other": "three four", "label": "ab"[index % 2]} for index in range(2)]
    rows += [{"text": f"text {index}", "other": "three four", "label": "ab"[index % 2]} for index in range(10)]
    wanted = job(tmp_path, rows, {"duplicates": "report"}, columns={"textPair": "other"})
    assert told(cleaned(wanted, tmp_path / "r")[1], "origin", "twin") == [("data.jsonl:2", "data.jsonl:1")]


# Images ---------------------------------------------------------------------------------------------------------------


def pictures(folder, count):
    """Digits of scikit-learn as a folder of images; returns their paths."""
    digits = load_digits()
    paths = []
    for number in range(count):
        path = folder / str(digits.target[number]) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def image_job(folder, cleaning, **more):
    data = {"source": f"file://{folder}/set", "cleaning": cleaning, "split": {"train": 8, "validation": 2}, **more}
    return tiny.job(folder, "image-classification", {"data": data})


def test_images_broken_copied_and_compressed(tmp_path):
    paths = pictures(tmp_path / "set", 120)
    paths[0].with_name("zzz-torn.png").write_bytes(paths[0].read_bytes()[:60])
    paths[1].with_name("zzz-copy.png").write_bytes(paths[1].read_bytes())
    image = Image.open(paths[2]).resize((16, 16), Image.Resampling.BILINEAR)
    image.save(paths[2].with_name("zzz-small.jpg"), quality=85)
    cleaning = {"empty": "drop", "duplicates": "drop", "nearDuplicates": {}}
    wanted = image_job(tmp_path, cleaning)
    prepared, lines, summary = cleaned(wanted, tmp_path / "r")
    names = [f"{path.parent.name}/{path.name}" for path in paths[:3]]
    assert told(lines, "kind", "outcome", "origin", "twin") == [
        ("empty", "dropped", f"{paths[0].parent.name}/zzz-torn.png", None),
        ("duplicate", "dropped", f"{paths[1].parent.name}/zzz-copy.png", names[1]),
        ("nearDuplicate", "dropped", f"{paths[2].parent.name}/zzz-small.jpg", names[2]),
    ]
    assert origins(prepared) == {f"{path.parent.name}/{path.name}" for path in paths}
    assert summary["examples"][1]["twinImage"].startswith("data:image/png;base64,")
    (paths[3].parent / paths[3].name).write_bytes(paths[1].read_bytes())  # a file changes, not its name
    assert ("duplicate", names[1]) in told(cleaned(wanted, tmp_path / "r")[1], "kind", "twin")


def test_a_broken_image_is_an_error_unless_it_is_to_be_dropped(tmp_path):
    paths = pictures(tmp_path / "set", 30)
    paths[7].write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{paths[7]}: is not an image"):
        cleaned(image_job(tmp_path, {"duplicates": "drop"}), tmp_path / "r")


def test_an_image_that_a_table_names_and_is_not_there(tmp_path):
    paths = pictures(tmp_path / "pixels", 30)
    rows = [{"image": f"pixels/{path.parent.name}/{path.name}", "label": path.parent.name} for path in paths]
    source = write_rows(tmp_path / "data.jsonl", [*rows, {"image": "pixels/no.png", "label": "1"}])
    wanted = tiny.job(
        tmp_path, "image-classification", {"data": {"source": f"file://{source}", "cleaning": {"empty": "drop"}}}
    )
    prepared, lines, _ = cleaned(wanted, tmp_path / "r")
    assert told(lines, "origin", "why") == [("data.jsonl:31", "image pixels/no.png is not there")]
    assert len(origins(prepared)) == 30


# Label noise ----------------------------------------------------------------------------------------------------------


def noisy(rows, share=0.1, seed=0):
    """``rows`` with the label of this share changed, and which."""
    chosen = random.Random(seed)
    names = sorted({row["label"] for row in rows})
    wrong = set(chosen.sample(range(len(rows)), round(share * len(rows))))
    changed = [
        {**row, "label": chosen.choice([name for name in names if name != row["label"]])} if index in wrong else row
        for index, row in enumerate(rows)
    ]
    return changed, wrong


@pytest.fixture(scope="module")
def noisy_essays():
    return noisy(essays(300))


@pytest.mark.parametrize("action", ["report", "drop", "downWeight"])
def test_wrong_labels_are_found_and_treated_in_training_alone(tmp_path, noisy_essays, action):
    rows, wrong = noisy_essays
    prepared, lines, _ = cleaned(job(tmp_path, rows, {"labelNoise": {"action": action}}), tmp_path / "r")
    found = {int(line["origin"].removeprefix("data.jsonl:")) - 1: line for line in lines}
    assert len(wrong & found.keys()) >= 0.9 * len(wrong)
    assert len(wrong & found.keys()) >= 0.9 * len(found)
    right = essays(300)
    assert all(found[row]["likelier"] == right[row]["label"] for row in wrong & found.keys())
    train, validation = prepared.slices["train"], prepared.slices["validation"]
    done = {"report": "reported", "drop": "dropped", "downWeight": "downWeighted"}[action]
    is_held = {row: row in validation.rows for row in found}
    assert {row: line["outcome"] for row, line in found.items()} == {
        row: "reported" if held else done for row, held in is_held.items()
    }
    assert len(validation.rows) == 60
    if action == "drop":
        assert not found.keys() & set(train.rows.tolist())
        assert len(train.rows) == 240 - sum(not held for held in is_held.values())
    else:
        assert len(train.rows) == 240
    if action == "downWeight":
        light = np.flatnonzero(train.weights < 1)
        assert set(light.tolist()) <= found.keys()
        assert train.weights[light].max() < 0.5
    else:
        assert train.weights is None


def test_wrong_labels_of_images_are_found_by_thumbnails_and_by_the_base_models_view(tmp_path):
    digits = [path for path in pictures(tmp_path / "pixels", 400) if path.parent.name in "017"]
    rows = [{"image": str(path.relative_to(tmp_path)), "label": path.parent.name} for path in digits]
    rows, wrong = noisy(rows)
    source = write_rows(tmp_path / "data.jsonl", rows)
    data = {"source": f"file://{source}", "cleaning": {"labelNoise": {"folds": 4}}}
    models = {"new": tiny.VIT, "checkpoint": checkpoint(tmp_path / "vit")}
    for name, model in models.items():
        spec = (
            {"data": data} if name == "new" else {"data": data, "model": {"source": f"file://{model}", "config": None}}
        )
        wanted = tiny.job(tmp_path, "image-classification", spec)
        lines = cleaned(wanted, tmp_path / name)[1]
        found = {int(line["origin"].removeprefix("data.jsonl:")) - 1 for line in lines}
        assert len(wrong & found) >= 0.8 * len(wrong), name
        assert len(wrong & found) >= 0.6 * len(found), name


def checkpoint(folder):
    """A ViT with random weights, as transformers saves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    fields = {**tiny.VIT, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    ViTForImageClassification(ViTConfig(**{k: v for k, v in fields.items() if k != "model_type"})).save_pretrained(
        folder
    )
    return folder


def test_too_few_samples_to_judge_labels_by(tmp_path):
    wanted = job(tmp_path, essays(6), {"labelNoise": {"folds": 3}})
    with pytest.raises(DataError, match=r"^spec.data.cleaning.labelNoise.folds: is 3, but fewer than two classes"):
        cleaned(wanted, tmp_path / "r")


def test_a_class_that_would_lose_all_its_training_samples_is_an_error(tmp_path):
    rare = [{**row, "label": "rare"} for row in essays(6)]
    wanted = job(tmp_path, [*essays(120), *rare], {"labelNoise": {"action": "drop"}})
    with pytest.raises(DataError, match=r'labelNoise.action: is drop, which leaves no training sample of "rare"; use'):
        cleaned(wanted, tmp_path / "r")
    record = next((tmp_path / "r").rglob("cleaning.jsonl")).read_text()
    assert record.count('"label": "rare"') == len(rare)


def test_a_class_too_rare_is_not_judged(tmp_path):
    rows = [*essays(60), *({"text": "wave boat tide", "label": "rare"} for _ in range(3))]
    lines = cleaned(job(tmp_path, rows, {"labelNoise": {}}), tmp_path / "r")[1]
    assert "rare" not in {line["label"] for line in lines}


# Runs -----------------------------------------------------------------------------------------------------------------

ALL = {
    "empty": "drop",
    "duplicates": "drop",
    "nearDuplicates": {"threshold": 0.7},
    "labelNoise": {"action": "downWeight"},
}


def test_it_is_done_once_and_gives_the_same_to_every_rank_and_anew(tmp_path, monkeypatch):
    rows, _ = noisy([*essays(150), *essays(5)])
    wanted = job(tmp_path, rows, ALL)
    first, lines, _ = cleaned(wanted, tmp_path / "one/r")
    again, other, _ = cleaned(wanted, tmp_path / "two/r")
    assert other == lines
    for module in ("clean.find_duplicates", "mislabelled.out_of_fold"):
        monkeypatch.setattr(f"finetune_trainer.cleaning.{module}", lambda *_a, **_k: pytest.fail("done again"))
    third, resumed, _ = cleaned(wanted, tmp_path / "one/r")
    assert resumed == lines
    process = process_of(wanted, tmp_path / "one/second", rank=1, world_size=2)
    second = prepare_slices(wanted.spec, task_of(wanted.spec), process.context, process.check_in)
    assert not process.context.run.findings.exists()  # rank 0 writes
    for prepared in (again, third, second):
        for name, piece in prepared.slices.items():
            assert piece.rows.tolist() == first.slices[name].rows.tolist()
            assert piece.weights.tolist() == first.slices[name].weights.tolist()


def test_weights_are_in_the_loss_and_in_what_it_is_divided_by(tmp_path):
    rows, _ = noisy(essays(60))
    wanted = job(tmp_path, rows, {"labelNoise": {"action": "downWeight"}})
    process = process_of(wanted, tmp_path / "r")
    loop, _ = tiny.assembled(process)
    prepared, _, _ = cleaned(wanted, tmp_path / "r")
    train = prepared.slices["train"]
    indices = np.argsort(train.weights[train.rows], kind="stable")[[0, 1, 30, 40]]
    batch = loop.train_part.batch(0, indices, is_counted=True)
    plain = task_of(wanted.spec).objective
    outputs = plain.forward(loop.inner, batch)
    weights = train.weights[train.rows][indices]
    assert weights[0] < 0.5 < weights[3]
    expected = plain.losses(outputs, batch).detach().numpy() * weights
    assert loop.objective.losses(outputs, batch).detach().numpy() == pytest.approx(expected)
    assert loop.objective.counts(batch).numpy() == pytest.approx(weights)
    loop.history.close()


def test_a_run_with_all_of_it_trains_and_reports(tmp_path, workers):
    rows, _ = noisy([*essays(150), *essays(5), {"text": " ", "label": "sea"}])
    more = {"data": {"cleaning": ALL, "source": f"file://{write_rows(tmp_path / 'data.jsonl', rows)}"}}
    wanted = tiny.job(tmp_path, "text-classification", more)
    worker = workers.start(wanted, tmp_path / "run")
    assert worker.wait() == 0, worker.log.read_text()
    page = worker.run.report.read_text()
    for text in (
        "Empty or broken",
        "Duplicates",
        "Label likely to be wrong",
        "kept, with less weight",
        "text is empty",
    ):
        assert text in page
    kept = json.loads(worker.run.preparation.read_text())["samples"]
    dropped = sum(line["outcome"] == "dropped" for line in record_of(worker.run)[0])
    assert sum(kept.values()) == len(rows) - dropped


# Bad input ------------------------------------------------------------------------------------------------------------

FAULTS = {
    "empty": ({"empty": "keep"}, "spec.data.cleaning.empty: must be one of 'drop', 'error', got 'keep'"),
    "duplicates": (
        {"duplicates": "remove"},
        "spec.data.cleaning.duplicates: must be one of 'drop', 'report', 'error', got 'remove'",
    ),
    "threshold": (
        {"nearDuplicates": {"threshold": 0.3}},
        "spec.data.cleaning.nearDuplicates.threshold: must be ≥ 0.5, got 0.3",
    ),
    "distance": (
        {"nearDuplicates": {"hammingDistance": 13}},
        "spec.data.cleaning.nearDuplicates.hammingDistance: must be ≤ 12, got 13",
    ),
    "near action": (
        {"nearDuplicates": {"action": "downWeight"}},
        "spec.data.cleaning.nearDuplicates.action: must be one of 'drop', 'report', 'error', got 'downWeight'",
    ),
    "leakage": ({"leakage": "report"}, "spec.data.cleaning.leakage: must be one of 'drop', 'error', got 'report'"),
    "folds": ({"labelNoise": {"folds": 1}}, "spec.data.cleaning.labelNoise.folds: must be ≥ 2, got 1"),
    "noise action": (
        {"labelNoise": {"action": "error"}},
        "spec.data.cleaning.labelNoise.action: must be one of 'report', 'drop', 'downWeight', got 'error'",
    ),
    "unknown": (
        {"nearDuplicate": {}},
        "spec.data.cleaning.nearDuplicate: is not a field; did you mean nearDuplicates?",
    ),
}


@pytest.mark.parametrize(("cleaning", "message"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_option_is_named(cleaning, message):
    with pytest.raises(SpecError) as error:
        parse_job(document(data={"cleaning": cleaning}))
    assert str(error.value) == message


UNFIT = {
    "a language model": {"task": "causal-lm"},
    "a regression": {"task": "text-regression"},
    "several labels": {"data": {"multiLabel": True}},
}


@pytest.mark.parametrize("changes", UNFIT.values(), ids=UNFIT)
def test_labels_are_judged_where_a_sample_has_one_class(changes):
    spec = merged(changes, {"data": {"cleaning": {"labelNoise": {}}}})
    with pytest.raises(SpecError) as error:
        parse_job(document(**spec))
    assert str(error.value).startswith("spec.data.cleaning.labelNoise: goes with task text-classification or image-")


def test_weights_do_not_go_with_blended_labels():
    augmentation = {"image": {"mixup": 0.2}}
    data = {"cleaning": {"labelNoise": {"action": "downWeight"}}, "augmentation": augmentation}
    with pytest.raises(SpecError, match=r"labelNoise.action: does not go with mixup and cutmix"):
        parse_job(document(task="image-classification", data=data))


def document(**spec):
    base = {
        "task": "text-classification",
        "model": {"source": "hf://owner/model"},
        "data": {"source": "pvc://data/x.csv"},
    }
    fixed = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bad"}}
    return {**fixed, "spec": merged(base, spec)}


def test_the_origin_of_a_row_among_sources_some_of_which_are_empty():
    def samples(count):
        table = pa.table({"text": ["x"] * count, "file": pa.array([0] * count, pa.int32()), "row": list(range(count))})
        return Samples(table, ("f",), {})

    contents = Contents({"testSource": samples(0), "validationSource": samples(2), "source": samples(1)})
    assert [contents.source_of(row) for row in range(3)] == [
        ("validationSource", 0),
        ("validationSource", 1),
        ("source", 0),
    ]
