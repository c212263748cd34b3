"""Names of Tune's schedulers, and what they do with running trials."""

#: Names that `make_scheduler` accepts; with `fifo` every trial runs to its end.
SCHEDULERS = ("fifo", "asha", "hyperband", "median", "pbt", "pb2")
#: Schedulers that pause trials: all trials are alive at the same time, and those without a free slot wait.
PAUSING = ("hyperband", "pbt", "pb2")
#: Schedulers that change options of running trials.
CHANGING = ("pbt", "pb2")
