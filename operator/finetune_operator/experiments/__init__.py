"""Experiments: which trials to run, when to end them, and what follows from them. Pure; no cluster is known here."""
