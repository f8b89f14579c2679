"""Translation models made on the spot: Marian's architecture and tokenizer, a few random weights."""

import io
import json
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

import tiny

LONGEST = 12
"""Tokens of a translation at most: random weights seldom end one by themselves."""


def write_translator(folder: Path, seed: int) -> Path:
    """A folder with a model and its tokenizer."""
    folder.mkdir(parents=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(tiny.WORDS)] * 4),
        model_writer=written,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "source.spm").write_bytes(written.getvalue())
    (folder / "target.spm").write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    words = [pieces.id_to_piece(index) for index in range(3, pieces.vocab_size())]
    (folder / "vocab.json").write_text(
        json.dumps({word: at for at, word in enumerate(["</s>", "<unk>", *words, "<pad>"])})
    )
    tokenizer = MarianTokenizer(
        str(folder / "source.spm"), str(folder / "target.spm"), str(folder / "vocab.json"), model_max_length=LONGEST
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=len(words) + 3,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=LONGEST,
        eos_token_id=0,
        forced_eos_token_id=0,
        pad_token_id=len(words) + 2,
        decoder_start_token_id=len(words) + 2,
        init_std=1.0,
    )
    MarianMTModel(config).save_pretrained(folder)
    return folder
