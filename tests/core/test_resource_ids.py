"""Azure resource IDs: read strictly, compared without regard to case, shown as they were written."""

from __future__ import annotations

import pytest

from podidentity_core.resource_ids import (
    Host,
    HostKind,
    IdentityResource,
    InvalidResourceId,
    host_of,
    parse_host,
    parse_identity_resource,
)

ID = "/subscriptions/S/resourcegroups/RG/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Name"


@pytest.mark.parametrize(
    "text",
    [
        ID,
        ID.lower(),
        ID.upper(),
        ID.replace("resourcegroups", "resourceGroups"),
        ID.replace("RG", "rg.with-(odd)_chars"),
    ],
)
def test_an_identity_is_shown_as_written(text: str) -> None:
    resource = parse_identity_resource(text)

    assert str(resource) == resource.text == text


def test_spellings_of_one_identity_are_equal() -> None:
    spellings = {parse_identity_resource(text) for text in (ID, ID.lower(), ID.upper())}

    assert len(spellings) == 1
    assert parse_identity_resource(ID) != parse_identity_resource(ID + "2")
    assert parse_identity_resource(ID) != ID


BAD_IDENTITIES = [
    "",
    "Name",
    ID + "/",
    ID + "/more",
    " " + ID,
    "x" + ID,
    "https://management.azure.com" + ID,
    ID[1:],
    ID.replace("/Name", "/"),
    ID.replace("/Name", ""),
    ID.replace("/S/", "//"),
    ID.replace("/RG/", "//"),
    ID.replace("Microsoft.ManagedIdentity", "MicrosoftXManagedIdentity"),
    ID.replace("Microsoft.ManagedIdentity", "Microsoft.Compute"),
    ID.replace("userAssignedIdentities", "identities"),
    ID.replace("resourcegroups", "groups"),
]


@pytest.mark.parametrize("text", BAD_IDENTITIES)
def test_another_resource_id_is_not_an_identity(text: str) -> None:
    with pytest.raises(InvalidResourceId) as caught:
        parse_identity_resource(text)

    assert str(caught.value) == (
        f"invalid resource id: {text!r}, must match /subscriptions/<subid>/resourcegroups/<resourcegroup>"
        "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/<name>"
    )


@pytest.mark.parametrize("odd", ["Na me", "Name\n", "Na\nme", "Name\t", "Na?me", "Na#me", "Na%2fme"])
def test_a_name_that_arm_cannot_have_is_not_an_identity(odd: str) -> None:
    with pytest.raises(InvalidResourceId):
        parse_identity_resource(ID.replace("Name", odd))


COMPUTE = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute"

HOSTS = {
    f"azure://{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/0": Host(HostKind.SCALE_SET, "S", "G", "N"),
    f"azure://{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/17/": Host(HostKind.SCALE_SET, "S", "G", "N"),
    f"{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/0": Host(HostKind.SCALE_SET, "S", "G", "N"),
    f"AZURE://{COMPUTE.upper()}/VIRTUALMACHINESCALESETS/N/VIRTUALMACHINES/0": Host(HostKind.SCALE_SET, "S", "G", "N"),
    f"azure://{COMPUTE.lower()}/virtualmachinescalesets/n/virtualmachines/0": Host(HostKind.SCALE_SET, "s", "g", "n"),
    f"azure://{COMPUTE}/virtualMachines/aks-pool-1": Host(HostKind.VM, "S", "G", "aks-pool-1"),
    f"azure://{COMPUTE}/virtualMachines/aks-pool-1/": Host(HostKind.VM, "S", "G", "aks-pool-1"),
    f"azure://{COMPUTE}/virtualmachines/testvm1": Host(HostKind.VM, "S", "G", "testvm1"),
    "azure:///subscriptions/S/resourceGroups/mc_rg_(x).y/providers/Microsoft.Compute/virtualMachines/v": Host(
        HostKind.VM, "S", "mc_rg_(x).y", "v"
    ),
}


@pytest.mark.parametrize(("provider_id", "host"), HOSTS.items(), ids=HOSTS)
def test_a_provider_id_names_the_host(provider_id: str, host: Host) -> None:
    assert host_of(provider_id) == host


def test_a_host_is_shown_with_the_names_as_written() -> None:
    host = host_of(f"azure://{COMPUTE.lower()}/virtualmachinescalesets/Pool/virtualmachines/0")

    assert str(host) == "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/Pool"


NOT_HOSTS = [
    "",
    "asdf",
    "azure://",
    "azure:///subscriptions/S",
    "azure:///subscriptions/S/resourceGroups/G/virtualMachines/v",
    f"azure://{COMPUTE}",
    f"azure://{COMPUTE}/virtualMachines",
    f"azure://{COMPUTE}/virtualMachines/",
    f"azure://{COMPUTE}/virtualMachines//",
    f"azure://{COMPUTE}/virtualMachineScaleSets/N",
    f"azure://{COMPUTE}/virtualMachineScaleSets/N/virtualMachines",
    f"azure://{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/",
    f"azure://{COMPUTE}/virtualMachineScaleSets//virtualMachines/0",
    f"azure://{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/0/more",
    f"azure://{COMPUTE}/virtualMachines/v/more",
    f"azure://{COMPUTE}/availabilitySets/a",
    f"azure://{COMPUTE.replace('/S/', '//')}/virtualMachines/v",
    f"azure://{COMPUTE.replace('Microsoft.Compute', 'MicrosoftxCompute')}/virtualMachines/v",
    f"aws://{COMPUTE}/virtualMachines/v",
    f"x azure://{COMPUTE}/virtualMachines/v",
    "aws:///eu-west-1a/i-0123456789",
    "gce://project/zone/name",
    "kind://docker/kind/kind-control-plane",
]


@pytest.mark.parametrize("provider_id", NOT_HOSTS)
def test_another_provider_id_names_no_host(provider_id: str) -> None:
    with pytest.raises(InvalidResourceId) as caught:
        host_of(provider_id)

    assert repr(provider_id) in str(caught.value)


SAME = Host(HostKind.SCALE_SET, "S", "G", "N")


@pytest.mark.parametrize("odd", ["v m", "vm\n", "v\nm", "v?m", "v#m", "v%2fm"])
def test_a_name_that_arm_cannot_have_is_no_host(odd: str) -> None:
    with pytest.raises(InvalidResourceId):
        host_of(f"azure://{COMPUTE}/virtualMachines/{odd}")


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (Host(HostKind.SCALE_SET, "s", "g", "n"), True),
        (Host(HostKind.VM, "S", "G", "N"), False),
        (Host(HostKind.SCALE_SET, "S2", "G", "N"), False),
        (Host(HostKind.SCALE_SET, "S", "G2", "N"), False),
        (Host(HostKind.SCALE_SET, "S", "G", "N2"), False),
    ],
    ids=["other case", "a VM of that name", "other subscription", "other group", "other name"],
)
def test_hosts_are_the_same_if_everything_is_but_the_case(other: Host, equal: bool) -> None:
    assert (other == SAME) is equal
    assert (len({SAME, other}) == 1) is equal


def test_things_of_different_types_are_never_equal() -> None:
    assert SAME.key != SAME
    assert IdentityResource("x", "x") != "x"


NOTED_HOSTS = {
    f"{COMPUTE}/virtualMachines/aks-pool-1": Host(HostKind.VM, "S", "G", "aks-pool-1"),
    f"{COMPUTE}/virtualMachineScaleSets/Pool": Host(HostKind.SCALE_SET, "S", "G", "Pool"),
    f"{COMPUTE.lower()}/virtualmachines/v": Host(HostKind.VM, "s", "g", "v"),
    f"{COMPUTE.upper()}/VIRTUALMACHINESCALESETS/N": Host(HostKind.SCALE_SET, "S", "G", "N"),
    f"{COMPUTE.replace('/G/', '/mc_rg_(x).y/')}/virtualMachines/v": Host(HostKind.VM, "S", "mc_rg_(x).y", "v"),
}


@pytest.mark.parametrize(("text", "host"), NOTED_HOSTS.items(), ids=NOTED_HOSTS)
def test_a_host_is_read_from_its_resource_id(text: str, host: Host) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("host", [*HOSTS.values(), *NOTED_HOSTS.values()], ids=str)
def test_what_a_host_says_of_itself_is_read_back_to_the_letter(host: Host) -> None:
    assert parse_host(host.resource_id).resource_id == host.resource_id


NOT_NOTED_HOSTS = [
    "",
    f"azure://{COMPUTE}/virtualMachines/v",
    f"{COMPUTE}/virtualMachines",
    f"{COMPUTE}/virtualMachines/",
    f"{COMPUTE}/virtualMachines/v/",
    f"{COMPUTE}/virtualMachines/v\n",
    f"{COMPUTE}/virtualMachines/v w",
    f" {COMPUTE}/virtualMachines/v",
    f"{COMPUTE}/virtualMachineScaleSets/N/virtualMachines/0",
    f"{COMPUTE}/availabilitySets/a",
    f"{COMPUTE.replace('Microsoft.Compute', 'MicrosoftxCompute')}/virtualMachines/v",
    ID,
]


@pytest.mark.parametrize("text", NOT_NOTED_HOSTS)
def test_another_resource_id_is_no_host(text: str) -> None:
    with pytest.raises(InvalidResourceId) as caught:
        parse_host(text)

    assert str(caught.value) == f"invalid resource id: {text!r} is neither a virtual machine nor a scale set"
