"""Who may call a server and how much a call may cost: checked before a call reaches the service.

A call passes `authenticator.py` (its token says whose it is), then `guard.py` (whose run, within which limits), and
only then `service.py`.
"""
