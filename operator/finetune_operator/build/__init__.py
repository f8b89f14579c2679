"""The objects of a job in Kubernetes: one file a kind, each a pure function from a ``Resolved`` job to a manifest.

Invariant: the same input gives an equal manifest, and the API server writes every field that is set here back as it was
sent (quantities are canonical, nothing empty is sent, keyed lists have their keys), so that a server-side apply of an
unchanged job changes nothing. What the server fills in by itself is left to it.
"""
