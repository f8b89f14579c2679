"""dropout.py: the same thing as torch's, drawn faster."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification

import tiny
from finetune_trainer.dropout import CpuDropout, drop, use_fast_dropout

CONFIG = {**tiny.BERT, "vocab_size": 50}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9], ids=str)
def test_drops_the_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    values = drop(torch.ones(1_000_001), p)
    dropped = (values == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=0.002)  # four standard deviations
    assert values.double().mean().item() == pytest.approx(1, abs=0.012)
    assert values.unique().numel() == 2


def test_extremes():
    values = torch.randn(3, 5)
    assert drop(values, 0.0) is values
    assert torch.equal(drop(values, 1.0), torch.zeros(3, 5))
    assert drop(torch.ones(0, 4), 0.5).shape == (0, 4)


def test_is_a_function_of_torchs_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        return [drop(torch.ones(64), 0.5) for _ in range(2)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_gradient_is_that_of_the_kept():
    values = torch.randn(100, requires_grad=True)
    dropped = drop(values, 0.25)
    dropped.sum().backward()
    expected = torch.where(dropped == 0, 0.0, 1 / 0.75)
    torch.testing.assert_close(values.grad, expected)


def test_checkpointing_draws_the_same_mask_again():
    layer, values = CpuDropout(0.5), torch.randn(64, requires_grad=True)
    out = checkpoint(layer, values, use_reentrant=False)
    out.sum().backward()
    assert torch.equal(values.grad == 0, out == 0)


def test_every_dropout_of_a_model_is_drawn_by_it(monkeypatch):
    """With masks that drop nothing, a training pass equals an evaluation."""
    model = BertForSequenceClassification(BertConfig(**CONFIG, num_labels=3, attention_probs_dropout_prob=0.0))
    use_fast_dropout(model)
    ids = torch.randint(1, 50, (3, 7))
    calls = []
    monkeypatch.setattr("finetune_trainer.dropout.drop", lambda values, p: calls.append(p) or values)
    trained, judged = model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits
    torch.testing.assert_close(trained, judged, rtol=1e-5, atol=1e-6)
    assert calls == [0.1] * (1 + 2 * 2 + 1)  # embeddings, two a layer beside the attention's, classifier


def test_saves_as_any_model(tmp_path):
    model = BertForSequenceClassification(BertConfig(**CONFIG))
    use_fast_dropout(model)
    model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert not any(isinstance(module, CpuDropout) for module in loaded.modules())
    assert any(isinstance(module, nn.Dropout) for module in loaded.modules())
