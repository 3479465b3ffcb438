"""The contract's generated code; see proto/ and `make proto`."""
