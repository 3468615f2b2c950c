"""Which Azure identities a pod should have, and which one answers its token request.

The library behind MIC and NMI: frozen values, pure decisions, and ports that adapters implement. It imports
the standard library only; time, randomness and I/O come in through `podidentity_core.ports`.
"""
