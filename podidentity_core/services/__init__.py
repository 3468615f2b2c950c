"""The use cases, as coroutines over ports. They decide nothing that a pure module could decide."""
