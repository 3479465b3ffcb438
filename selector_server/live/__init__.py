"""What a server is doing, as people look at it: the one-shot status, the terminal view and the web page.

All three show one message, `RunStatus` with its `RunDetail` (selector.proto), so they can't disagree.
"""
