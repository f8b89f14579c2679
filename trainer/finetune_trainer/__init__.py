"""The trainer: one process of a fine-tuning run, and the worker that starts it. Knows nothing of Kubernetes."""
