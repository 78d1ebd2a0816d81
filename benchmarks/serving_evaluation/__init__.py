"""The evaluation of serving: many clients and many models in one small EPC, and overload.

``make evaluation-serving`` runs it and writes ``docs/evaluation-serving.md``.
"""
