"""Several scoring processes that serve as one selector: `torchrun --nproc_per_node G -m selector_server serve`.

Rank 0 serves. Micro-batches are cut for the whole large batch as for one process and then dealt whole (`deal`), so what
is selected doesn't depend on G. Rank 0 says over a process group (`team`) what to do, the others do it (`worker`), and
rank 0's `engine` puts together what all found. Each process watches the other end (`pulse`): if one dies or hangs, all
end, and the one that is to blame is named.
"""
