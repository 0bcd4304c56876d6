"""``hedgerow check``: is this cluster ready for Hedgerow, and is the Hedgerow on it well?

Every check reads from the API server and comes to one :class:`~hedgerow.checking.finding.Finding`; a failure says what
to do, and where ``docs/check.md`` says more.
"""
