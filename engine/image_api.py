"""Images, hash trees and scrubs in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api_part import ApiPart
from engine.catalog import VolumeRow
from engine.errors import InvalidArgument
from engine.family_import import start_family_import
from engine.image_formats import absolute, open_source
from engine.interchange import start_export, start_import
from engine.jobs import job_info
from engine.names import check_chunk, check_name
from engine.root_job import start_root

if TYPE_CHECKING:
    from engine.api import JobInfo, ScrubInfo
    from engine.image_formats import RemoteDisks
    from engine.volume import Volume


class ImageOperations(ApiPart):
    """See the module."""

    _remotes: RemoteDisks | None

    # --- raw images and hash trees ----------------------------------------------------------------------------

    async def volume_import(
        self,
        source: str,
        name: str,
        *,
        format: str = "auto",
        chunk_bytes: int = 65536,
        expose: bool = False,
        secret: str | None = None,
        new_identity: bool = False,
    ) -> JobInfo:
        if new_identity:
            return await self._family_import(source, name, expose=expose)
        row = VolumeRow(volume_id="", name=check_name("volume", name), file="")
        check_chunk(chunk_bytes)
        self._pool.require_new(name)
        if expose:
            self._exposure.require_exposable(name)
        image, image_format = await open_source(self._remotes, source, format, secret)

        async def when_whole(volume: Volume) -> None:
            if expose:
                await self._exposure.expose(volume)
            await self._event(f"volume {name}", f"imported from {image.name}")

        return job_info(await start_import(self._pool, image, image_format, row, chunk_bytes, when_whole=when_whole))

    async def _family_import(self, source: str, name: str, *, expose: bool) -> JobInfo:
        self._pool.require_new(check_name("volume", name))
        if "://" in source:
            raise InvalidArgument(f"{source} is no volume file, which alone has identities to be made anew")
        if expose:
            self._exposure.require_exposable(name)

        async def when_whole(volumes: list[Volume]) -> None:
            for volume in volumes:
                if expose:
                    await self._exposure.expose(volume)
                await self._event(f"volume {volume.name}", f"taken in from {source}, under new identities")

        return job_info(await start_family_import(self._pool, absolute(source), name, when_whole=when_whole))

    async def volume_export(
        self, name: str, snapshot: str | None, path: str, *, format: str = "raw", replace: bool = False
    ) -> JobInfo:
        volume = self._pool.volume(name)
        point = None if snapshot is None else self._pool.snapshot(volume, snapshot)
        return job_info(await start_export(self._pool, volume, point, absolute(path), format, replace_it=replace))

    async def volume_root(self, name: str, snapshot: str | None = None) -> JobInfo:
        volume = self._pool.volume(name)
        point = None if snapshot is None else self._pool.snapshot(volume, snapshot)
        return job_info(await start_root(self._pool, volume, point))

    # --- integrity --------------------------------------------------------------------------------------------

    async def volume_scrub(self, name: str, *, rate_bytes_s: int | None = None) -> JobInfo:
        return job_info(await self._pool.integrity.scrub(self._pool.volume(name), rate_bytes_s))

    async def volume_scrub_pause(self, name: str) -> ScrubInfo:
        await self._pool.integrity.pause(self._pool.volume(name))
        return await self.volume_scrub_show(name)

    async def volume_scrub_show(self, name: str) -> ScrubInfo:
        return self._pool.integrity.info(self._pool.volume(name))

    async def volume_digests(self, name: str, policy: str) -> ScrubInfo:
        await self._pool.integrity.set_policy(self._pool.volume(name), policy)
        await self._event(f"volume {name}", f"digests are made {'soon' if policy == 'always' else 'by scrubs'}")
        return await self.volume_scrub_show(name)
