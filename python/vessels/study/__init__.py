"""Study: what a trusted processor's paging does to a model, and what a plan changes.

Two legs. Exact analysis, from the program alone: :mod:`~vessels.study.trace` (the pages that one
prediction touches), :mod:`~vessels.study.distances` (misses of every LRU memory),
:mod:`~vessels.study.replacement` (faults under the emulator's own policy) and
:mod:`~vessels.study.analysis`. Measurement under the EPC emulator: :mod:`~vessels.study.emulator`
and :mod:`~vessels.study.measure`. What both find is a :class:`~vessels.study.result.Study`.
"""
