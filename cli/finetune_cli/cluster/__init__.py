"""The commands that follow a job in a Kubernetes cluster. Nothing else of the command imports ``kubernetes``."""
