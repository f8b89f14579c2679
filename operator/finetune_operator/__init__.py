"""The operator: what shall happen to a FineTuneJob, decided by pure functions, done by whoever runs the cluster."""
