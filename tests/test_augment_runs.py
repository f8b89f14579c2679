"""Whole runs with augmentation: divided over processes and passes, killed and resumed, shown in the report."""

import json
import random
import re

import pytest
from PIL import Image

import ranks
import test_kills
import tiny
from finetune_trainer.report import write_report
from finetune_trainer.run import build_model, describe_run, prepare
from translators import write_translator

IMAGE = {
    "rotateDegrees": 20,
    "cropMinArea": 0.6,
    "horizontalFlip": 0.5,
    "verticalFlip": 0.5,
    "color": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hueDegrees": 20},
    "erasing": {"probability": 0.5},
    "mixup": 0.5,
    "cutmix": 1.0,
    "mixProbability": 0.8,
}
PLAIN = {name: value for name, value in IMAGE.items() if not name.startswith(("mix", "cutmix"))}
WORDS = {"variants": 3, "swap": 0.3, "deletion": 0.3}
WHOLE = "1 process"
DIVISIONS = {
    WHOLE: (1, {}),
    "1 process, 4 parts": (1, {"gradientAccumulation": 4}),
    "2 processes": (2, {}),
    "2 processes, 2 parts": (2, {"gradientAccumulation": 2}),
}
KINDS = {
    "images": ("image-classification", {"image": IMAGE}, {"batchSize": 6}),
    "images with boxes": ("object-detection", {"image": PLAIN}, {"batchSize": 6}),
    "images with captions": ("image-captioning", {"image": PLAIN}, {"batchSize": 6}),
    "texts by tokens": ("text-classification", {"text": WORDS}, {"tokensPerBatch": 60}),
    "pairs by tokens": ("text-regression", {"text": WORDS}, {"tokensPerBatch": 90}),
}
"""13 samples: over the steps of three epochs."""
STEPS, TOLERANCE = 9, 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory, group):
    folder = tmp_path_factory.mktemp("augmented")
    for world_size in (1, 2):
        runs = {
            folder / f"{name}, {division}": (
                kind,
                {
                    "data": {"augmentation": augmentation},
                    "training": {"batchSize": None, "maxSteps": STEPS, **training, **cut},
                },
            )
            for name, (kind, augmentation, training) in KINDS.items()
            for division, (processes, cut) in DIVISIONS.items()
            if processes == world_size
        }
        group.run(ranks.train_all, world_size, runs)
    return folder


@pytest.mark.parametrize("division", [name for name in DIVISIONS if name != WHOLE])
@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_does_not_depend_on_the_division(folder, name, division):
    whole, divided = (tiny.steps_of(folder / f"{name}, {each}") for each in (WHOLE, division))
    assert len(whole) == STEPS
    near = [one | {key: pytest.approx(one[key], rel=TOLERANCE) for key in ("gradNorm", "loss")} for one in whole]
    assert divided == near


@pytest.mark.parametrize("name", KINDS)
def test_augmentation_does_something(folder, group, name):
    kind, _, training = KINDS[name]
    plain = folder / f"{name}, plain"
    group.run(ranks.train_all, 1, {plain: (kind, {"training": {"batchSize": None, "maxSteps": STEPS, **training}})})
    augmented = tiny.steps_of(folder / f"{name}, {WHOLE}")
    assert [step["loss"] for step in tiny.steps_of(plain)] != [step["loss"] for step in augmented]


def test_killed_runs_equal_the_undisturbed_one(workers, tmp_path, monkeypatch):
    """With every change of texts; the translations of a run that was killed over them are made anew. For images see
    ``test_kills``."""
    models = [write_translator(tmp_path / name, seed) for seed, name in enumerate(("there", "back"))]
    synonyms = tmp_path / "synonyms.tsv"
    synonyms.write_text("".join(f"{word}\tsame {word}\tother\n" for word in tiny.WORDS[:100]))
    text = WORDS | {
        "synonyms": {"source": f"file://{synonyms}", "rate": 0.5},
        "backTranslation": {"forward": f"file://{models[0]}", "backward": f"file://{models[1]}"},
    }
    spec = {"data": {"augmentation": {"text": text}}, "training": {"batchSize": None, "tokensPerBatch": 48}}
    monkeypatch.setitem(test_kills.KINDS, "augmented", ("text-classification", 2, spec))
    test_kills.Campaign(workers, tmp_path, "augmented", random.Random(0)).kill(test_kills.SAMPLE_KILLS)


DATA_URI = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


SHOWN = {
    "image-classification": {"image": IMAGE},
    "object-detection": {"image": PLAIN},
    "image-captioning": {"image": PLAIN},
    "text-classification": {"text": WORDS},
    "text-regression": {"text": WORDS},
}


@pytest.mark.parametrize(("kind", "augmentation"), SHOWN.items(), ids=SHOWN)
def test_the_report_shows_samples_beside_their_variants(tmp_path, kind, augmentation):
    process = tiny.process_of(tiny.job(tmp_path, kind, {"data": {"augmentation": augmentation}}), tmp_path / "run")
    material = prepare(process)
    model, rates = build_model(process.spec, material)
    describe_run(process.context, material, model, rates)
    shown = json.loads(process.context.run.preparation.read_text())["augmented"]
    page = write_report(process.context.run, process.context.job, None).read_text()
    assert len(shown) == 4
    assert all(sample["origin"] in page or "images" in sample for sample in shown)
    if "image" in augmentation:
        assert [[bool(DATA_URI.fullmatch(image)) for image in sample["images"]] for sample in shown] == [[True] * 5] * 4
        assert all(len(set(sample["images"])) == 5 for sample in shown)
        assert 'data-picture="augmented"' in page
        with Image.open(process.context.run.pictures / "augmented.png") as picture:
            assert picture.width > 500
    else:
        assert [len(sample["texts"]) for sample in shown] == [4] * 4, "the original and three variants"
        assert all(f">{text}</td>" in page for sample in shown for text in sample["texts"] if "#" not in text)
        assert "Augmented texts" in page
