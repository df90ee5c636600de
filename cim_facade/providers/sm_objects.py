"""Objects of the storage management model: system, pool, volumes, replica peers, groups, jobs, capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cim_facade import elements, sm_objects, synchronizations
from cim_facade.namespaces import STORAGE_MANAGEMENT
from cim_facade.paths import POOL_ID, device_id
from cim_facade.provider import Provider
from cim_facade.providers import jobs
from cim_facade.providers.volumes import Disk, disks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance

    from cim_facade.context import View
    from cim_facade.elements import Element, Group
    from cim_facade.provider import Keys
    from cim_facade.synchronizations import Copy, GroupCopy
    from engine.api import JobInfo, PeerInfo

BLOCK_BYTES = 512
STORAGE_VOLUME, GROUP_TYPE, SYSTEM_TYPE = 4, 32769, 32770
"""Of MSFT_SMReplicaPeer.PeerObjectType."""

HEALTHY, WARNING, UNHEALTHY = 0, 1, 2
REPLICATION_TYPES = [2, 3, 4, 5, 6, 7, 10, 11, 14, 15, 18, 19, 20, 22, 24]
"""Mirrors here and at peers; snapshots, clones and tokenized clones here; each in all three modes."""


class SmProvider(Provider):
    """Of one class with ObjectIds of one ``kind``."""

    namespace = STORAGE_MANAGEMENT
    kind: ClassVar[str]

    async def object_id(self, view: View, identity: object) -> str:
        return (await view.paths()).instance_id(self.kind, identity)

    async def identity(self, view: View, keys: Keys) -> str | None:
        text, prefix = keys.get("ObjectId"), await self.object_id(view, "")
        if len(keys) != 1 or not isinstance(text, str) or not text.startswith(prefix):
            return None
        return text[len(prefix) :]

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        identity = await self.identity(view, keys)
        return None if identity is None else await self.of(view, identity)

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        raise NotImplementedError

    async def made(self, view: View, identity: object, **properties: Any) -> CIMInstance:
        return view.make(self.namespace, self.class_name, ObjectId=await self.object_id(view, identity), **properties)


class SmSystem(SmProvider):
    class_name = sm_objects.CLASSES[sm_objects.SYSTEM]
    kind = sm_objects.SYSTEM

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        found = await self.of(view, sm_objects.LOCAL)
        assert found is not None
        yield found

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        if identity != sm_objects.LOCAL:
            return None
        pool = await view.pool_identity()
        status = await view.status()
        healthy = status.health == "ok"
        return await self.made(
            view,
            identity,
            Identifier=pool.pool_id,
            DisplayName=pool.path.rstrip("/").rpartition("/")[2],
            Name=pool.pool_id,
            NameFormat="Other",
            HealthStatus=HEALTHY if healthy else WARNING,
            HealthStatusDescription="; ".join(status.reasons) or "Healthy",
            OperationalStatus=[2 if healthy else 3],
            StatusDescription="OK" if healthy else "; ".join(status.reasons),
            Manufacturer="twinvol",
            Model="twinvol",
            SerialNumber=pool.pool_id,
            FirmwareVersion=pool.version,
        )


class SmPool(SmProvider):
    class_name = sm_objects.CLASSES[sm_objects.POOL]
    kind = sm_objects.POOL

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        found = await self.of(view, POOL_ID)
        assert found is not None
        yield found

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        if identity != POOL_ID:
            return None
        space, pool = await view.pool_space(), await view.pool_identity()
        return await self.made(
            view,
            identity,
            Identifier=pool.pool_id,
            DisplayName=pool.path.rstrip("/").rpartition("/")[2],
            Name=identity,
            PoolID=identity,
            Primordial=False,
            RemainingManagedSpace=space.left_bytes,
            TotalManagedSpace=space.used_bytes + space.left_bytes,
            NoSinglePointOfFailure=False,
            NoSinglePointOfFailureDefault=False,
            Usage=2,
            UsageDescription="Unrestricted",
            SupportsStorageVolumeCreation=True,
            SupportsThinlyProvisionedStorageVolume=True,
            SpaceLimit=space.quota_bytes,
            LowSpaceWarningThreshold=100 - space.warn_percent,
            OperationalStatus=[2 if space.state == "ok" else 3],
            StatusDescriptions=[space.state],
            HealthStatus=HEALTHY if space.state == "ok" else WARNING,
            HealthStatusDescription=space.state,
        )


class SmStorageVolume(SmProvider):
    """Volumes, and snapshots, which are volumes that can be read."""

    class_name = sm_objects.CLASSES[sm_objects.VOLUME]
    kind = sm_objects.VOLUME

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        async for disk in disks(view):
            yield await self.of_disk(view, disk)

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        element = await sm_objects.volume_with(view, identity)
        return None if element is None else await self.of_disk(view, element)

    async def of_disk(self, view: View, disk: Disk | Element) -> CIMInstance:
        volume, snapshot = disk.volume, disk.snapshot
        name = volume.name if snapshot is None else f"{volume.name}@{snapshot.name}"
        guid = volume.volume_id if snapshot is None else snapshot.guid
        size = volume.size_bytes if snapshot is None else snapshot.size_bytes
        good = volume.state in ("ok", "read-only")
        readable = snapshot is not None or volume.read_only
        return await self.made(
            view,
            device_id(volume.volume_id, None if snapshot is None else snapshot.guid),
            Identifier=guid,
            DisplayName=await view.element_name(guid) or name,
            Name=(volume.naa if snapshot is None else snapshot.naa).upper(),
            NameFormat=9,
            NameNamespace=2,
            SMLunId=volume.serial if snapshot is None else snapshot.serial,
            HealthStatus=HEALTHY if good else UNHEALTHY,
            HealthStatusDescription=volume.reason or volume.state,
            OperationalStatus=[2 if good else 6],
            StatusDescription=volume.reason or volume.state,
            BlockSize=BLOCK_BYTES,
            NumberOfBlocks=size // BLOCK_BYTES,
            ConsumableBlocks=size // BLOCK_BYTES,
            Primordial=False,
            OtherIdentifyingInfo=[name],
            IdentifyingDescriptions=["name"],
            NoSinglePointOfFailure=False,
            DataRedundancy=1,
            PackageRedundancy=0,
            Access=1 if readable else 3,
            AccessDescription="Readable" if readable else "Read/Write Supported",
            ThinlyProvisioned=True,
            Usage=12 if snapshot is not None else (await view.replica_usages()).get(volume.name, 2),
            IsSnapshot=snapshot is not None,
        )


class SmReplicaPeer(SmProvider):
    """Where a copy is, or can be: systems; and the targets of copies, which are known by their volume or replica."""

    class_name = sm_objects.CLASSES[sm_objects.PEER_SYSTEM]
    kinds = (sm_objects.PEER_SYSTEM, sm_objects.PEER_VOLUME, sm_objects.PEER_REMOTE, sm_objects.PEER_GROUP)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        yield await self._system(view, None)
        for peer in await elements.peers(view):
            yield await self._system(view, peer)
        for copy in await synchronizations.all_copies(view):
            yield await self._of_copy(view, copy)
        for group in await synchronizations.group_copies(view):
            yield await self._of_group(view, group)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        for kind in self.kinds:
            prefix = (await view.paths()).instance_id(kind, "")
            text = keys.get("ObjectId")
            if len(keys) == 1 and isinstance(text, str) and text.startswith(prefix):
                return await self._of(view, kind, text[len(prefix) :])
        return None

    async def _of(self, view: View, kind: str, text: str) -> CIMInstance | None:
        if kind == sm_objects.PEER_SYSTEM:
            system = await sm_objects.peer_system(view, text)
            return await self._system(view, system.peer) if system is not None and system.current else None
        if kind == sm_objects.PEER_GROUP:
            groups = [group for group in await synchronizations.group_copies(view) if group.target_group == text]
            return await self._of_group(view, groups[0]) if groups else None
        copy = await sm_objects.copy_of_peer(view, kind, text)
        return None if copy is None else await self._of_copy(view, copy)

    async def _system(self, view: View, peer: PeerInfo | None) -> CIMInstance:
        pool = await view.pool_identity()
        key = sm_objects.LOCAL if peer is None else sm_objects.peer_key(peer)
        return await self._peer(
            view,
            sm_objects.PEER_SYSTEM,
            key,
            PeerObjectType=SYSTEM_TYPE,
            PeerObjectName=pool.path.rstrip("/").rpartition("/")[2] if peer is None else peer.name,
            PeerUniqueId=pool.pool_id if peer is None else peer.fingerprint,
            PeerSystemName=sm_objects.LOCAL if peer is None else peer.name,
            PeerProviderURI=None if peer is None or peer.address is None else f"twinvol://{peer.address}",
            IsPrimary=peer is None,
        )

    async def _of_copy(self, view: View, copy: Copy) -> CIMInstance:
        path = await sm_objects.target_peer_path(view, copy)
        kind = sm_objects.PEER_REMOTE if copy.is_remote else sm_objects.PEER_VOLUME
        key = copy.replica if copy.is_remote else sm_objects.target_device_id(copy)
        name = await view.element_name(f"relation:{copy.target}")
        return await self._peer(
            view,
            kind,
            key,
            Identifier=name or copy.replica or path.keybindings["ObjectId"],
            PeerObjectType=STORAGE_VOLUME,
            PeerObjectId=None if copy.is_remote else (await view.paths()).instance_id(sm_objects.VOLUME, key),
            PeerObjectName=await view.element_name(copy.target) or copy.snapshot or copy.replica,
            PeerUniqueId=copy.target,
            PeerSystemName=copy.target_at or sm_objects.LOCAL,
            IsPrimary=copy.source_at is not None,
        )

    async def _of_group(self, view: View, group: GroupCopy) -> CIMInstance:
        return await self._peer(
            view,
            sm_objects.PEER_GROUP,
            group.target_group,
            Identifier=group.info.name,
            PeerObjectType=GROUP_TYPE,
            PeerObjectId=(await view.paths()).instance_id(sm_objects.GROUP, group.target_group),
            PeerObjectName=group.info.name,
            PeerUniqueId=group.target_group,
            PeerSystemName=sm_objects.LOCAL,
            IsPrimary=False,
        )

    async def _peer(self, view: View, kind: str, key: object, **properties: Any) -> CIMInstance:
        object_id = (await view.paths()).instance_id(kind, key)
        properties = {"Identifier": object_id, "IsCIMReplicationEntityBased": False} | properties
        return view.make(self.namespace, self.class_name, ObjectId=object_id, **properties)


class SmJob(SmProvider):
    class_name = sm_objects.CLASSES[sm_objects.JOB]
    kind = sm_objects.JOB

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for job in await jobs.shown(view):
            yield await self.of_job(view, job)

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        job = await elements.job_numbered(view, identity)
        return await self.of_job(view, job) if job is not None and jobs.is_shown(job) else None

    async def of_job(self, view: View, job: JobInfo) -> CIMInstance:
        return await self.made(view, job.job, **jobs.properties(job))


class SmReplicationGroup(SmProvider):
    class_name = sm_objects.CLASSES[sm_objects.GROUP]
    kind = sm_objects.GROUP

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for group in await elements.groups(view):
            yield await self._made(view, group)

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        found = [group for group in await elements.groups(view) if group.guid == identity]
        return await self._made(view, found[0]) if found else None

    async def _made(self, view: View, group: Group) -> CIMInstance:
        good = group.group is None or group.group.state == "ok"
        return await self.made(
            view,
            group.guid,
            Identifier=group.guid,
            DisplayName=group.name,
            Description=f"{len(group.members) + len(group.remote)} members",
            HealthStatus=HEALTHY if good else WARNING,
            OperationalStatus=[2 if good else 3],
        )


class SmReplicationCapabilities(SmProvider):
    class_name = sm_objects.CLASSES[sm_objects.CAPABILITIES]
    kind = sm_objects.CAPABILITIES

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        found = await self.of(view, sm_objects.LOCAL)
        assert found is not None
        yield found

    async def of(self, view: View, identity: str) -> CIMInstance | None:
        if identity != sm_objects.LOCAL:
            return None
        return await self.made(
            view,
            identity,
            Identifier="replication",
            SupportedStorageObjects=[2],
            SupportedReplicationTypes=REPLICATION_TYPES,
            DefaultRecoveryPointObjective=30,
            SupportsReplicationGroup=True,
            SupportsEmptyReplicationGroup=True,
            SupportsFullDiscovery=True,
            SupportsCreateReplicationRelationshipMethod=False,
            SupportedAsynchronousActions=[2, 3, 5],
            SupportedSynchronousActions=[2, 3, 5, 12, 13, 14, 15],
        )


PROVIDERS: tuple[Provider, ...] = (
    SmSystem(),
    SmPool(),
    SmStorageVolume(),
    SmReplicaPeer(),
    SmJob(),
    SmReplicationGroup(),
    SmReplicationCapabilities(),
)
