"""Injection: how a pod gets its sidecar.

One pure function (:func:`controller.injection.injecting.inject`) says what becomes of a pod; the webhook
(:mod:`controller.injection.app`) and the command (``hedgerow inject``) both call it, so that they can not differ.
Nothing here imports the engine or talks to the API server: the webhook is a program of its own, which works while the
controller is away.
"""
