"""Rows → losses and what is known of their gradients.

`scorer` runs rows through a model that `split` has cut into a trunk and a `tail`; `estimators` say what a micro-batch's
tail tells of gradients, along `probes` or as a `sketch`. `v_projection` finds what is perturbed, `head` makes losses of
hidden states, and `economy` spares the tail what doesn't matter.
"""
