"""What can go wrong with a cluster."""


class BuildError(Exception):
    """Something that the cluster needs could not be built; the message holds the end of its log."""


class ClusterError(Exception):
    """The cluster did not come up or did not do what it was asked; the message says which log to read."""
