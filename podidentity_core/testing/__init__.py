"""Test support for users of the core: builders, fakes, and the contracts that every adapter passes."""
