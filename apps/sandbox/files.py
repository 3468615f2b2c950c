"""The files that point clients at a sandbox: kubeconfig, azure.json, the custom cloud's environment.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from apps.sandbox.options import LOCATION, RESOURCE_GROUP, SUBSCRIPTION, TENANT

_ENDPOINTS = (
    "managementPortalURL publishSettingsURL galleryEndpoint keyVaultEndpoint managedHSMEndpoint graphEndpoint "
    "serviceBusEndpoint batchManagementEndpoint microsoftGraphEndpoint storageEndpointSuffix cosmosDBDNSSuffix "
    "mariaDBDNSSuffix mySqlDatabaseDNSSuffix postgresqlDatabaseDNSSuffix sqlDatabaseDNSSuffix trafficManagerDNSSuffix "
    "keyVaultDNSSuffix managedHSMDNSSuffix serviceBusEndpointSuffix serviceManagementVMDNSSuffix "
    "resourceManagerVMDNSSuffix containerRegistryDNSSuffix apiManagementHostNameSuffix synapseEndpointSuffix "
    "datalakeSuffix"
)


def write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner can read, and return its path."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)
    return path


def kubeconfig(server: str, token: str, ca_file: Path) -> str:
    """Return a kubeconfig with one context, named sandbox."""
    name = "sandbox"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority": str(ca_file)}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
    }
    return yaml.safe_dump(config, sort_keys=False)


def environment(arm_url: str, entra_url: str) -> str:
    """Return the custom cloud's file; endpoints that the sandbox does not have are N/A, as in real ones."""
    cloud: dict[str, Any] = dict.fromkeys(_ENDPOINTS.split(), "N/A")
    cloud |= {
        "name": "AzureStackCloud",
        "serviceManagementEndpoint": f"{arm_url}/",
        "resourceManagerEndpoint": f"{arm_url}/",
        "activeDirectoryEndpoint": f"{entra_url}/",
        "tokenAudience": f"{arm_url}/",
        "resourceIdentifiers": {},
    }
    return json.dumps(cloud, indent=2) + "\n"


def azure_json(credentials: Mapping[str, Any], scale_set: str) -> str:
    """Return azure.json; *credentials* are the keys that say who MIC is at Azure."""
    config = {
        "cloud": "AzureStackCloud",
        "tenantId": TENANT,
        "subscriptionId": SUBSCRIPTION,
        "resourceGroup": RESOURCE_GROUP,
        "location": LOCATION,
        "vmType": "vmss" if scale_set else "standard",
        "primaryScaleSetName": scale_set,
        **credentials,
    }
    return json.dumps(config, indent=2) + "\n"
