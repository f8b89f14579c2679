"""What one would write by hand: read a CSV file, tokenize it, and train; ends after its first step.

python benchmarks/plain_script.py DATA.csv MODEL MAX_LENGTH
"""

import csv
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH = 32

data, model_folder, max_length = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Path(data).open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
labels = sorted({row["label"] for row in rows})
targets = torch.tensor([labels.index(row["label"]) for row in rows])
tokenizer = AutoTokenizer.from_pretrained(model_folder)
encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=len(labels))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
model.train()
order = torch.randperm(len(rows))
for start in range(0, len(rows), BATCH):
    indices = order[start : start + BATCH]
    batch = tokenizer.pad({"input_ids": [encoded["input_ids"][index] for index in indices]}, return_tensors="pt")
    loss = model(**batch, labels=targets[indices]).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}", flush=True)
    break
