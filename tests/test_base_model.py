"""What a model was made from is told in the user's words: no path of a cache, code only with consent."""

import json

import pytest
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSequenceClassification

import tiny
from finetune_api.job import ModelSpec
from finetune_trainer.export import export
from finetune_trainer.models import base_name, load_config, load_model, load_processor
from finetune_trainer.strategies import apply_strategy
from finetune_trainer.tasks import task_of

NAMES = {
    "hf://owner/name": "owner/name",
    "hf://owner/name/": "owner/name",
    "hf://owner/name/folder": "hf://owner/name/folder",
    "pvc://models/bert": "pvc://models/bert",
    "file:///models/bert": "file:///models/bert",
}


@pytest.mark.parametrize(("source", "name"), NAMES.items(), ids=NAMES)
def test_name_of_the_base(source, name):
    assert base_name(ModelSpec(source=source)) == name


def test_a_new_model_has_no_base():
    assert base_name(ModelSpec(config={"model_type": "bert"})) == ""


def test_an_adapter_names_its_base_as_the_user_does(tmp_path):
    cache = tmp_path / "cache"
    small = {name: value for name, value in tiny.BERT.items() if name != "model_type"}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **small)).save_pretrained(cache)
    spec = tiny.job(tmp_path, "text-classification", {"strategy": {"lora": {"r": 2}}}).spec
    spec = spec.model_copy(update={"model": ModelSpec(source="hf://owner/name", revision="abc")})
    config = load_config(spec.model, cache, task_of(spec), ("a", "b"))
    model = load_model(spec, cache, config, task_of(spec))
    model, _ = apply_strategy(model, spec.strategy, has_new_head=True, revision=spec.model.revision)
    inputs = model.get_base_model().dummy_inputs
    export(model, [], to=tmp_path / "model", adapter_to=tmp_path / "adapter", probe=inputs)
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("owner/name", "abc")
    written = [path for folder in ("model", "adapter") for path in (tmp_path / folder).glob("*.[jm][sd]*")]
    assert {path.name for path in written} >= {"adapter_config.json", "config.json", "README.md"}
    assert not [path for path in written if str(cache) in path.read_text()]


@pytest.mark.parametrize("consent", [True, False])
def test_an_image_processor_s_code_runs_with_consent_only(tmp_path, monkeypatch, consent):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    asked = {}
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda _folder, **options: asked.update(options))
    load_processor(ModelSpec(source="hf://owner/name", trust_remote_code=consent), tmp_path, object(), None)
    assert asked == {"trust_remote_code": consent}
