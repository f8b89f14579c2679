"""attention.py: what torch computes, a block at a time."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import tiny
from finetune_trainer import attention as subject
from finetune_trainer.attention import attention, use_fast_attention
from finetune_trainer.dropout import kept, rounded

CONFIG = {**tiny.BERT, "vocab_size": 50}
P = 0.3


def some(samples=5, heads=3, queries=7, length=7, width=4, dtype=torch.float32):
    """Queries, keys and values as a model makes them: views of (n, T, heads x d)."""
    torch.manual_seed(0)
    lengths = queries, length, length
    flat = [torch.randn(samples, size, heads * width, dtype=dtype, requires_grad=True) for size in lengths]
    return flat, [one.view(samples, -1, heads, width).transpose(1, 2) for one in flat]


def masks(samples, heads, queries, length):
    is_read = torch.ones(samples, 1, queries, length, dtype=torch.bool)
    is_read[1, :, :, length // 2 :] = False
    return {
        "none": None,
        "bool": is_read,
        "additive": torch.zeros(is_read.shape).masked_fill(~is_read, torch.finfo(torch.float32).min),
        "for every head": torch.randn(samples, heads, queries, length),
        "the same for all": torch.randn(1, 1, queries, length),
    }


def directly(query, key, value, mask, kept_share):
    """All at once, with the mask of what is kept given."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else scores + mask
    return ((scores.softmax(-1) * kept_share / (1 - rounded(P))) @ value).transpose(1, 2)


@pytest.mark.parametrize("block", [1, 300, 1 << 18], ids=["a sample", "some", "all"])
@pytest.mark.parametrize("mask", masks(5, 3, 7, 7))
@pytest.mark.parametrize("queries", [7, 1], ids=["all queries", "one query"])
def test_is_the_product_of_what_is_kept(monkeypatch, block, mask, queries):
    monkeypatch.setattr(subject, "_BLOCK", block)
    shape = (5, 3, queries, 7)
    monkeypatch.setattr(subject, "new_seed", lambda: 7)
    per_block = max(1, block // (3 * queries * 7))
    bits = np.random.SFC64(7)
    sizes = [len(part) for part in torch.arange(5).split(per_block)]
    kept_share = torch.cat([kept(bits, torch.Size((size, *shape[1:])), P) for size in sizes]).float()
    assert 0.5 < kept_share.mean() < 0.9
    given = masks(*shape)[mask]
    module = nn.Module()

    flat, (query, key, value) = some(queries=queries)
    got, _ = attention(module, query, key, value, given, dropout=P)
    assert got.is_contiguous()
    slope = torch.randn_like(got)
    found = torch.autograd.grad(got, flat, slope)
    flat, (query, key, value) = some(queries=queries)
    wanted = directly(query, key, value, given, kept_share)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(found, torch.autograd.grad(wanted, flat, slope), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_keeps_one_matrix_of_pairs():
    """torch's own way to dropout keeps the weights, their mask, and both multiplied; and what is masked."""

    def bytes_kept(attend):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda kept: sizes.update({kept.untyped_storage().data_ptr(): kept.untyped_storage().nbytes()}) or kept,
            lambda kept: kept,
        ):
            _, (query, key, value) = some(samples=2, queries=128, length=128)
            out = attend(query, key, value)
        assert out.requires_grad
        return sum(sizes.values())

    pairs = 2 * 3 * 128 * 128 * 4
    mask = masks(2, 3, 128, 128)["bool"]
    ours = bytes_kept(lambda *given: attention(nn.Module(), *given, mask, dropout=P)[0])
    torchs = bytes_kept(lambda *given: nn.functional.scaled_dot_product_attention(*given, attn_mask=mask, dropout_p=P))
    assert 1.25 * pairs < ours < 1.5 * pairs
    assert torchs > 2 * pairs


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"dropout": 0.0}, id="no dropout"),
        pytest.param({"dropout": P, "is_causal": True}, id="causal"),
        pytest.param({"dropout": P, "heads of keys": 1}, id="fewer heads of keys"),
        pytest.param({"dropout": P, "learned": True}, id="a learned bias"),
    ],
)
def test_the_rest_is_left_to_torch(monkeypatch, case):
    monkeypatch.setattr(subject._Attention, "apply", None)
    _, (query, key, value) = some()
    heads = case.pop("heads of keys", 3)
    module = nn.Module()
    module.num_key_value_groups = 3 // heads
    bias = torch.zeros(5, 3, 7, 7, requires_grad=True) if case.pop("learned", False) else None
    got, _ = attention(module, query, key[:, :heads], value[:, :heads], bias, **case)
    assert got.shape == (5, 7, 3, 4)
    if bias is not None:
        got.square().sum().backward()
        assert bias.grad.abs().sum() > 0


def test_computes_in_single_precision_what_comes_in_half():
    _, (query, key, value) = some(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attention(nn.Module(), query, key, value, None, dropout=P)
    assert got.dtype == torch.bfloat16
    got.sum().backward()


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_a_model_computes_the_same_with_it(padded, monkeypatch):
    """With masks that drop nothing, a training pass equals an evaluation, which is torch's."""
    model = BertForSequenceClassification(BertConfig(**CONFIG, num_labels=3, hidden_dropout_prob=0.0))
    use_fast_attention(model)
    ids = torch.randint(1, 50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids} | ({"attention_mask": mask} if padded else {})
    calls = []
    scale = 1 - rounded(0.1)
    monkeypatch.setattr(subject, "kept", lambda _bits, shape, p: calls.append(p) or torch.full(shape, scale))
    trained, judged = model.train()(**inputs).logits, model.eval()(**inputs).logits
    torch.testing.assert_close(trained, judged, rtol=1e-5, atol=1e-6)
    assert calls == [0.1] * 2


def test_a_model_with_a_wish_of_its_own_is_left_alone():
    eager = BertForSequenceClassification(BertConfig(**CONFIG, attn_implementation="eager"))
    use_fast_attention(eager)
    assert eager.config._attn_implementation == "eager"


def test_saves_as_any_model(tmp_path):
    model = BertForSequenceClassification(BertConfig(**CONFIG))
    use_fast_attention(model)
    model.save_pretrained(tmp_path)
    assert BertForSequenceClassification.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
