"""Interception: requests of pods for the metadata address are redirected to NMI by iptables.

`rules` says what must be there and writes the transactions, `flows` which connections bypass them (both pure);
`firewall` runs the programs, `routing` reads the kernel's tables, `route_localnet` looks at the kernel setting without
which the redirect leads nowhere, and `interceptor` decides when. All of it is for one address family, that of the
redirect.
"""
