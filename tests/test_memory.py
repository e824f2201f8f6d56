"""Work that begins again when the memory of a GPU runs out; test_gpu has it run out in earnest."""

import weakref

import torch

from dsfer.memory import in_batches_that_fit


def test_what_did_not_fit_is_let_go_before_the_next_try():
    held, tried = [], []

    def work(pairs):
        assert not any(tensor() is not None for tensor in held)
        tried.append(pairs)
        tensor = torch.zeros(pairs)
        held.append(weakref.ref(tensor))
        if pairs > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return pairs

    assert in_batches_that_fit(work, 9) == 2
    assert tried == [9, 4, 2]
