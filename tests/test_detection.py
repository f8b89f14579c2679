"""Object detection: boxes as they are read, batches, the loss beside a plain loop, and models that learn to find."""

import copy
import json
from itertools import chain, count, islice
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    get_linear_schedule_with_warmup,
    pipeline,
)
from transformers.trainer_pt_utils import get_parameter_names

import tiny
from finetune_trainer import finish
from finetune_trainer.box_metrics import BoxPrecision
from finetune_trainer.data.objects import find_objects, fit
from finetune_trainer.data.order import epoch_batches
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.export import export
from finetune_trainer.run import batch_size_of, build_model, prepare
from shapes import precision_of_rank, write_shapes
from whole import whole_run

FIELD = "spec.data.columns.objects"
CAT = {"bbox": [1, 2, 5, 6], "category": "cat"}


def column(*objects):
    import pyarrow as pa

    texts = [each if isinstance(each, str | None) else json.dumps(each) for each in objects]
    return pa.chunked_array([pa.array(texts, pa.string())])


def origin(index):
    return f"a.jsonl:{index + 1}"


def test_objects_of_images():
    both = {"bbox": [[0, 0, 2, 2], [3.5, 4, 1, 1]], "category": ["dog", 7]}
    labels, objects = find_objects(column([CAT], both, [], None), None, None, origin)
    assert labels == ("7", "cat", "dog")
    found = [(boxes.tolist(), ids.tolist()) for boxes, ids in map(objects.of, range(4))]
    assert found == [([[1, 2, 6, 8]], [1]), ([[0, 0, 2, 2], [3.5, 4, 4.5, 5]], [2, 0]), ([], []), ([], [])]
    assert objects.counts(np.array([0, 1]), 3).tolist() == [1, 1, 1]


BAD = {
    "not JSON": ("[{", None, f"a.jsonl:1: {FIELD}: is not JSON: Expecting property name enclosed in double quotes"),
    "a number": (3, None, f"a.jsonl:1: {FIELD}: is the number 3, must be a list of objects"),
    "no object": ([3], None, f"a.jsonl:1: {FIELD}[0]: is the number 3, must be an object with bbox and category"),
    "no class": ([{"bbox": [1, 2, 3, 4]}], None, f"a.jsonl:1: {FIELD}[0].category: is missing; name the class"),
    "three numbers": (
        [CAT, CAT | {"bbox": [1, 2, 3]}],
        None,
        f"a.jsonl:1: {FIELD}[1].bbox: must be four numbers, x, y, width and height in pixels; got [1, 2, 3]",
    ),
    "no area": ([CAT | {"bbox": [1, 2, 0, 4]}], None, f"a.jsonl:1: {FIELD}[0].bbox: has no area: width 0, height 4"),
    "negative": ([CAT | {"bbox": [-5, 2, 9, 4]}], None, f"a.jsonl:1: {FIELD}[0].bbox: begins outside the image, at -5"),
    "unequal lists": ({"bbox": [[1, 1, 1, 1]], "category": []}, None, f"a.jsonl:1: {FIELD}: must have the lists bbox"),
    "unknown class": (
        [CAT],
        ("cats", "dogs"),
        f'a.jsonl:1: {FIELD}: "cat" is not in spec.data.labels ("cats", "dogs")',
    ),
}


@pytest.mark.parametrize(("value", "given", "message"), BAD.values(), ids=BAD)
def test_objects_that_are_not_as_they_must_be(value, given, message):
    with pytest.raises(DataError) as error:
        find_objects(column(value), None, given, origin)
    assert str(error.value).startswith(message)


def test_a_class_that_no_training_image_has():
    with pytest.raises(DataError, match='no training image has "cat", yet others have'):
        find_objects(column([CAT], [CAT | {"category": "dog"}]), np.array([1]), None, origin)
    with pytest.raises(DataError, match="no training image has an object"):
        find_objects(column([CAT], []), np.array([1]), None, origin)


def test_boxes_that_leave_their_image():
    _, objects = find_objects(column([], [CAT, CAT | {"bbox": [4, 4, 6.5, 1]}]), None, None, origin)
    assert fit(objects, np.array([[9, 9], [10, 10]]), origin).boxes.tolist() == [[1, 2, 6, 8], [4, 4, 10, 5]]
    with pytest.raises(DataError) as error:
        fit(objects, np.array([[9, 9], [8, 10]]), origin)
    assert str(error.value) == (
        f"a.jsonl:2: {FIELD}[1].bbox: reaches to 10.5, 5, outside the image of 8 x 10 pixels; it must be x, y, width"
        " and height, got x 4, y 4, width 6.5, height 1"
    )


def test_a_folder_of_images_has_no_boxes(tmp_path):
    tiny.write_images(tmp_path / "images", 9)
    wanted = tiny.job(tmp_path, "object-detection", {"data": {"source": f"file://{tmp_path}/images", "format": None}})
    with pytest.raises(DataError, match="is a folder of images, which has no objects; bring a CSV, JSON Lines or"):
        prepare(tiny.process_of(wanted, tmp_path / "run"))


def test_an_architecture_without_the_head(tmp_path):
    process = tiny.process_of(of_config(tmp_path, tiny.VIT), tmp_path / "run")
    with pytest.raises(SpecFault, match=r"^spec\.model: cannot be used for object-detection: vit has no such head$"):
        prepare(process)


def test_batches_say_where_boxes_are_in_the_frame_that_the_model_sees(tmp_path):
    """A padded picture is the frame of YOLOS; boxes come back to the pixel."""
    process = tiny.process_of(tiny.job(tmp_path, "object-detection"), tmp_path / "run")
    material = prepare(process)
    part = material.parts["train"]
    processor = material.companion
    processor.size = type(processor.size)(shortest_edge=16, longest_edge=64)
    batch = part.batch(0, np.arange(4), is_counted=True)
    sizes = {tuple(one["size"].tolist()) for one in batch.target}
    assert sizes == {(16.0, 16.0), (16.0, 32.0)}
    assert batch.inputs["pixel_values"].shape[-1] > 16
    for one in batch.target:
        height, width = one["frame"].tolist()
        corners = box_convert(one["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        torch.testing.assert_close(corners, one["corners"])
        assert (height, width) == (16.0, batch.inputs["pixel_values"].shape[-1])
        assert one["counts"].tolist() == pytest.approx([len(corners), len(corners) + 0.1 * (5 - len(corners))])


STEPS, RATE, DECAY = 50, 3e-3, 0.05


def test_the_loss_is_that_of_a_plain_loop(tmp_path):
    """Transformers' own loss, labels and schedule, torch's AdamW and clipping, on the same batches."""
    training = {"maxSteps": STEPS, "weightDecay": DECAY, "warmup": {"steps": 5}}
    spec = {"strategy": {"learningRate": {"value": RATE}}, "training": training}
    process = tiny.process_of(tiny.job(tmp_path, "object-detection", spec), tmp_path / "run")
    tiny.trained(process)
    material = prepare(process)
    part, built = material.parts["train"], build_model(process.spec, material)[0]
    model = AutoModelForObjectDetection.from_config(built.config)
    model.load_state_dict(built.state_dict())
    optimizer = torch.optim.AdamW(decayed(model), lr=RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, STEPS)
    folder = tmp_path / "object-detection"
    lines = [json.loads(line) for line in (folder / "shapes.jsonl").read_text().splitlines()]
    losses, norms = [], []
    for indices in in_order(part, process.spec):
        rows = [lines[int(part.rows[index])] for index in indices]
        inputs = material.companion(
            images=[Image.open(folder / row["image"]) for row in rows],
            annotations=[as_coco(row["objects"], material.prepared.labels) for row in rows],
            return_tensors="pt",
        )
        loss = model(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert max(norms) > 1, "something is clipped"
    assert [one["loss"] for one in tiny.steps_of(tmp_path / "run")] == pytest.approx(losses, rel=1e-4)


def decayed(model):
    """Groups of AdamW: all but biases and norms decay."""
    decays = set(get_parameter_names(model, [torch.nn.LayerNorm], ["bias"]))
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in decays].append(parameter)
    return [{"params": groups[True], "weight_decay": DECAY}, {"params": groups[False], "weight_decay": 0}]


def in_order(part, spec):
    """Indices of each step's samples, as our run takes them."""
    epochs = (epoch_batches(len(part), None, batch_size_of(spec), seed=0, epoch=epoch) for epoch in count())
    return islice(chain.from_iterable(epochs), STEPS)


def as_coco(objects, labels):
    boxes = [{"bbox": one["bbox"], "category_id": labels.index(one["category"])} for one in objects]
    return {"image_id": 0, "annotations": [box | {"area": 1, "iscrowd": 0} for box in boxes]}


def of_config(folder, config, spec=None):
    """A job that makes a model of just this configuration."""
    wanted = tiny.job(folder, "object-detection", spec)
    model = wanted.spec.model.model_copy(update={"config": config, "dropout": None})
    return wanted.model_copy(update={"spec": wanted.spec.model_copy(update={"model": model})})


YOLOS = tiny.YOLOS | {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": [32, 32],
    "num_detection_tokens": 3,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Folder of data, process and result of a YOLOS that learned."""
    folder = tmp_path_factory.mktemp("detection")
    changes = {
        "model": {"config": YOLOS},
        "strategy": {"learningRate": {"value": 1.5e-3}},
        "training": {"maxSteps": 500},
        "evaluation": {"every": {"steps": 250}},
        "earlyStopping": {"metric": "map50", "patience": 3},
    }
    spec = tiny.merged(shapes_spec(folder), changes)
    process = tiny.process_of(tiny.job(folder, "object-detection", spec), folder / "run")
    return folder / "shapes", process, whole_run(process)


def shapes_spec(folder):
    """Images of one large shape each, drawn into ``folder``, a tenth of them to test on."""
    data = write_shapes(folder / "shapes", 500, sizes=((32, 32),), quadrants=True)
    return {
        "data": {"source": f"file://{data}", "split": {"train": 7, "validation": 2, "test": 1}},
        "training": {"batchSize": 16},
    }


def mean_box(material) -> float:
    """mAP at IoU 0.5 of the honest guess: the mean box of the training set, of every class as often as it is there."""
    part = material.parts["train"]
    boxes, ids = (np.concatenate(each) for each in zip(*map(part.objects.of, part.rows.tolist()), strict=True))
    scores = torch.from_numpy(np.bincount(ids) / len(ids))
    box = torch.from_numpy(boxes.mean(axis=0)).float().expand(len(scores), 4)
    guess = {"boxes": box, "scores": scores, "labels": torch.arange(len(scores))}
    metric, judged = BoxPrecision([0.5]), material.parts["test"]
    for row in judged.rows.tolist():
        corners, kinds = judged.objects.of(row)
        metric.update([guess], [{"boxes": torch.from_numpy(corners).float(), "labels": torch.from_numpy(kinds)}])
    return float(metric.compute())


def test_learns_to_find_shapes(learned):
    _, process, result = learned
    baseline = mean_box(prepare(process))
    print(f"map50: {result.metrics['map50']:.3f}, mean box {baseline:.3f}")
    assert result.metrics["map50"] > max(0.1, 3 * baseline)


def test_the_exported_model_finds_the_same(learned):
    data, process, result = learned
    material = prepare(process)
    processor, model = (
        kind.from_pretrained(result.model) for kind in (AutoImageProcessor, AutoModelForObjectDetection)
    )
    assert model.config.id2label == {0: "circle", 1: "square"}
    part = material.parts["test"]
    metric = BoxPrecision([0.5])
    for index in range(len(part)):
        picture = Image.open(part.paths[int(part.rows[index])])
        with torch.no_grad():
            outputs = model(pixel_values=processor(images=picture, return_tensors="pt")["pixel_values"])
        found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(32, 32)])
        wanted = part.batch(0, np.array([index]), is_counted=True).target[0]
        found[0]["boxes"] = found[0]["boxes"].clamp(0, 32)
        metric.update(found, [{"boxes": wanted["corners"], "labels": wanted["class_labels"]}])
    assert float(metric.compute()) == pytest.approx(result.metrics["map50"], abs=1e-6)
    found = pipeline("object-detection", model=result.model)(str(data / "0000.png"), threshold=0.0)
    assert {one["label"] for one in found} <= {"circle", "square"}


def test_the_report_shows_what_is_found(learned):
    _, process, _ = learned
    record = json.loads(process.context.run.evaluation.read_text())
    assert len(record["examples"]) == 8
    assert all(one["image"].startswith("data:image/png;base64,") for one in record["examples"])
    assert record["examples"][0]["expected"] in {"circle", "square"}
    assert "What the model does" in process.context.run.report.read_text()


BACKBONE = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_indices": [2, 3, 4],
}
DETR = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 5,
}
RT_DETR = DETR | {
    "backbone_config": BACKBONE,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [16, 16, 16],
}
FAMILY = {
    "detr": DETR
    | {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
            "out_features": ["stage2"],
        },
        "auxiliary_loss": True,
    },
    "rt_detr": RT_DETR,
    "d_fine": RT_DETR
    | {
        "backbone_config": {
            "model_type": "hgnet_v2",
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 8, 16, 16],
            "stage_mid_channels": [8, 8, 8, 8],
            "stage_out_channels": [8, 16, 16, 16],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_downsample": [False, True, True, True],
            "stage_light_block": [False, False, True, True],
            "stage_kernel_size": [3, 3, 5, 5],
            "stage_numb_of_layers": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "out_indices": [2, 3, 4],
            "embedding_size": 8,
        },
    },
}


@pytest.mark.parametrize("kind", FAMILY)
def test_the_family_s_exported_models_find_what_the_trained_ones_found(tmp_path, kind):
    """Loaded by transformers, processor and all, to the last digits; and training changed what they find."""
    spec = {"data": {"imageSize": 64}, "training": {"maxSteps": 2}}
    process = tiny.process_of(of_config(tmp_path, {"model_type": kind, **FAMILY[kind]}, spec), tmp_path / "run")
    trained = []

    def keep(model, *arguments, **named):
        trained.append(copy.deepcopy(model).eval())
        return export(model, *arguments, **named)

    with mock.patch.object(finish, "export", keep):
        result = whole_run(process)
    assert set(result.metrics) == {"loss", "map", "map50"}
    material = prepare(process)
    part, indices = material.parts["validation"], np.arange(5)
    inputs = part.batch(0, indices, is_counted=True).inputs
    pictures = [Image.open(part.paths[int(row)]) for row in part.rows[indices]]
    sizes = [picture.size[::-1] for picture in pictures]
    processor, model = (
        each.from_pretrained(result.model) for each in (AutoImageProcessor, AutoModelForObjectDetection)
    )
    exported = found_by(model, processor, processor(images=pictures, return_tensors="pt"), sizes)
    torch.testing.assert_close(exported, found_by(trained[0], material.companion, inputs, sizes))
    untrained = found_by(build_model(process.spec, material)[0].eval(), material.companion, inputs, sizes)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(exported, untrained)


def found_by(model, processor, inputs, sizes):
    """Scores, classes and boxes in each image, of whatever score."""
    with torch.no_grad():
        return processor.post_process_object_detection(model(**inputs), threshold=0.0, target_sizes=sizes)


DENOISED = {"num_denoising": 10, "num_queries": 10, "freeze_backbone_batch_norms": False}
LEARNING = {
    "detr": (
        {
            "d_model": 32,
            "num_queries": 3,
            "init_std": 0.1,
            "dropout": 0.0,
            "backbone_config": FAMILY["detr"]["backbone_config"] | {"embedding_size": 16, "hidden_sizes": [16, 32]},
        },
        3e-3,
        450,
    ),
    "rt_detr": (DENOISED, 2e-3, 100),
    "d_fine": (DENOISED, 2e-3, 120),
}
"""Changes of the configuration, learning rate and steps, by which each learns within half a minute of one core."""


@pytest.mark.parametrize(("kind", "changes", "rate", "steps"), [(k, *v) for k, v in LEARNING.items()], ids=LEARNING)
def test_the_family_learns_to_find_shapes(tmp_path, kind, changes, rate, steps):
    spec = tiny.merged(
        shapes_spec(tmp_path),
        {"data": {"imageSize": 64}, "strategy": {"learningRate": {"value": rate}}, "training": {"maxSteps": steps}},
    )
    config = {"model_type": kind, **FAMILY[kind], **changes}
    process = tiny.process_of(of_config(tmp_path, config, spec), tmp_path / "run")
    found, baseline = whole_run(process).metrics["map50"], mean_box(prepare(process))
    print(f"map50: {found:.3f}, mean box {baseline:.3f}")
    assert found > max(0.1, 3 * baseline)


def test_boxes_of_detr_are_those_of_the_image_without_its_padding(tmp_path):
    config = {"model_type": "detr", **FAMILY["detr"]}
    process = tiny.process_of(of_config(tmp_path, config), tmp_path / "run")
    batch = prepare(process).parts["train"].batch(0, np.arange(4), is_counted=True)
    assert not batch.inputs["pixel_mask"].bool().all(), "something is padded"
    assert all(torch.equal(one["frame"], one["size"]) for one in batch.target)


def test_precision_over_processes_is_that_over_all_images(group):
    """Images are shared unevenly, and one process has none."""
    whole = group.run(precision_of_rank, 1, (5, 0))[0]
    shared = group.run(precision_of_rank, 2, (3, 2), (5, 0))
    assert shared[0] == shared[1] == [pytest.approx(whole[0])] * 2
    assert 0 < whole[0] < 1


def test_precision_against_a_count_by_hand():
    """Two of three squares are found, one of the two only roughly."""
    wanted = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    found = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 26], [70, 70, 80, 80]])
    metric = BoxPrecision([0.5])
    metric.update(
        [{"boxes": found, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.zeros(3, dtype=torch.int64)}],
        [{"boxes": wanted, "labels": torch.zeros(3, dtype=torch.int64)}],
    )
    assert box_iou(found, wanted)[1, 1] == pytest.approx(0.6)
    assert float(metric.compute()) == pytest.approx(2 / 3, abs=0.01)


def test_no_object_at_all():
    metric = BoxPrecision(None)
    nothing = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}
    metric.update([nothing | {"scores": torch.empty(0)}], [nothing])
    assert float(metric.compute()) == 0.0
