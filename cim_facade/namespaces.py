"""The namespaces that are served, and which MOF files of ``schema/`` make up each, superclasses first."""

from __future__ import annotations

STORAGE = "root/cimv2/storage/iscsitarget"
"""MSISCSITARGET_* and the CIM_* classes below them."""

STORAGE_MANAGEMENT = "root/microsoft/windows/storage/sm"
"""MSFT_SM*: another model, with ObjectId keys."""

INTEROP = "interop"

ALIASES = {"root/interop": INTEROP}
"""Other names under which a namespace answers."""

SCHEMA: dict[str, tuple[str, ...]] = {
    STORAGE: (
        "qualifiers",
        "cim_core",
        "cim_job",
        "cim_storage",
        "cim_replication",
        "cim_masking",
        "msiscsitarget",
        "replication_company",
        "profiles",
        "indications",
    ),
    STORAGE_MANAGEMENT: ("qualifiers", "msft_sm", "indications"),
    INTEROP: ("qualifiers", "cim_core", "profiles", "interop", "indications", "subscriptions"),
}
