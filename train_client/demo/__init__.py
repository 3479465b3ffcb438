"""The demo: everything it needs is made here, so that it runs without network, GPU or download."""
