"""The evaluation: the study of :mod:`vessels.study` over the network zoo."""
