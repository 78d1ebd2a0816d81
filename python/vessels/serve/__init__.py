"""Serving: the host's side of confidential prediction.

:class:`~vessels.serve.model.ServedModel` keeps the enclave of one sealed model running,
:func:`~vessels.serve.app.make_app` is what the network sees, and
:func:`~vessels.serve.server.serve` runs both. All of it is on the host and not trusted: it
forwards sealed messages that it cannot read. ``docs/serving.md`` specifies the interface.
"""
