"""The custom resources ``AccessOverride``, ``SegmentationMode`` and ``LearnedPolicy`` (``hedgerow.dev/v1alpha1``).

People's resources are the truth about overrides and modes: they are read (:mod:`.reading`), given to the engine as a
whole (:mod:`.sync`), and each is told in its status what became of it (:mod:`.status`). Nothing but ``status`` is ever
written into a resource that somebody else made, so that GitOps sees no drift. What people ask of the web API and the
command becomes resources of our own (:mod:`.author`).
"""
