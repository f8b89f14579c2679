"""The `finetune` command, and the local cluster that `finetune run` uses."""
