"""``finetune dashboard``: one read-only page of jobs and experiments, live."""
