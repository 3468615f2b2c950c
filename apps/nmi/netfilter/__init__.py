"""Interception: requests of pods for the metadata address are redirected to NMI by iptables.

`rules` says what must be there and writes the transactions (pure), `firewall` runs the programs, `route_localnet`
looks at the kernel setting without which the redirect leads nowhere, and `interceptor` decides when. All of it is for
one address family; a second family is a second `Interceptor` with its own redirect and firewall.
"""
