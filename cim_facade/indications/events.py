"""A change of the engine as indications: CIM_InstCreation, _InstModification and _InstDeletion of the instances that
show it, in each namespace that does, and CIM_AlertIndication of what no instance's state says.

Instances are made by the providers, of what the engine said with the change; a ``View`` is given that to remember, so
they show the state then. What an indication has of its delivery (sequence, filter) is the destination's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pywbem import CIM_ERR_FAILED, CIMError, CIMInstance

from cim_facade import answers, elements, synchronizations
from cim_facade.context import User, View
from cim_facade.indications.predefined import MODE_MESSAGE, OWNING_ENTITY, RPO_MESSAGE
from cim_facade.namespaces import STORAGE, STORAGE_MANAGEMENT
from cim_facade.providers import jobs, volumes
from cim_facade.providers.jobs import ConcreteJob
from cim_facade.providers.sm_objects import SmJob, SmStorageVolume
from cim_facade.providers.synchronizations import GroupSynchronized, StorageSynchronized, point_in_time
from cim_facade.providers.volumes import StorageVolume
from engine.api import GroupRelationInfo, JobInfo, PairInfo, RelationInfo, ReplicaInfo, SnapshotInfo, VolumeInfo

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import ChangeInfo, EngineApi

Document = dict[str, Any]

_CLASSES = {"created": "CIM_InstCreation", "modified": "CIM_InstModification", "deleted": "CIM_InstDeletion"}
_ONESELF = User("", administrator=False, secure=True)

_SHOWN = ("copy_state", "progress_status", "mode", "source", "target", "peer", "group")
"""Of a mirror: what its association shows. The rest of what the engine tells is for alerts."""

_ALERT_SEVERITY = {"kept": 2, "at risk": 3, "broken": 6}
"""PerceivedSeverity of the promise of a mirror: Information, Degraded/Warning, Critical."""

QUALITY_OF_SERVICE, MODEL_CHANGE = 3, 7
"""AlertType."""

THRESHOLD_CROSSED, ALERT_CLEARED, OTHER_CAUSE = 52, 59, 1
"""ProbableCause."""


@dataclass(slots=True, eq=False)
class Event:
    """``indication`` without what is its delivery's; ``namespace``: of the instances in it."""

    namespace: str
    indication: CIMInstance
    _written: dict[str, str] | None = None

    def written(self) -> dict[str, str]:
        """The properties as CIM-XML, by name in lower case: written once, for however many destinations."""
        if self._written is None:
            self._written = answers.written_properties(self.indication)
        return self._written


class Events:
    """See the module."""

    def __init__(self, api: EngineApi, classes: ClassRepository, registry: Registry) -> None:
        self._api = api
        self._classes = classes
        self._registry = registry
        self._kinds: dict[str, Callable[[ChangeInfo], Awaitable[list[Event]]]] = {
            "volume": self._of_volume,
            "snapshot": self._of_snapshot,
            "job": self._of_job,
            "replica": self._of_replica,
            "clone": self._of_clone,
            "group": self._of_group,
        }

    async def of(self, change: ChangeInfo) -> list[Event]:
        """Nothing, if it is not shown. Raises CIMError: what the change says is not understood."""
        make = self._kinds.get(change.kind)
        if make is None:
            return []
        try:
            return await make(change)
        except (TypeError, KeyError, ValueError) as error:  # recorded by another version
            raise CIMError(CIM_ERR_FAILED, f"{change.kind} {change.subject}: {error!r}") from error

    def _view(self) -> View:
        return View(self._api, _ONESELF, self._classes, self._registry)

    # --- by kinds ---------------------------------------------------------------------------------------------

    async def _of_volume(self, change: ChangeInfo) -> list[Event]:
        info = VolumeInfo(**_only(change))
        view = self._view()
        view.remember(f"volume {info.volume_id}", info)
        return [
            self._instance(STORAGE, change, await StorageVolume().made(view, volumes.Disk(info))),
            self._instance(STORAGE_MANAGEMENT, change, await SmStorageVolume().of_disk(view, elements.Element(info))),
        ]

    async def _of_snapshot(self, change: ChangeInfo) -> list[Event]:
        document = dict(_only(change))
        volume = VolumeInfo(**document.pop("of"))
        del document["volume_id"]
        info = SnapshotInfo(**document)
        view = self._view()
        view.remember(f"volume {volume.volume_id}", volume)
        view.remember(f"snapshot {info.guid}", info)
        copy = synchronizations.of_snapshot(volume, info)
        return [
            self._instance(STORAGE, change, await StorageVolume().made(view, volumes.Disk(volume, info))),
            self._instance(STORAGE, change, await StorageSynchronized().made(view, copy)),
            self._instance(
                STORAGE_MANAGEMENT, change, await SmStorageVolume().of_disk(view, elements.Element(volume, info))
            ),
        ]

    async def _of_job(self, change: ChangeInfo) -> list[Event]:
        states = [None if each is None else JobInfo(**each) for each in (change.before, change.after)]
        if any(each is not None and each.kind not in jobs.KINDS for each in states):
            return []
        found = []
        for namespace, make in ((STORAGE, ConcreteJob().made), (STORAGE_MANAGEMENT, SmJob().of_job)):
            view = self._view()
            before, after = [None if each is None else await make(view, each) for each in states]
            assert after is not None
            found.append(self._instance(namespace, change, after, before))
        return found

    async def _of_replica(self, change: ChangeInfo) -> list[Event]:
        states = [None if each is None else ReplicaInfo(**each) for each in (change.before, change.after)]
        before, after = [
            None if each is None else await StorageSynchronized().made(self._view(), synchronizations.mirror_of(each))
            for each in states
        ]
        was, now = states
        if was is None or now is None:
            found = now or was
            shown = after or before
            assert found is not None
            assert shown is not None
            return [] if found.members else [self._instance(STORAGE, change, shown)]
        events = []
        assert after is not None
        if not now.members and any(getattr(was, name) != getattr(now, name) for name in _SHOWN):
            events.append(self._instance(STORAGE, change, after, before))
        if was.promise != now.promise and now.promise is not None:
            events.append(self._promise(change, was, now, after))
        if was.switches < now.switches:
            events.append(self._switch(change, now, after))
        return events

    async def _of_clone(self, change: ChangeInfo) -> list[Event]:
        copy = synchronizations.clone_of(RelationInfo(**_only(change)))
        return [self._instance(STORAGE, change, await StorageSynchronized().made(self._view(), copy))]

    async def _of_group(self, change: ChangeInfo) -> list[Event]:
        document = dict(_only(change))
        pairs = [PairInfo(**pair) for pair in document.pop("pairs")]
        view = self._view()
        copy = await synchronizations.group_copy(view, GroupRelationInfo(**document, pairs=pairs))
        if not copy.members:  # its pairs went before it did
            return []
        return [self._instance(STORAGE, change, await GroupSynchronized().made(view, copy))]

    # --- making -----------------------------------------------------------------------------------------------

    def _instance(
        self, namespace: str, change: ChangeInfo, found: CIMInstance, before: CIMInstance | None = None
    ) -> Event:
        path = found.path.copy()
        path.host = None
        previous = {} if before is None else {"PreviousInstance": self._whole(namespace, before)}
        return self._event(
            namespace,
            _CLASSES[change.verb],
            change,
            SourceInstance=self._whole(namespace, found),
            SourceInstanceModelPath=path.to_wbem_uri(format="standard"),
            **previous,
        )

    def _whole(self, namespace: str, found: CIMInstance) -> CIMInstance:
        self._classes.shape(namespace, found.classname).complete(found)
        return found

    def _promise(self, change: ChangeInfo, was: ReplicaInfo, now: ReplicaInfo, shown: CIMInstance) -> Event:
        lag = "unknown" if now.lag_seconds is None else f"{now.lag_seconds:.1f} s"
        goal = "none" if now.rpo_seconds is None else f"{now.rpo_seconds:g} s"
        return self._alert(
            change,
            shown,
            RPO_MESSAGE,
            f"The objective of mirror {now.name} is {now.promise}: its lag is {lag}, the objective {goal}",
            [now.name, str(was.promise), str(now.promise), lag, goal],
            AlertType=QUALITY_OF_SERVICE,
            PerceivedSeverity=_ALERT_SEVERITY[str(now.promise)],
            ProbableCause=ALERT_CLEARED if now.promise == "kept" else THRESHOLD_CROSSED,
        )

    def _switch(self, change: ChangeInfo, now: ReplicaInfo, shown: CIMInstance) -> Event:
        state = "synchronous" if now.copy_state == "Synchronized" and now.exact else "asynchronous"
        return self._alert(
            change,
            shown,
            MODE_MESSAGE,
            f"The adaptive mirror {now.name} is {state} now",
            [now.name, state],
            AlertType=MODEL_CHANGE,
            PerceivedSeverity=2,
            ProbableCause=OTHER_CAUSE,
            ProbableCauseDescription="The mirror has switched its mode",
        )

    def _alert(
        self, change: ChangeInfo, about: CIMInstance, message_id: str, message: str, arguments: list[str], **more: Any
    ) -> Event:
        return self._event(
            STORAGE,
            "CIM_AlertIndication",
            change,
            Description=message,
            AlertingManagedElement=about.path.to_wbem_uri(format="standard"),
            AlertingElementFormat=2,  # CIMObjectPath
            OwningEntity=OWNING_ENTITY,
            MessageID=message_id,
            Message=message,
            MessageArguments=arguments,
            EventID=message_id,
            EventTime=point_in_time(change.at),
            **more,
        )

    def _event(self, namespace: str, class_name: str, change: ChangeInfo, **values: Any) -> Event:
        values.setdefault("PerceivedSeverity", 2)  # Information
        made = self._classes.shape(namespace, class_name).make(
            namespace, {"IndicationTime": point_in_time(change.at), **values}
        )
        made.path = None
        return Event(namespace, made)


def _only(change: ChangeInfo) -> Document:
    """What came, or what went."""
    found = change.after if change.after is not None else change.before
    if found is None:
        raise ValueError("without a state")
    return found
